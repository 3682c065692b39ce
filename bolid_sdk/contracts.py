"""The one source of names, axes and dtypes that training, export and runtime share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, NamedTuple, TypeAlias

DType: TypeAlias = Literal["float32", "int64"]
Axis: TypeAlias = int | str

KEYPOINT_NAMES = (
    "left_shoulder",
    "right_shoulder",
    "left_elbow",
    "right_elbow",
    "left_wrist",
    "right_wrist",
    "left_hip",
    "right_hip",
    "left_knee",
    "right_knee",
    "left_ankle",
    "right_ankle",
)
LIMBS = (
    (0, 1),
    (0, 2),
    (2, 4),
    (1, 3),
    (3, 5),
    (0, 6),
    (1, 7),
    (6, 7),
    (6, 8),
    (8, 10),
    (7, 9),
    (9, 11),
)
PART_NAMES = ("body", "head", "torso", "legs", "feet")
COEFFICIENT_NAMES = (
    "input",
    "x0_sample",
    "x0_output",
    "next_sample",
    "next_output",
    "next_previous_x0",
    "next_noise",
)
KEYPOINTS = len(KEYPOINT_NAMES)
PARTS = len(PART_NAMES)
COEFFICIENTS = len(COEFFICIENT_NAMES)

MIN_CONFIDENCE = 0.3
"""A keypoint below this confidence counts as not seen: it is neither drawn nor used to place a crop."""

HEATMAP_STRIDE = 4

DEEP_FEATURE = "deep_feature"
EARLIER_DEEP_FEATURE = "earlier_deep_feature"
"""What full sampling steps leave for shallow ones: the last one's, and that of the one before (`bolid_sdk.caching`)."""

TIME_IDS = 6
"""SDXL's `time_ids`: original height and width, top and left of the crop, target height and width, in pixels."""

ADDED_CONDITIONS = ("text_embeds", "time_ids")
"""Inputs of the denoiser that SDXL's UNet adds to the timestep."""

LORA_DOWN, LORA_UP = "lora_down", "lora_up"
"""Inputs of graphs that take LoRAs: all layers' `down` and `up`, one layer's rows after the other's."""

LORA_NETWORKS = {
    "text_encoder": ("text_encoder", "text_encoder_2"),
    "denoiser": ("unet",),
    "denoiser_shallow": ("unet",),
}
"""By graph, the networks of a pipeline whose layers' LoRAs it takes."""


