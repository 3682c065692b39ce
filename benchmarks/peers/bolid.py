"""Ours: python bolid.py BUNDLE [BACKEND] [SAMPLING], SAMPLING as JSON such as '{"caching": "fast"}'."""

import json
import sys
import time
from typing import Any

import numpy as np
from protocol import PROMPT, Request, serve

from bolid_sdk import Generator, Identity, Sampling
from bolid_sdk.bundle import Bundle

# Standing, in the contract's order of joints.
POSE = (
    *((0.58, 0.30), (0.42, 0.30), (0.66, 0.22), (0.37, 0.42), (0.62, 0.12), (0.36, 0.53)),
    *((0.55, 0.54), (0.45, 0.54), (0.56, 0.72), (0.44, 0.72), (0.56, 0.90), (0.44, 0.90)),
)


def known_person(bundle: Bundle) -> Identity:
    """Somebody who was encoded before."""
    sizes = bundle.manifest.sizes
    tokens = np.random.default_rng(0).standard_normal((sizes.identity_tokens, sizes.context_width), np.float32)
    keypoints = np.array([(x, y, 1.0) for x, y in POSE], np.float32)
    return Identity(tokens=tokens, keypoints=keypoints, aspect=1.0, digest=bundle.identity_digest)


def main(path: str, backend: str = "openvino", sampling: str = "{}") -> None:
    generator = Generator(path, backend=backend)
    person, more = known_person(generator.bundle), json.loads(sampling)

    def draw(request: Request) -> dict[str, Any]:
        start = time.perf_counter()
        results = generator.batch(
            [(person, PROMPT)] * request.batch,
            seed=request.seed,
            width=request.size,
            height=request.size,
            sampling=Sampling(steps=request.steps, guidance=request.guidance, **more),
        )
        return {"seconds": time.perf_counter() - start, "stages": results[-1].timings, "backend": generator.backend}

    serve(draw)


if __name__ == "__main__":
    main(*sys.argv[1:])
