"""One picture's worth of inputs, and the path from them to pixels over any engines (PyTorch's or exported ones)."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bolid_sdk.backends import Engine
from bolid_sdk.caching import Caching, plan_steps
from bolid_sdk.conditioning import SizeConditioning
from bolid_sdk.contracts import LORA_DOWN, LORA_UP, Sizes
from bolid_sdk.sampling import NoiseSource, denoise
from bolid_sdk.schedule import SamplerTable

FloatArray = NDArray[np.float32]

LORA_RANK = 4


@dataclass(frozen=True, kw_only=True)
class Scene:
    """What the graphs read for one guided picture; what a model has no graph for is not read.

    `token_ids` int64 [2, 77] (empty prompt, prompt), by the text encoder's input; `zero_unconditional`: zeros instead
    of the empty prompt's states; `crops` [V, 3, S, S] and `parts` int64 [V]; `image_prompt` [3, S, S]; `skeleton`
    [3, H, W] in [0, 1]; the two scales are broadcast over the layers; `lora_scale` of a random LoRA, where graphs take
    some.
    """

    token_ids: Mapping[str, NDArray[np.int64]]
    zero_unconditional: bool
    crops: FloatArray
    parts: NDArray[np.int64]
    image_prompt: FloatArray
    skeleton: FloatArray
    identity_scale: float
    image_scale: float
    seed: int
    lora_scale: float = 0.0


def condition(engines: Mapping[str, Engine], scene: Scene, sizes: Sizes) -> dict[str, FloatArray]:
    """The denoiser's conditioning for two branches, unconditional first: a black picture's tokens, and no pose."""
    patches = _patch_tokens(engines, scene, sizes)
    layers = sizes.cross_attention_layers
    return {
        **_text(engines, scene, sizes),
        "identity_tokens": _identity_tokens(engines, scene, sizes, patches),
        "identity_scale": np.full(layers, scene.identity_scale, np.float32),
        **({"orthogonality": np.ones(2, np.float32)} if sizes.vision_states else {}),
        **_image_prompt(engines, scene, sizes, patches),
        **_pose_features(engines, scene),
        **_skeletons(scene, sizes),
        **_size(scene, sizes),
        **_loras(scene, sizes, "denoiser"),
    }


def _patch_tokens(engines: Mapping[str, Engine], scene: Scene, sizes: Sizes) -> FloatArray:
    """Of a black picture, the image prompt if the model takes one, and the crops: [2 + V, P, D] or [1 + V, P, D].

    A black picture's pooled embedding is zero.
    """
    if "image_encoder" not in engines:
        return _embeddings(scene, sizes)
    prompts = [scene.image_prompt] if sizes.image_tokens else []
    blank = np.zeros_like(scene.image_prompt)
    patches = _run(engines, "image_encoder", pixels=np.stack([blank, *prompts, *scene.crops]))
    if sizes.patch_tokens == 1:
        patches = np.concatenate([np.zeros_like(patches[:1]), patches[1:]])
    return patches


def _embeddings(scene: Scene, sizes: Sizes) -> FloatArray:
    """Random unit vectors, as a face network's are, in place of pictures that nobody here can turn into them."""
    shape = (2 + len(scene.crops), 1, sizes.patch_width)
    vectors = np.random.default_rng(scene.seed).standard_normal(shape).astype(np.float32)
    vectors[0] = 0
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)


def _identity_tokens(engines: Mapping[str, Engine], scene: Scene, sizes: Sizes, patches: FloatArray) -> FloatArray:
    seen = patches[-len(scene.crops) :]
    views = np.stack([np.broadcast_to(patches[0], seen.shape), seen])
    parts = {"parts": np.stack([scene.parts] * 2)} if sizes.parts > 1 else {}
    return _run(engines, "identity_encoder", patch_tokens=views, **parts, **_vision(scene, sizes))


def _vision(scene: Scene, sizes: Sizes) -> dict[str, FloatArray]:
    """Noise in place of what EVA-CLIP sees of the scene's person; of nobody, zeros."""
    if not sizes.vision_states:
        return {}
    random = np.random.default_rng(scene.seed)
    shapes = {"vision_embedding": (sizes.vision_width,), "vision_states": sizes.vision_states}
    seen = {n: random.standard_normal((len(scene.crops), *shape), np.float32) for n, shape in shapes.items()}
    seen["vision_embedding"] /= np.linalg.norm(seen["vision_embedding"], axis=-1, keepdims=True)
    return {name: np.stack([np.zeros_like(values), values]) for name, values in seen.items()}