class LoraLayer(NamedTuple):
    """A linear layer, or a 1 x 1 convolution, that LoRAs change at run time; `name` is its path in the pipeline."""

    name: str
    inputs: int
    outputs: int

    @property
    def network(self) -> str:
        """The first part of the name: unet, text_encoder or text_encoder_2."""
        return self.name.partition(".")[0]


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Everything about a model that decides a tensor's shape. Zero or an empty tuple: the model lacks that part."""

    latent_channels: int
    vae_factor: int
    text_length: int = 77
    context_width: int
    token_inputs: int = 1
    """Token ids that the text encoder reads for one prompt: 2 if its two towers have different tokenizers."""
    pooled_width: int = 0
    """Width of `text_embeds`, the whole prompt as one vector beside cross-attention (SDXL); 0: there is none."""
    time_ids: int = 0
    """Numbers that tell the denoiser of a picture's size, TIME_IDS of them (SDXL); 0: it is not told."""
    image_size: int
    """Side of the image encoder's input; zero when there is none and people are given as face embeddings."""
    patch_tokens: int
    """Tokens of one picture; a single one is CLIP's pooled, projected embedding."""
    patch_width: int
    identity_tokens: int
    """Tokens of a person; with one part, of each reference, and theirs follow one another (`identity_axis`)."""
    image_tokens: int
    cross_attention_layers: int
    pose_channels: tuple[int, ...]
    """Channels of `pose_features_i`, whose size is the latent's divided by `pose_divisor(i)`."""
    pose_divisors: tuple[int, ...] = ()
    """One for each of `pose_channels`; empty: 1, 2, 4, ..."""
    pose_height: int
    pose_width: int
    """Input size of the pose estimator; zero when there is none."""
    native_height: int
    native_width: int
    min_side: int
    max_side: int
    size_step: int = 32
    """Sides of a picture are multiples of this."""
    deep_channels: int = 0
    """Channels of `deep_feature`, which the denoiser gives to its shallow half; zero when it gives none."""
    parts: int = PARTS
    """Crops of one reference: BoLID's five parts, or one, its centre square, as IP-Adapters see pictures."""
    identity_net: bool = False
    """The denoiser sees the skeleton itself, through an IdentityNet (InstantID's ControlNet) that is a part of it."""
    face_map: bool = False
    """Its skeleton is the published InstantID's map of a face, which both guidance branches see."""
    vision_width: int = 0
    """Width of EVA-CLIP's embedding of a face, which PuLID reads beside the face network's; 0: nothing reads it."""
    vision_states: tuple[int, ...] = ()
    """Layers, tokens and width of EVA-CLIP's hidden states that PuLID reads; then `orthogonality` is an input too."""
    lora_rank: int = 0
    """The largest rank of the LoRAs of a request, all together; 0: the graphs take none."""
    lora_layers: tuple[LoraLayer, ...] = ()
    """What these LoRAs may change, in the order of the rows of `lora_down` and `lora_up`."""

    def __post_init__(self) -> None:
        self._check_sides()
        if bool(self.lora_rank) != bool(self.lora_layers) or self.lora_rank < 0:
            raise ValueError(f"lora_rank {self.lora_rank} does not fit {len(self.lora_layers)} lora_layers")
        divisors = self.pose_divisors
        if divisors and (len(divisors) != len(self.pose_channels) or min(divisors) < 1):
            raise ValueError(f"pose_divisors {divisors} do not fit {len(self.pose_channels)} pose features")

    def _check_sides(self) -> None:
        """Raises ValueError."""
        for name in ("vae_factor", "size_step", "min_side", "native_height", "native_width"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least 1")
        if self.size_step % self.vae_factor:
            raise ValueError(f"size_step {self.size_step} is no multiple of vae_factor {self.vae_factor}")

    @property
    def identity_axis(self) -> Axis:
        """Identity tokens of a person: fixed, or as many times `identity_tokens` as there are references."""
        return self.identity_tokens if self.parts > 1 else "identity_tokens"

    def layers_of(self, graph: str) -> tuple[LoraLayer, ...]:
        """What LoRAs may change in a graph, in order."""
        networks = LORA_NETWORKS.get(graph, ())
        return tuple(layer for layer in self.lora_layers if layer.network in networks)

    def to_dict(self) -> dict[str, Any]:
        values = {**asdict(self), **{name: list(getattr(self, name)) for name in _TUPLES}}
        layers, rank = values.pop("lora_layers"), values.pop("lora_rank")
        # sizes without LoRAs stay as they were before there were any
        return {**values, **({"lora_rank": rank, "lora_layers": [list(layer) for layer in layers]} if rank else {})}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Sizes:
        """Raises TypeError on missing or unknown names, ValueError on what cannot be."""
        layers = tuple(LoraLayer(*layer) for layer in values.get("lora_layers", ()))
        return cls(**{**values, **{name: tuple(values.get(name, ())) for name in _TUPLES}, "lora_layers": layers})

    @classmethod
    def names(cls) -> tuple[str, ...]:
        return tuple(field.name for field in fields(cls))

    def pose_divisor(self, level: int) -> int:
        """How much smaller than the latent `pose_features_<level>` is."""
        return self.pose_divisors[level] if self.pose_divisors else 2**level


_TUPLES = ("pose_channels", "pose_divisors", "vision_states")


@dataclass(frozen=True, kw_only=True)
class TensorSpec:
    """Name, dtype and shape of a graph's input or output; an axis named by a string is dynamic."""

    name: str
    dtype: DType
    shape: tuple[Axis, ...]

    def extents(self, axes: Mapping[str, int]) -> tuple[int, ...]:
        """The shape for these sizes of the named axes, of which "latent_height/4" is a fraction. Raises KeyError."""
        return tuple(axis if isinstance(axis, int) else _extent(axis, axes) for axis in self.shape)

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name, "dtype": self.dtype, "shape": list(self.shape)}


def _extent(axis: str, axes: Mapping[str, int]) -> int:
    name, _, divisor = axis.partition("/")
    return axes[name] // int(divisor or 1)


@dataclass(frozen=True, kw_only=True)
class GraphSpec:
    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    required: bool = True
    """A bundle without it cannot generate at all."""

    @property
    def input_names(self) -> tuple[str, ...]:
        return tuple(tensor.name for tensor in self.inputs)

    @property
    def output_names(self) -> tuple[str, ...]:
        return tuple(tensor.name for tensor in self.outputs)


