"""Exported engines in the runtime's loop make the picture that diffusers makes from the checkpoint's own files."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline, T2IAdapter

from bolid_export.calibrate import PROMPTS, token_ids
from bolid_export.graphs import bind_graphs
from bolid_export.package import default_sampling, noise_schedule
from bolid_export.precision import lower
from bolid_export.sources import Model, model_sizes, open_source
from bolid_export.tracing.stream import to_onnx
from bolid_export.verification.metrics import psnr
from bolid_export.verification.scene import Scene, noise_source, picture
from bolid_export.verification.torch_engine import TorchEngine
from bolid_export.verify import load_engines
from bolid_sdk.backends import open_backend
from bolid_sdk.bundle import Bundle
from bolid_training.model.lightning import LIGHTNING

LEAST = {"fp16": 35, "fp32": 45}  # dB


@dataclass(frozen=True, kw_only=True)
class Case:
    """Engines of one checkpoint, and diffusers' own pipeline of the same folder."""

    folder: Path
    checkpoint: Model
    engines: dict
    pipe: StableDiffusionPipeline
    scene: Scene
    least: float

    @property
    def sizes(self):
        return model_sizes(self.checkpoint)

    @property
    def sampling(self):
        """The default steps, with guidance: at 1 diffusers would leave out the unconditional half of the scene."""
        return replace(default_sampling(self.checkpoint), guidance=3.0)

    def draw(self, **changes):
        """Pixels through the runtime's loop."""
        engines = self.engines | changes.pop("engines", {})
        table = self.sampling.table(noise_schedule(self.checkpoint))
        return picture(engines, replace(self.scene, **changes), self.sizes, table, self.sampling.guidance)

    def without_pose(self):
        return self.draw(engines={"pose_guider": Blind(self.engines["pose_guider"])})

    @torch.no_grad()
    def image_embeds(self):
        """What `load_ip_adapter`'s projections read, both branches: [2, 1, V * P, D] and [2, 1, P, D]."""
        scene = self.scene
        pixels = torch.from_numpy(np.stack([np.zeros_like(scene.image_prompt), scene.image_prompt, *scene.crops]))
        patches = self.pipe.image_encoder(pixels, output_hidden_states=True).hidden_states[-2]
        part_embedding = self.checkpoint.adapter.identity_encoder.part_embedding[:, None]
        views = torch.stack([patches[:1].expand(len(scene.crops), -1, -1), patches[2:]]) + part_embedding
        return [views.flatten(1, 2)[:, None], patches[:2, None]]


class Blind:
    """A pose guider that sees no pose."""

    def __init__(self, guider):
        self.guider = guider

    def run(self, inputs):
        return {name: np.zeros_like(features) for name, features in self.guider.run(inputs).items()}


@pytest.fixture(scope="module")
def folders(model_folder, root):
    return {"tiny": model_folder, "avatar": root / "training" / "weights" / "avatar"}


@pytest.fixture(scope="module")
def bundles(root, fp16_bundle):
    return {"tiny fp16": fp16_bundle, "avatar fp32": Bundle.open(root / "engines" / "avatar")}


@pytest.fixture(
    scope="module",
    params=[
        "tiny fp16",
        "tiny fp32",
        "avatar fp16",
        "avatar fp32",
    ],
)
def case(request, folders, bundles, tmp_path_factory):
    name, precision = request.param.split()
    folder = folders[name]
    checkpoint = open_source(folder).checkpoint
    if bundle := bundles.get(request.param):
        backend = open_backend("onnxruntime", "cpu")
        entries = bundle.manifest.graphs.items()
        engines = {graph: backend.load(bundle.file(entry.file), entry.spec) for graph, entry in entries}
    else:
        engines = engines_of(checkpoint, precision, tmp_path_factory.mktemp(precision))
    scene = noise_scene(checkpoint)
    pipe = plain_pipeline(folder)
    pipe.set_ip_adapter_scale([scene.identity_scale, scene.image_scale])
    return Case(folder=folder, checkpoint=checkpoint, engines=engines, pipe=pipe, scene=scene, least=LEAST[precision])


