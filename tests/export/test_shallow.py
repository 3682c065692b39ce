"""The full and the shallow denoiser: one UNet cut in two, and a loop over both as DeepCache has it."""

from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch

from bolid_export.calibrate import PROMPTS
from bolid_export.graphs import Denoiser
from bolid_export.package import default_sampling, noise_schedule
from bolid_export.shallow import ShallowUNet, deep_features
from bolid_export.verification.scene import Scene, condition, latents, noise_source
from bolid_export.verification.torch_engine import TorchEngine
from bolid_sdk.contracts import graph_specs
from bolid_training.model.checkpoint import build_unet
from bolid_training.model.config import AvatarConfig

STEPS, SCHEDULE = 12, "FFsFsFssFssF"


@pytest.fixture(scope="module")
def engines(graphs, export):
    """PyTorch's graphs in front of the loop, exported ones in it."""
    exported = {name: export(name)[1] for name in ("denoiser", "denoiser_shallow")}
    return {name: TorchEngine(graph) for name, graph in graphs.items()} | exported


def denoiser_inputs(sizes, *, batch=1, branches=2, height=8, width=8, seed=0):
    """Random inputs of the denoiser; latent sizes."""
    random = np.random.default_rng(seed)
    axes = {"batch": batch, "guided_batch": batch * branches, "latent_height": height, "latent_width": width}
    axes |= {f"{name}/2": axes[name] // 2 for name in ("latent_height", "latent_width")}
    inputs = {
        tensor.name: random.standard_normal([axes.get(axis, axis) for axis in tensor.shape]).astype(np.float32)
        for tensor in graph_specs(sizes)["denoiser"].inputs
    }
    return inputs | {"timestep": np.array([501.0], np.float32)}


def shallow_inputs(engine, inputs, deep):
    """With a feature of its own step there is nothing to continue."""
    features = {"deep_feature": deep, "earlier_deep_feature": 0.5 * deep, "extrapolation": np.zeros(1, np.float32)}
    return {name: {**inputs, **features}[name] for name in engine.spec.input_names}


def test_a_feature_beside_it_changes_no_output(graphs, sizes):
    alone = Denoiser(graph_specs(replace(sizes, deep_channels=0))["denoiser"], graphs["denoiser"].network)
    inputs = denoiser_inputs(sizes)
    expected, found = TorchEngine(alone.eval()).run(inputs), TorchEngine(graphs["denoiser"]).run(inputs)
    assert set(found) - set(expected) == {"deep_feature"}
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values)


@pytest.mark.parametrize(("batch", "branches"), [(1, 2), (3, 1)])
def test_with_the_feature_of_its_own_step_the_shallow_half_is_the_whole(graphs, sizes, engines, batch, branches):
    inputs = denoiser_inputs(sizes, batch=batch, branches=branches, width=12)
    pairs = [[TorchEngine(graphs[name]) for name in ("denoiser", "denoiser_shallow")]]
    pairs.append([engines["denoiser"], engines["denoiser_shallow"]])
    for full, shallow in pairs:
        whole = full.run(inputs)
        half = shallow.run(shallow_inputs(shallow, inputs, whole["deep_feature"]))
        for name, values in half.items():
            np.testing.assert_allclose(values, whole[name], atol=1e-5)


def test_every_input_of_the_shallow_half_matters(sizes, engines):
    """But for the timestep: a norm's group is one channel here and cancels what is added to it (see below)."""
    full, shallow = engines["denoiser"], engines["denoiser_shallow"]
    inputs = denoiser_inputs(sizes)
    inputs = shallow_inputs(shallow, inputs, full.run(inputs)["deep_feature"])
    inputs["extrapolation"] += 0.5
    plain = shallow.run(inputs)["next_sample"]
    for name in inputs.keys() - {"timestep"}:
        changed = shallow.run({**inputs, name: 1.5 * inputs[name] + 1})["next_sample"]
        assert np.abs(changed - plain).max() > 1e-5, name