def graph_specs(sizes: Sizes) -> dict[str, GraphSpec]:
    """Every graph that a model of these sizes has, by name, in the order in which a picture meets them."""
    specs = [
        _text_encoder(sizes),
        *([_pose_estimator(sizes)] if sizes.pose_height else []),
        *([_image_encoder(sizes)] if sizes.image_size else []),
        _identity_encoder(sizes),
        *([_image_projector(sizes)] if sizes.image_tokens else []),
        *([_pose_guider(sizes)] if sizes.pose_channels else []),
        _denoiser(sizes),
        *([_denoiser_shallow(sizes)] if sizes.deep_channels else []),
        _vae_decoder(sizes),
        _vae_encoder(sizes),
    ]
    return {spec.name: spec for spec in specs}


def pose_feature_specs(sizes: Sizes, batch: str = "batch") -> tuple[TensorSpec, ...]:
    """`pose_features_i` float32 [batch, c_i, latent_height / d_i, latent_width / d_i], the first axis by name."""
    return tuple(
        _float(f"pose_features_{i}", batch, channels, *_divided(sizes.pose_divisor(i)))
        for i, channels in enumerate(sizes.pose_channels)
    )


def _float(name: str, *shape: Axis) -> TensorSpec:
    return TensorSpec(name=name, dtype="float32", shape=shape)


def _int(name: str, *shape: Axis) -> TensorSpec:
    return TensorSpec(name=name, dtype="int64", shape=shape)


def _divided(divisor: int) -> tuple[str, str]:
    """The latent's axes, a fraction of them as "latent_height/4"."""
    fraction = "" if divisor == 1 else f"/{divisor}"
    return f"latent_height{fraction}", f"latent_width{fraction}"


def _latent(name: str, sizes: Sizes) -> TensorSpec:
    return _float(name, "batch", sizes.latent_channels, "latent_height", "latent_width")


def _picture(name: str) -> TensorSpec:
    return _float(name, "batch", 3, "height", "width")


_SKELETON = (_float("skeleton", "guided_batch", 3, "height", "width"), _float("pose_scale", 1))
"""What an IdentityNet is told: skeletons in [0, 1], black without a pose, and the weight of what it adds."""


def _lora_inputs(sizes: Sizes, graph: str) -> tuple[TensorSpec, ...]:
    """One rank for all layers: a smaller one is filled up with zeros."""
    layers = sizes.layers_of(graph)
    if not layers:
        return ()
    return (
        _float(LORA_DOWN, sum(layer.inputs for layer in layers), "lora_rank"),
        _float(LORA_UP, sum(layer.outputs for layer in layers), "lora_rank"),
    )


def _text_encoder(sizes: Sizes) -> GraphSpec:
    second = (_int("input_ids_2", "batch", sizes.text_length),)
    return GraphSpec(
        name="text_encoder",
        inputs=(
            _int("input_ids", "batch", sizes.text_length),
            *(second if sizes.token_inputs == 2 else ()),
            *_lora_inputs(sizes, "text_encoder"),
        ),
        outputs=(
            _float("encoder_hidden_states", "batch", sizes.text_length, sizes.context_width),
            *_pooled_text(sizes, "batch"),
        ),
    )


def _pooled_text(sizes: Sizes, batch: str) -> tuple[TensorSpec, ...]:
    return (_float("text_embeds", batch, sizes.pooled_width),) if sizes.pooled_width else ()


