"""The weights of convolutions as builders write them, out of a safetensors file.

A framework keeps them channels first, `(K, C, R, S)`; TensorRT-RTX 1.7.1 writes those whose kernel is larger than 1 x 1
channels last, `(K, R, S, C)`, and all other weights as they are. Of ResNet-50 these are 45 of 102 MB.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any, Literal

_LENGTH_BYTES = 8
_FORMATS: dict[int, Literal["B", "H", "I", "Q"]] = {1: "B", 2: "H", 4: "I", 8: "Q"}


def channels_last(content: bytes) -> bytes:
    """All tensors of `content` with three dimensions or more, one after the other, channels last.

    Deltas depend on every byte of it: what it gives for a file must never change.

    Args:
        content: A file. Of one that is no safetensors file nothing is given.

    Returns:
        For each tensor `(K, C, *spatial)`, in the order of the file's header, its elements as `(K, *spatial, C)`.
    """
    length = int.from_bytes(content[:_LENGTH_BYTES], "little")
    data = memoryview(content)[_LENGTH_BYTES + length :]
    try:
        header = json.loads(content[_LENGTH_BYTES : _LENGTH_BYTES + length]) if length <= len(content) else {}
        found = [_transposed(data, said) for name, said in header.items() if name != "__metadata__"]
        return b"".join(b"".join(each) for each in found)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return b""


def _transposed(data: memoryview, said: dict[str, Any]) -> Iterator[bytes]:
    shape, (start, end) = said["shape"], said["data_offsets"]
    spatial = math.prod(shape[2:])
    item_bytes, rest = divmod(end - start, max(math.prod(shape), 1))
    if len(shape) < 3 or spatial < 2 or rest or item_bytes not in _FORMATS:
        return
    elements = data[start:end].cast(_FORMATS[item_bytes])
    block = shape[1] * spatial
    for first in range(0, len(elements), block):
        for place in range(first, first + spatial):
            yield elements[place : first + block : spatial].tobytes()
