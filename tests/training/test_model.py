"""The checkpoint against diffusers' own loaders, and the decoder of the pose estimator."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import nn
from transformers import CLIPTokenizer, VitPoseBackboneConfig, VitPoseConfig, VitPoseForPoseEstimation

from bolid_training.model.adapter import ZERO_TOKENS, build_pose_guider, scale_features
from bolid_training.model.checkpoint import build_checkpoint, build_unet, load_checkpoint, train_tokenizer
from bolid_training.model.config import AvatarConfig
from bolid_training.model.pose_estimator import (
    FLIP,
    PoseEstimator,
    build_pose_estimator,
    decode_heatmaps,
    draw_heatmaps,
    load_pose_estimator,
)

SMALL = AvatarConfig(text_layers=1, vision_layers=2, pose_layers=1, unet_channels=(32, 64, 64), vae_width=16)


@pytest.fixture(scope="module")
def checkpoint():
    torch.manual_seed(0)
    checkpoint = build_checkpoint(SMALL)
    # a fresh adapter repeats the text's keys and values; only different ones tell the branches apart
    for parameter in checkpoint.adapter.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return checkpoint


@pytest.fixture(scope="module")
def folder(checkpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    checkpoint.save(folder, torch.float32)
    return folder


def test_saving_and_loading_keeps_every_weight(checkpoint, folder):
    loaded = load_checkpoint(folder)
    for name, part in vars(checkpoint).items():
        if isinstance(part, nn.Module):
            state = vars(loaded)[name].state_dict()
            assert part.state_dict().keys() == state.keys()
            assert all(torch.equal(tensor, state[key]) for key, tensor in part.state_dict().items())


def test_tokens_of_zeros_are_kept_with_a_checkpoint(tmp_path):
    checkpoint = build_checkpoint(replace(SMALL, zero_tokens=3))
    checkpoint.save(tmp_path, torch.float32)
    assert load_file(tmp_path / "adapter" / "identity.safetensors")[ZERO_TOKENS].tolist() == [3]
    patches = torch.randn(2, 5, 65, SMALL.patch_width)
    parts = torch.arange(5).expand(2, -1)
    made, loaded = (c.adapter.identity_encoder for c in (checkpoint, load_checkpoint(tmp_path)))
    with torch.no_grad():
        tokens = loaded(patches, parts)
        assert torch.equal(tokens, made(patches, parts))
        assert torch.equal(tokens[:, : SMALL.identity_tokens], loaded.learned_tokens(patches, parts))
    assert tokens.shape[1] == SMALL.identity_tokens + 3
    assert not tokens[:, SMALL.identity_tokens :].any()


def test_body_id_attention_equals_diffusers_ip_adapter(checkpoint, folder):
    """Both branches at once, loaded by `load_ip_adapter`: the same UNet output."""
    pipe = StableDiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32)
    pipe.load_ip_adapter(
        [str(folder / "adapter")] * 2,
        subfolder=["", ""],
        weight_name=["identity.safetensors", "image_prompt.safetensors"],
        image_encoder_folder=None,
    )
    pipe.set_ip_adapter_scale([0.8, 0.5])
    generator = torch.Generator().manual_seed(0)
    patches = torch.randn(2, 5, 65, 192, generator=generator)
    parts = torch.arange(5).expand(2, -1)
    sample, text = torch.randn(2, 8, 16, 16, generator=generator), torch.randn(2, 77, 192, generator=generator)
    timestep = torch.tensor([300, 700])
    adapter, layers = checkpoint.adapter, len(checkpoint.adapter.layers)
    with torch.no_grad():
        embeds = [adapter.identity_encoder.embed_parts(patches, parts)[:, None], patches[:, :1, :, :]]
        expected = pipe.unet(sample, timestep, text, added_cond_kwargs={"image_embeds": embeds}).sample
        attention = {
            "identity_tokens": adapter.identity_encoder(patches, parts),
            "image_tokens": adapter.image_projector(patches[:, 0]),
            "identity_scale": torch.full((layers,), 0.8),
            "image_scale": torch.full((layers,), 0.5),
        }
        found = checkpoint.unet(sample, timestep, text, cross_attention_kwargs=attention).sample
        without = checkpoint.unet(sample, timestep, text).sample
    assert (found - expected).abs().max() < 1e-5
    assert (found - without).abs().max() > 1e-3


def test_adapter_file_of_another_size_is_named_in_the_error(checkpoint, tmp_path):
    other = build_checkpoint(AvatarConfig(**(vars(SMALL) | {"identity_tokens": 4})))
    other.adapter.save(tmp_path)
    with pytest.raises(RuntimeError, match=r"latents: expected shape \(1, 16, 192\), found \(1, 4, 192\)"):
        checkpoint.adapter.load(tmp_path)


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 2**32 - 1))
def test_heatmaps_decode_to_the_points_they_were_drawn_from(seed):
    points = torch.from_numpy(np.random.default_rng(seed).uniform(0.1, 0.9, (2, 12, 2))).float()
    found = decode_heatmaps(draw_heatmaps(points, 32, 32))
    assert (found[..., :2] - points).abs().max() < 0.02
    assert (found[..., 2] > 0.8).all()


def test_of_two_peaks_the_higher_one_is_the_keypoint():
    left, right = (torch.full((1, 12, 2), x) for x in (0.25, 0.75))
    both = torch.maximum(draw_heatmaps(left, 32, 32), 0.97 * draw_heatmaps(right, 32, 32))
    assert (decode_heatmaps(both)[..., :2] - left).abs().max() < 0.02


def test_decoding_is_differentiable():
    heatmaps = draw_heatmaps(torch.full((1, 12, 2), 0.4), 24, 24).requires_grad_()
    decode_heatmaps(heatmaps)[..., :2].sum().backward()
    assert torch.isfinite(heatmaps.grad).all()
    assert (heatmaps.grad != 0).any()


def test_tokenizer_is_lower_case_pads_and_survives_saving(tmp_path):
    tokenizer = train_tokenizer(["a woman in a red shirt"] * 10, 600)
    tokenizer.save_pretrained(tmp_path)
    again = CLIPTokenizer.from_pretrained(tmp_path)
    text = "A Woman, 24, in Größe µ"
    assert tokenizer(text).input_ids == again(text).input_ids
    assert tokenizer("RED shirt").input_ids == tokenizer("red shirt").input_ids
    assert len(tokenizer("red").input_ids) == 3  # start, one learned word, end


def plain_vitpose():
    """ViTPose as it is published, in small: patches of 16 pixels of an upright picture."""
    backbone = VitPoseBackboneConfig(
        image_size=[64, 48], hidden_size=32, num_hidden_layers=1, num_attention_heads=1, out_features=["stage1"]
    )
    return VitPoseForPoseEstimation(VitPoseConfig(backbone_config=backbone, scale_factor=4, num_labels=12))


@pytest.mark.parametrize("stem", [True, False])
def test_a_pose_estimator_survives_saving(tmp_path, stem):
    estimator = build_pose_estimator(96, 32, 1) if stem else PoseEstimator(plain_vitpose())
    estimator = estimator.to(memory_format=torch.channels_last).eval()
    estimator.save(tmp_path)
    again = load_pose_estimator(tmp_path).eval()
    height, width = again.image_size
    assert (height, width) == ((96, 96) if stem else (64, 48))
    pixels = torch.rand(1, 3, height, width)
    with torch.no_grad():
        keypoints, heatmaps = again(pixels)
        assert (heatmaps - estimator(pixels)[1]).abs().max() < 1e-5
        mirrored = again(pixels.flip(-1))[0][:, FLIP]
    assert keypoints.shape == (1, 12, 3)
    assert heatmaps.shape == (1, 12, height // 4, width // 4)
    torch.testing.assert_close(mirrored * torch.tensor([-1, 1, 1]) + torch.tensor([1, 0, 0]), keypoints)


@pytest.mark.parametrize("scale", [0.5, 1.4])
def test_a_scaled_guider_is_a_guider_whose_features_are_scaled(scale):
    torch.manual_seed(0)
    guider = build_pose_guider(build_unet(AvatarConfig(unet_channels=(32, 32, 64))))
    for name, parameter in guider.named_parameters():
        torch.nn.init.normal_(parameter, std=0.2 if name.endswith("bias") else 0.1)
    skeleton = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        before = guider(skeleton)
        scale_features(guider, scale)
        for found, feature in zip(guider(skeleton), before, strict=True):
            torch.testing.assert_close(found, scale * feature, atol=1e-4, rtol=1e-4)
