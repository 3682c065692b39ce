"""InstantID's IdentityNet inside the denoiser's graph, against diffusers' ControlNet beside diffusers' UNet."""

import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel

from bolid_export.graphs import Denoiser, denoiser_network
from bolid_export.sources import model_sizes, open_source
from bolid_export.to_onnx import example_inputs
from bolid_export.tracing.stream import to_onnx
from bolid_export.verify import load_engines
from bolid_sdk.conditioning import Conditioner
from bolid_sdk.contracts import COEFFICIENT_NAMES, graph_specs
from bolid_sdk.pose import Pose, draw_skeleton
from bolid_training.model.adapter import Adapter
from bolid_training.model.config import AvatarConfig
from bolid_training.model.identity_net import IdentityGuidedUNet, build_identity_net

CONFIG = AvatarConfig(
    text_width=64, resampler_width=64, identity_tokens=4, image_tokens=3, pose_guider=False, identity_net=True
)


@pytest.fixture(scope="module")
def networks():
    """Random: UNet, adapter with an IdentityNet that has an effect, and the two together."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=64,
        attention_head_dim=2,
        addition_embed_type="text",
        addition_embed_type_num_heads=1,
    )
    adapter = Adapter(unet, CONFIG)
    for parameter in adapter.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    return unet.eval(), adapter.eval(), IdentityGuidedUNet(unet, adapter.identity_net).eval()


@pytest.fixture(scope="module")
def denoiser(networks, sizes):
    _, adapter, guided = networks
    fitting = replace(
        sizes,
        latent_channels=4,
        vae_factor=8,
        context_width=64,
        identity_tokens=4,
        image_tokens=3,
        cross_attention_layers=len(adapter.layers),
        pose_channels=(),
        pose_divisors=(),
        deep_channels=0,
        identity_net=True,
    )
    return Denoiser(graph_specs(fitting)["denoiser"], guided).requires_grad_(False), fitting


def inputs_of(graph, rows=6, seed=0):
    """Three branches of two pictures, latents `rows` high (a multiple of 3) and two thirds wider.

    The coefficients make x0 the network's guided output.
    """
    heights = {"height": 8 * rows, "latent_height": rows}
    random = dict(zip(graph.spec.input_names, example_inputs(graph.spec, heights, seed), strict=True))
    coefficients = torch.tensor([float(name in ("input", "x0_output")) for name in COEFFICIENT_NAMES])
    return random | {"timestep": torch.tensor([501.0]), "guidance": torch.tensor([2.0]), "coefficients": coefficients}


def test_the_graph_is_diffusers_controlnet_beside_its_unet(networks, denoiser):
    unet, adapter, _ = networks
    graph, _ = denoiser
    inputs = inputs_of(graph)
    branches = len(inputs["encoder_hidden_states"]) // len(inputs["sample"])
    names = ("identity_tokens", "image_tokens", "identity_scale", "image_scale")
    sample, timestep = torch.cat([inputs["sample"]] * branches), torch.tensor([501.0])
    with torch.no_grad():
        # the ControlNet's text is the person and nothing else; conditioning_scale is pose_scale
        down, mid = adapter.identity_net(
            sample,
            timestep,
            encoder_hidden_states=inputs["identity_tokens"],
            controlnet_cond=inputs["skeleton"],
            conditioning_scale=float(inputs["pose_scale"]),
            return_dict=False,
        )
        output = unet(
            sample,
            timestep,
            inputs["encoder_hidden_states"],
            cross_attention_kwargs={name: inputs[name] for name in names},
            down_block_additional_residuals=down,
            mid_block_additional_residual=mid,
        ).sample
        first, last = output[: len(inputs["sample"])], output[-len(inputs["sample"]) :]
        _, found = graph(*inputs.values())
        _, without = graph(*(inputs | {"pose_scale": torch.zeros(1)}).values())
    assert (found - (first + 2 * (last - first))).abs().max() < 1e-4
    assert (found - without).abs().max() > 1e-2


def test_an_identity_net_beside_the_identity_is_opened_with_its_checkpoint(model_folder, tmp_path):
    folder = shutil.copytree(model_folder, tmp_path / "instantid")
    unet = UNet2DConditionModel.from_pretrained(folder / "unet")
    build_identity_net(unet).save_pretrained(folder / "adapter" / "identity_net")
    checkpoint = open_source(folder).checkpoint
    sizes = model_sizes(checkpoint)
    assert sizes.identity_net
    assert not sizes.deep_channels
    assert isinstance(denoiser_network(checkpoint), IdentityGuidedUNet)
    assert graph_specs(sizes)["denoiser"].input_names[-2:] == ("skeleton", "pose_scale")


@pytest.mark.slow
def test_the_exported_graph_equals_pytorch_at_other_sizes(denoiser, tmp_path):
    graph, sizes = denoiser
    file = to_onnx(graph, tmp_path, size_step=sizes.size_step, vae_factor=sizes.vae_factor)
    engine = load_engines({"denoiser": file}, {"denoiser": graph.spec})["denoiser"]
    unit = sizes.size_step // sizes.vae_factor
    for rows in (3 * unit, 6 * unit):
        inputs = inputs_of(graph, rows, seed=rows)
        found = engine.run({name: tensor.numpy() for name, tensor in inputs.items()})
        with torch.no_grad():
            expected = graph(*inputs.values())
        for name, tensor in zip(graph.spec.output_names, expected, strict=True):
            np.testing.assert_allclose(found[name], tensor.numpy(), atol=1e-4)


def test_the_runtime_draws_the_skeleton_and_leaves_the_unconditional_branch_black(denoiser):
    _, sizes = denoiser
    bundle = SimpleNamespace(manifest=SimpleNamespace(sizes=sizes))
    points = np.random.default_rng(0).uniform(0.2, 0.8, (12, 3)).astype(np.float32)
    points[:, 2] = 1
    pose = Pose(keypoints=points, aspect=1.0)
    told = Conditioner(bundle, graphs={}).pose([pose, None], scale=0.5, width=64, height=64, branches=2)
    assert told.keys() == {"skeleton", "pose_scale"}
    assert told["skeleton"].shape == (4, 3, 64, 64)
    np.testing.assert_array_equal(told["skeleton"][[0, 1, 3]], 0)
    drawn = draw_skeleton(points, 64, 64).transpose(2, 0, 1) / np.float32(255)
    np.testing.assert_allclose(told["skeleton"][2], drawn, atol=1e-6)
    assert drawn.max() > 0.5
    np.testing.assert_array_equal(told["pose_scale"], np.float32([0.5]))