@torch.no_grad()
def test_timestep_and_pooled_text_reach_the_shallow_half():
    """diffusers' forward of a UNet with two channels in a norm's group, and a text added to the timestep."""
    torch.manual_seed(0)
    unet = build_unet(AvatarConfig(unet_channels=(64, 64, 64), text_width=64)).eval()
    shallow = ShallowUNet(unet)
    sample, text = torch.randn(2, 8, 8, 8), torch.randn(2, 7, 64)
    outputs = []
    for timestep in (torch.tensor([100.0]), torch.tensor([900.0])):
        with deep_features(unet) as seen:
            whole = unet(sample, timestep, text).sample
        half = shallow(sample, timestep, seen[0], encoder_hidden_states=text, cross_attention_kwargs={})
        torch.testing.assert_close(half, whole, atol=1e-5, rtol=0)
        outputs.append(
            shallow(sample, timestep, torch.zeros_like(seen[0]), encoder_hidden_states=text, cross_attention_kwargs={})
        )
    assert (outputs[0] - outputs[1]).abs().max() > 1e-4


def test_the_shallow_half_is_a_small_part(graphs):
    shallow, full = (
        sum(parameter.numel() for parameter in graphs[name].parameters()) for name in ("denoiser_shallow", "denoiser")
    )
    assert shallow < full / 2


def test_the_loop_is_deepcaches(checkpoint, sizes, engines):
    """Against diffusers' whole UNet and scheduler, in which the last layer is handed a feature from old ones."""
    sampling = replace(default_sampling(checkpoint), steps=STEPS, guidance=2.0)
    scene = noise_scene(checkpoint, sizes)
    table = sampling.table(noise_schedule(checkpoint))
    conditioning = condition(engines, scene, sizes)
    noise = torch.from_numpy(next(noise_source(scene, sizes).draws()))
    expected = deepcache_latents(checkpoint, conditioning, noise, guidance=2.0)
    found = latents(engines, scene, sizes, table, 2.0, caching="fast")
    np.testing.assert_allclose(found, expected, atol=1e-3)
    plain = latents(engines, scene, sizes, table, 2.0)
    assert np.abs(plain - expected).max() > 1e-2


def noise_scene(checkpoint, sizes):
    random = np.random.default_rng(1)
    normal = lambda *shape: random.standard_normal(shape).astype(np.float32)  # noqa: E731
    ids = checkpoint.tokenizer(["", PROMPTS[0]], padding="max_length", truncation=True)["input_ids"]
    return Scene(
        token_ids={"input_ids": np.array(ids)},
        zero_unconditional=checkpoint.zero_unconditional,
        crops=normal(5, 3, sizes.image_size, sizes.image_size),
        parts=np.arange(5),
        image_prompt=normal(3, sizes.image_size, sizes.image_size),
        skeleton=random.random((3, sizes.native_height, sizes.native_width), np.float32),
        identity_scale=1.0,
        image_scale=0.5,
        seed=3,
    )


@torch.no_grad()
def deepcache_latents(checkpoint, conditioning, noise, *, guidance):
    """Every step runs everything; in a shallow one the deep layers' result is thrown away for one from older ones."""
    attention = {name: torch.from_numpy(array) for name, array in conditioning.items()}
    text = attention.pop("encoder_hidden_states")
    features = [attention.pop(name) for name in list(attention) if name.startswith("pose_features_")]
    unet, scheduler = checkpoint.unet, checkpoint.scheduler
    scheduler.set_timesteps(STEPS)
    sample, kept = noise, {}
    for index, (kind, timestep) in enumerate(zip(SCHEDULE, scheduler.timesteps, strict=True)):
        with handed_over(unet.up_blocks[-1], kept, index, old=kind == "s"):
            first, last = unet(
                torch.cat([sample, sample]),
                timestep,
                text,
                cross_attention_kwargs=attention,
                down_intrablock_additional_residuals=list(features),
            ).sample.chunk(2)
        sample = scheduler.step(first + guidance * (last - first), timestep, sample).prev_sample
    return sample.numpy()


@contextmanager
def handed_over(block, kept, index, old):
    """Wraps the block's last layer: it reads a feature from the kept ones in place of its own, or its own is kept."""
    layer = block.resnets[-1]
    forward = layer.forward

    def changed(hidden_states, temb):
        skip = hidden_states.shape[1] // 2
        if not old:
            kept[index] = hidden_states[:, :skip].clone()
        feature = continued(kept, index) if old else kept[index]
        return forward(torch.cat([feature, hidden_states[:, skip:]], dim=1), temb)

    layer.forward = changed
    try:
        yield
    finally:
        layer.forward = forward


def continued(kept, index):
    """On the line through the last two kept features, at step `index`; the first step's is no point of it."""
    earlier, latest = sorted(kept)[-2:]
    if earlier == 0:
        return kept[latest]
    return kept[latest] + 0.85 * (kept[latest] - kept[earlier]) * (index - latest) / (latest - earlier)