def engines_of(checkpoint, precision, folder):
    """Only the denoiser is exported, which is what matters and what takes time."""
    sizes = model_sizes(checkpoint)
    graphs = bind_graphs(checkpoint, sizes)
    units = {"size_step": sizes.size_step, "vae_factor": sizes.vae_factor}
    file = to_onnx(lower(graphs["denoiser"], precision), folder, dtype=None, **units)
    denoiser = load_engines({"denoiser": file}, {"denoiser": graphs["denoiser"].spec})
    return {name: TorchEngine(graph) for name, graph in graphs.items()} | denoiser


def noise_scene(checkpoint):
    """Noise as pictures will do: what is compared is arithmetic."""
    sizes = model_sizes(checkpoint)
    random = np.random.default_rng(1)
    normal = lambda *shape: random.standard_normal(shape).astype(np.float32)  # noqa: E731
    side = sizes.image_size
    return Scene(
        token_ids=token_ids(checkpoint, sizes, ["", PROMPTS[0]]),
        zero_unconditional=checkpoint.zero_unconditional,
        crops=normal(5, 3, side, side),
        parts=np.arange(5),
        image_prompt=normal(3, side, side),
        skeleton=random.random((3, sizes.native_height, sizes.native_width), np.float32),
        # so that either shows beside the other: the avatar's identity speaks louder of noise than its image prompt
        identity_scale=2.0,
        image_scale=4.0,
        seed=3,
    )


def plain_pipeline(folder):
    """diffusers alone, from the checkpoint's own files."""
    pipe = StableDiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32)
    if (folder / LIGHTNING).is_dir():
        pipe.load_lora_weights(folder / LIGHTNING)
        pipe.fuse_lora()
        pipe.unload_lora_weights()
    pipe.set_progress_bar_config(disable=True)
    pipe.load_ip_adapter(
        [str(folder / "adapter")] * 2,
        subfolder=["", ""],
        weight_name=["identity.safetensors", "image_prompt.safetensors"],
        image_encoder_folder=None,
    )
    return pipe


def test_diffusers_pipeline_with_ip_adapter_makes_the_same_picture(case):
    expected = case.pipe(
        PROMPTS[0],
        height=case.scene.skeleton.shape[1],
        width=case.scene.skeleton.shape[2],
        num_inference_steps=case.sampling.steps,
        guidance_scale=case.sampling.guidance,
        latents=torch.from_numpy(next(noise_source(case.scene, case.sizes).draws())),
        ip_adapter_image_embeds=case.image_embeds(),
        output_type="pt",
    ).images
    assert psnr(case.without_pose().clip(-1, 1), 2 * expected.numpy() - 1) > case.least


@torch.no_grad()
def test_diffusers_unet_with_t2i_adapter_makes_this_picture(case):
    pipe, scene, sampling = case.pipe, case.scene, case.sampling
    scheduler = DDIMScheduler.from_pretrained(case.folder / "scheduler")
    scheduler.set_timesteps(sampling.steps)
    guider = T2IAdapter.from_pretrained(case.folder / "adapter" / "pose_guider", torch_dtype=torch.float32)
    features = [torch.cat([0 * drawn, drawn]) for drawn in guider(torch.from_numpy(scene.skeleton[None]))]
    text = pipe.text_encoder(torch.from_numpy(scene.token_ids["input_ids"])).last_hidden_state
    embeds = case.image_embeds()
    latents = torch.from_numpy(next(noise_source(scene, case.sizes).draws()))
    for timestep in scheduler.timesteps:
        first, last = pipe.unet(
            latents.repeat(2, 1, 1, 1),
            timestep,
            text,
            added_cond_kwargs={"image_embeds": embeds},
            down_intrablock_additional_residuals=list(features),
        ).sample.chunk(2)
        latents = scheduler.step(first + sampling.guidance * (last - first), timestep, latents).prev_sample
    expected = pipe.vae.decode(latents / pipe.vae.config.scaling_factor).sample.numpy()
    assert psnr(case.draw(), expected) > case.least


def test_identity_image_prompt_and_pose_reach_the_picture(case):
    """Otherwise the comparisons above would prove nothing about them: without a branch they fail, by 5 dB or more."""
    whole = case.draw()
    others = [case.without_pose(), case.draw(identity_scale=0.0), case.draw(image_scale=0.0)]
    assert all(psnr(whole, other) < case.least - 5 for other in others)
