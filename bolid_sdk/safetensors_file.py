"""Reading a safetensors file with NumPy alone: eight bytes of length, a JSON header, then the tensors.

The library of that name would be one more dependency of the runtime, and its NumPy reader knows no bfloat16.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bolid_sdk.errors import InputError

LENGTH = 8
"""Bytes of the header's length, little-endian."""
METADATA = "__metadata__"

DTYPES: dict[str, type[np.generic]] = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": np.uint16,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U8": np.uint8,
    "BOOL": np.bool_,
}


def read_safetensors(content: bytes, name: str) -> tuple[dict[str, NDArray[np.float32]], dict[str, str]]:
    """Every tensor as float32, and the header's metadata. Raises InputError for what is damaged or something else.

    `name` is the file's, for messages.
    """
    header, data = _split(content, name)
    metadata = header.pop(METADATA, {})
    try:
        tensors = {key: _tensor(entry, data) for key, entry in header.items()}
        return tensors, {str(key): str(value) for key, value in metadata.items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{name} is a damaged safetensors file ({error}); get it again") from error


def tensor_names(content: bytes, name: str) -> list[str]:
    """Of every tensor, from the header alone; else as `read_safetensors`."""
    return [key for key in _split(content, name)[0] if key != METADATA]


def _split(content: bytes, name: str) -> tuple[dict[str, Any], memoryview]:
    length = int.from_bytes(content[:LENGTH], "little")
    try:
        header = json.loads(content[LENGTH : LENGTH + length]) if LENGTH + length <= len(content) else None
    except (ValueError, RecursionError):
        header = None
    if not isinstance(header, dict):
        raise InputError(f"{name} is not a safetensors file, or only a part of one; get it again, or convert it")
    return header, memoryview(content)[LENGTH + length :]


def _tensor(entry: Mapping[str, Any], data: memoryview) -> NDArray[np.float32]:
    """Raises ValueError, TypeError or KeyError."""
    dtype, shape = np.dtype(DTYPES[entry["dtype"]]).newbyteorder("<"), [int(side) for side in entry["shape"]]
    start, end = (int(offset) for offset in entry["data_offsets"])
    if (
        not 0 <= start <= end <= len(data)
        or min(shape, default=1) < 0
        or end - start != math.prod(shape) * dtype.itemsize
    ):
        raise ValueError(f"a tensor {shape} of {entry['dtype']} cannot lie at bytes {start} to {end} of {len(data)}")
    values = np.frombuffer(data[start:end], dtype).reshape(shape)
    if entry["dtype"] == "BF16":  # the upper half of a float32
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float32)
