"""What the image encoder sees in a blank picture: a guided picture's unconditional branch is told of nobody."""

from __future__ import annotations

import numpy as np

from bolid_sdk.bundle import Bundle
from bolid_sdk.errors import DAMAGED_ARRAYS, BundleError
from bolid_sdk.graphs import Graphs
from bolid_sdk.images import FloatArray


def blank_patch_tokens(graphs: Graphs, bundle: Bundle) -> FloatArray:
    """[1, P, D]: the patch tokens of a picture that is zero after normalisation (IP-Adapter-Plus), or, of a pooled
    embedding, zeros (IP-Adapter). As the bundle has them, else by its encoder. Raises BundleError."""
    manifest, sizes = bundle.manifest, bundle.manifest.sizes
    if sizes.patch_tokens == 1:
        return np.zeros((1, 1, sizes.patch_width), np.float32)
    if manifest.blank_patch_tokens is not None:
        return _stored(bundle, manifest.blank_patch_tokens)
    pixels = np.zeros((1, 3, sizes.image_size, sizes.image_size), np.float32)
    return np.asarray(graphs["image_encoder"].run({"pixels": pixels})["patch_tokens"], np.float32)


def _stored(bundle: Bundle, name: str) -> FloatArray:
    sizes = bundle.manifest.sizes
    expected = (1, sizes.patch_tokens, sizes.patch_width)
    try:
        tokens = np.load(bundle.file(name), allow_pickle=False)
    except DAMAGED_ARRAYS as error:
        raise BundleError(f"{bundle.file(name)} is no array ({error}); export the bundle again") from error
    if not isinstance(tokens, np.ndarray) or (tokens.dtype, tokens.shape) != (np.float32, expected):
        found = f"{tokens.dtype} {list(tokens.shape)}" if isinstance(tokens, np.ndarray) else type(tokens).__name__
        raise BundleError(f"{bundle.file(name)} is {found}; expected float32 {list(expected)}: export the bundle again")
    return tokens