def _pose_estimator(sizes: Sizes) -> GraphSpec:
    height, width = sizes.pose_height, sizes.pose_width
    return GraphSpec(
        name="pose_estimator",
        inputs=(_float("pixels", "batch", 3, height, width),),
        outputs=(
            _float("keypoints", "batch", KEYPOINTS, 3),
            _float("heatmaps", "batch", KEYPOINTS, height // HEATMAP_STRIDE, width // HEATMAP_STRIDE),
        ),
        required=False,
    )


def _image_encoder(sizes: Sizes) -> GraphSpec:
    return GraphSpec(
        name="image_encoder",
        inputs=(_float("pixels", "batch", 3, sizes.image_size, sizes.image_size),),
        outputs=(_float("patch_tokens", "batch", sizes.patch_tokens, sizes.patch_width),),
    )


def _identity_encoder(sizes: Sizes) -> GraphSpec:
    parts = (_int("parts", "batch", "views"),)
    vision = (
        _float("vision_embedding", "batch", "views", sizes.vision_width),
        _float("vision_states", "batch", "views", *sizes.vision_states),
    )
    return GraphSpec(
        name="identity_encoder",
        inputs=(
            _float("patch_tokens", "batch", "views", sizes.patch_tokens, sizes.patch_width),
            *(parts if sizes.parts > 1 else ()),
            *(vision if sizes.vision_states else ()),
        ),
        outputs=(_float("identity_tokens", "batch", sizes.identity_axis, sizes.context_width),),
    )


def _image_projector(sizes: Sizes) -> GraphSpec:
    return GraphSpec(
        name="image_projector",
        inputs=(_float("patch_tokens", "batch", sizes.patch_tokens, sizes.patch_width),),
        outputs=(_float("image_tokens", "batch", sizes.image_tokens, sizes.context_width),),
        required=False,
    )


def _pose_guider(sizes: Sizes) -> GraphSpec:
    return GraphSpec(
        name="pose_guider", inputs=(_picture("skeleton"),), outputs=pose_feature_specs(sizes), required=False
    )


def _denoiser(sizes: Sizes) -> GraphSpec:
    """The whole UNet; where there is a shallow half, it also gives what that half goes on from."""
    return GraphSpec(
        name="denoiser",
        inputs=(
            *_step_inputs(sizes),
            *pose_feature_specs(sizes, "guided_batch"),
            *(_SKELETON if sizes.identity_net else ()),
        ),
        outputs=(*_step_outputs(sizes), *([_deep_feature(sizes)] if sizes.deep_channels else [])),
    )


def _denoiser_shallow(sizes: Sizes) -> GraphSpec:
    """The layers that the newest sample has to pass; the pose is in the deep features already.

    It goes on from `deep_feature + extrapolation * (deep_feature - earlier_deep_feature)`.
    """
    features = (_deep_feature(sizes), _deep_feature(sizes, EARLIER_DEEP_FEATURE), _float("extrapolation", 1))
    return GraphSpec(
        name="denoiser_shallow",
        inputs=(*_step_inputs(sizes), *features),
        outputs=_step_outputs(sizes),
        required=False,
    )


def _deep_feature(sizes: Sizes, name: str = DEEP_FEATURE) -> TensorSpec:
    return _float(name, "guided_batch", sizes.deep_channels, "latent_height", "latent_width")


def _step_outputs(sizes: Sizes) -> tuple[TensorSpec, ...]:
    return _latent("next_sample", sizes), _latent("x0", sizes)


def _step_inputs(sizes: Sizes) -> tuple[TensorSpec, ...]:
    """What every sampling step reads, pose features apart."""
    layers = sizes.cross_attention_layers
    image_tokens = (_float("image_tokens", "guided_batch", sizes.image_tokens, sizes.context_width),)
    image_scale = (_float("image_scale", layers),)
    time_ids = (_float("time_ids", "guided_batch", sizes.time_ids),)
    orthogonality = (_float("orthogonality", 2),)
    return (
        _latent("sample", sizes),
        _latent("previous_x0", sizes),
        _latent("noise", sizes),
        _float("timestep", 1),
        _float("coefficients", COEFFICIENTS),
        _float("guidance", 1),
        _float("encoder_hidden_states", "guided_batch", sizes.text_length, sizes.context_width),
        _float("identity_tokens", "guided_batch", sizes.identity_axis, sizes.context_width),
        *(image_tokens if sizes.image_tokens else ()),
        _float("identity_scale", layers),
        *(image_scale if sizes.image_tokens else ()),
        *(orthogonality if sizes.vision_states else ()),
        *_pooled_text(sizes, "guided_batch"),
        *(time_ids if sizes.time_ids else ()),
        *_lora_inputs(sizes, "denoiser"),
    )


def _vae_decoder(sizes: Sizes) -> GraphSpec:
    return GraphSpec(name="vae_decoder", inputs=(_latent("latents", sizes),), outputs=(_picture("pixels"),))


def _vae_encoder(sizes: Sizes) -> GraphSpec:
    return GraphSpec(
        name="vae_encoder", inputs=(_picture("pixels"),), outputs=(_latent("latents", sizes),), required=False
    )