def _image_prompt(
    engines: Mapping[str, Engine], scene: Scene, sizes: Sizes, patches: FloatArray
) -> dict[str, FloatArray]:
    if not sizes.image_tokens:
        return {}
    scale = np.full(sizes.cross_attention_layers, scene.image_scale, np.float32)
    return {"image_tokens": _run(engines, "image_projector", patch_tokens=patches[:2]), "image_scale": scale}


def _skeletons(scene: Scene, sizes: Sizes) -> dict[str, FloatArray]:
    """What an IdentityNet sees: black without a pose, but a published one's map in both branches."""
    if not sizes.identity_net:
        return {}
    skeletons = np.stack([scene.skeleton if sizes.face_map else np.zeros_like(scene.skeleton), scene.skeleton])
    return {"skeleton": skeletons, "pose_scale": np.ones(1, np.float32)}


def _pose_features(engines: Mapping[str, Engine], scene: Scene) -> dict[str, FloatArray]:
    if "pose_guider" not in engines:
        return {}
    features = engines["pose_guider"].run({"skeleton": scene.skeleton[None]})
    return {name: np.concatenate([np.zeros_like(values), values]) for name, values in features.items()}


def _loras(scene: Scene, sizes: Sizes, graph: str) -> dict[str, FloatArray]:
    """A random LoRA of small rank: with layers' inputs near 1 it changes outputs by about a tenth of `lora_scale`."""
    layers, random = sizes.layers_of(graph), np.random.default_rng(scene.seed)
    if not layers:
        return {}
    rank = min(LORA_RANK, sizes.lora_rank)
    down = [random.standard_normal((layer.inputs, rank)) / layer.inputs**0.5 for layer in layers]
    up = [random.standard_normal((layer.outputs, rank)) * (0.1 * scene.lora_scale / rank**0.5) for layer in layers]
    return {LORA_DOWN: np.concatenate(down, dtype=np.float32), LORA_UP: np.concatenate(up, dtype=np.float32)}


def _text(engines: Mapping[str, Engine], scene: Scene, sizes: Sizes) -> dict[str, FloatArray]:
    outputs = engines["text_encoder"].run({**scene.token_ids, **_loras(scene, sizes, "text_encoder")})
    if not scene.zero_unconditional:
        return dict(outputs)
    return {name: np.concatenate([np.zeros_like(values[:1]), values[1:]]) for name, values in outputs.items()}


def _size(scene: Scene, sizes: Sizes) -> dict[str, FloatArray]:
    """A picture that was never larger, nor cropped."""
    if not sizes.time_ids:
        return {}
    height, width = scene.skeleton.shape[-2:]
    told = SizeConditioning(original_size=(height, width), target_size=(height, width))
    return {"time_ids": np.tile(told.time_ids(), (2, 1))}


def picture(
    engines: Mapping[str, Engine],
    scene: Scene,
    sizes: Sizes,
    table: SamplerTable,
    guidance: float,
    caching: Caching = "off",
) -> FloatArray:
    """Pixels [1, 3, H, W], about [-1, 1], by the runtime's loop."""
    return decode(engines, latents(engines, scene, sizes, table, guidance, caching))


def latents(
    engines: Mapping[str, Engine],
    scene: Scene,
    sizes: Sizes,
    table: SamplerTable,
    guidance: float,
    caching: Caching = "off",
) -> FloatArray:
    """[1, c, h, w] by the runtime's loop."""
    states = denoise(
        engines["denoiser"],
        table,
        guidance,
        condition(engines, scene, sizes),
        noise_source(scene, sizes),
        shallow=engines.get("denoiser_shallow"),
        plan=plan_steps(table.steps, guided=True, caching=caching),
    )
    return deque(states, maxlen=1)[0].sample.numpy()


def noise_source(scene: Scene, sizes: Sizes) -> NoiseSource:
    """The scene's noise at the size of its skeleton."""
    height, width = (side // sizes.vae_factor for side in scene.skeleton.shape[-2:])
    return NoiseSource(seeds=[scene.seed], shape=(sizes.latent_channels, height, width))


def decode(engines: Mapping[str, Engine], latents: FloatArray) -> FloatArray:
    """Pixels [B, 3, H, W], about [-1, 1]."""
    return _run(engines, "vae_decoder", latents=latents)


def _run(engines: Mapping[str, Engine], graph: str, **inputs: Any) -> FloatArray:
    """The only output of a graph."""
    (output,) = engines[graph].run({name: np.ascontiguousarray(array) for name, array in inputs.items()}).values()
    return output
