"""Who is compared, in what, and in which order."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gated import Applied
from protocol import Request

HERE = Path(__file__).parent
RUNS = HERE.parents[1] / "runs"

# SD1.5's denoiser with identity, image prompt and pose as OpenVINO runs it in bfloat16, for one picture and one branch,
# in GFLOP, by the side in pixels: each step, and what tokens need once. Counted by arithmetic.py.
DENOISER_GFLOP = {256: 168.1, 512: 764.1}
TOKENS_GFLOP = 4.2


@dataclass(frozen=True, kw_only=True)
class System:
    """A script and its arguments. `{model}` and `{bundle}` stand for the checkpoint and our bundle of a session.

    `environment` is of environments.py; where it is not installed, this interpreter is used if it has `needs`.
    `applied`: what ours does that may cost quality; None for peers.
    """

    name: str
    script: str
    arguments: tuple[str, ...]
    environment: str | None = None
    needs: tuple[str, ...] = ()
    applied: Applied | None = None
    conditions: str = "text"

    @property
    def ours(self) -> bool:
        return self.applied is not None


@dataclass(frozen=True, kw_only=True)
class Session:
    """Systems that run side by side, the first of which the others are compared with, and what they draw."""

    vae: str
    systems: tuple[System, ...]
    cases: tuple[Request, ...] = field(default_factory=tuple)

    @property
    def model(self) -> Path:
        return RUNS / {"taesd": "sd15-taesd", "kl": "sd15"}[self.vae]


EVERYTHING = "text, identity, image prompt, pose"


def ours(name: str, *, backend: str = "openvino", precision: str = "fp32", **sampling: Any) -> System:
    return System(
        name=name,
        script="bolid.py",
        arguments=("{bundle}-" + precision, backend, json.dumps(sampling)),
        applied=Applied(backend=backend, precision=precision, sampling=sampling),
        conditions=EVERYTHING,
    )


def diffusers(name: str, mode: str) -> System:
    return System(
        name=name,
        script="diffusers_pipeline.py",
        arguments=("{model}", mode),
        environment="diffusers",
        needs=("diffusers", "torch"),
        conditions="text, image prompt",
    )


OURS = ours("BoLID, OpenVINO bf16")
OURS_BALANCED = ours("BoLID, OpenVINO bf16, caching balanced", caching="balanced")
OURS_FAST = ours("BoLID, OpenVINO bf16, caching fast", caching="fast")
OURS_INT8 = ours("BoLID, OpenVINO int8", precision="int8")
OURS_INT8_FAST = ours("BoLID, OpenVINO int8, caching fast", precision="int8", caching="fast")
OURS_ORT = ours("BoLID, ONNX Runtime fp32", backend="onnxruntime")
OPENVINO = System(
    name="plain OpenVINO bf16",
    script="openvino_pipeline.py",
    arguments=("{model}", "bf16"),
    environment="openvino",
    needs=("openvino", "diffusers", "torch"),
)
DIFFUSERS = diffusers("diffusers + IP-Adapter bf16", "bf16")
COMPILED = diffusers("diffusers + IP-Adapter bf16, torch.compile", "compile")
DIFFUSERS_FP32 = diffusers("diffusers + IP-Adapter fp32", "fp32")
OPTIMUM = System(
    name="optimum, ONNX Runtime fp32", script="optimum_onnx.py", arguments=("{model}",), environment="optimum"
)
GENAI = System(name="openvino-genai", script="genai.py", arguments=("{model}",), environment="genai")
SDCPP = tuple(
    System(name=f"stable-diffusion.cpp {kind}", script="sdcpp.py", arguments=("{model}", kind), environment="sdcpp")
    for kind in ("q8_0", "f16")
)

SMALL, LARGE = Request(size=256, steps=4), Request(size=512, steps=4)
GUIDED = Request(size=256, steps=20, guidance=7.5)

SESSIONS = (
    Session(
        vae="taesd",
        systems=(OURS, OURS_FAST, OURS_INT8, OURS_INT8_FAST, OPENVINO, DIFFUSERS),
        cases=(SMALL,),
    ),
    # fewer at once: what waits for its turn for a minute, with gigabytes, is slower when it comes
    Session(vae="taesd", systems=(OURS, OURS_INT8_FAST, OPENVINO, DIFFUSERS), cases=(LARGE,)),
    Session(vae="taesd", systems=(OURS, OURS_FAST, OURS_INT8), cases=(LARGE,)),
    Session(vae="kl", systems=(OURS, OURS_FAST, OURS_INT8_FAST, OPENVINO, DIFFUSERS), cases=(SMALL, LARGE)),
    Session(vae="taesd", systems=(OURS, OURS_INT8_FAST, OPENVINO, DIFFUSERS), cases=(GUIDED,)),
    Session(vae="taesd", systems=(OURS, COMPILED), cases=(SMALL, LARGE)),
    # optimum does not export TAESD, and stable-diffusion.cpp has it in another layout than diffusers
    Session(vae="kl", systems=(OURS, OURS_ORT, DIFFUSERS_FP32, OPTIMUM), cases=(SMALL,)),
    Session(vae="kl", systems=(OURS, *SDCPP, GENAI), cases=(SMALL,)),
    Session(
        vae="taesd", systems=(OURS, OURS_INT8_FAST, OPENVINO, DIFFUSERS), cases=(Request(size=256, steps=4, batch=4),)
    ),
    Session(vae="taesd", systems=(OURS, OURS_INT8_FAST, OPENVINO), cases=(Request(size=512, steps=20, guidance=7.5),)),
    Session(vae="taesd", systems=(OURS, OURS_BALANCED, OURS_FAST), cases=(GUIDED,)),
)
"""The most telling first: the budget of minutes ends somewhere."""
