"""The codes that weights are stored in, and the scales that give the numbers back: weight = code x scale.

INT8 and INT4 are symmetric. NVFP4 is float4 (E2M1: 0, 0.5, 1, 1.5, 2, 3, 4, 6) in blocks of 16, whose scales are float8
(E4M3) themselves and have one float32 scale for the whole tensor. A tensor is worked on in parts of 64 MiB.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, TypeAlias

from stages import onnx_file

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from onnx import TensorProto

    Floats: TypeAlias = npt.NDArray[np.float32]
    Codes: TypeAlias = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Format:
    """How weights are stored.

    Attributes:
        type: ONNX's name of the codes' type.
        largest: The largest magnitude that a code stands for before its scale.
        opset: The first whose DequantizeLinear takes it.
        block: How many weights of a channel share a scale by default; None: all.
    """

    type: str
    largest: float
    opset: int
    block: int | None = None


FORMATS: Mapping[str, Format] = {
    "int8": Format("INT8", 127.0, 13),
    "int4": Format("INT4", 7.0, 21, 128),
    "nvfp4": Format("FLOAT4E2M1", 6.0, 23, 16),
}

FLOAT4 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""The magnitudes of E2M1; the fourth bit of a code is the sign."""

LARGEST_FLOAT8, SMALLEST_FLOAT8 = 448.0, 2.0**-9
"""Of E4M3, the smallest being a subnormal."""

SMALLEST_SCALE = 2.0**-14
"""Of INT8 and INT4: float16's smallest normal number, in the place of a scale that rounds to 0."""

RATIOS = tuple(1 - step / 20 for step in range(11))
"""The shares of a block's largest weight that a clip search tries as the end of the scale: 1, 0.95, … 0.5."""

PART_BYTES = 1 << 26
"""What is worked on at once, as float32."""


@dataclass(frozen=True)
class Coded:
    """A weight in codes.

    Attributes:
        codes: In the shape of the weight.
        scale: (channels,); or in blocks the weight's shape with the number of blocks on `axis`.
        scale_of_scales: What the scales are multiplied with, (), float32; None: the scales are numbers themselves.
        axis: Of DequantizeLinear: that of the channels, or that which is cut into blocks.
    """

    codes: TensorProto
    scale: TensorProto
    scale_of_scales: TensorProto | None
    axis: int


def encode(
    weight: TensorProto,
    axis: int,
    block: int | None,
    form: Format,
    search: bool = False,
    importance: Floats | None = None,
) -> Coded:
    """The nearest codes of `weight`.

    Args:
        weight: Floats of any type, which INT8 and INT4 scales will have, too.
        axis: Of its output channels.
        block: How many weights of a channel share a scale, which divides their number; the weight is a matrix then.
            None: the whole channel.
        form: What they become.
        search: Whether to try `RATIOS` for each scale, and keep the one with the least squared error.
        importance: How much the squared error counts at each place in a channel, (weights,); None: equally.
    """
    import numpy as np

    array = onnx_file.array(weight)
    moved = np.moveaxis(array, axis, 0)
    channels, length = moved.shape[0], moved[:1].size
    shape = (channels, length // block if block else 1, block or length)
    codes, scales = np.empty(shape, np.uint8), np.empty(shape[:2], np.float32)
    scaling = _Scaling(form, weight.data_type, _largest(array))
    counts = None if importance is None else np.asarray(importance, np.float32).reshape(1, *shape[1:])
    step = max(1, PART_BYTES // (4 * max(1, length)))
    for start in range(0, channels, step):
        part = np.asarray(moved[start : start + step], np.float32).reshape(-1, *shape[1:])
        best = scaling.search(part, counts) if search else scaling.of(np.abs(part).max(axis=2, initial=0))
        scales[start : start + step] = best
        codes[start : start + step] = scaling.codes(part, best)
    placed = np.moveaxis(codes.reshape(moved.shape), 0, axis)
    stored = scales if block else scales[:, 0]
    return Coded(
        codes=_tensor(form.type, array.shape, _packed(placed) if form.type != "INT8" else placed.tobytes()),
        scale=scaling.stored(stored.T if block and axis == 1 else stored),
        scale_of_scales=scaling.scale_of_scales,
        axis=1 - axis if block else axis,
    )


class _Scaling:
    """What the scales of one tensor may be, and what codes they make.

    Attributes:
        scale_of_scales: As `Coded` has it.
    """

    def __init__(self, form: Format, kind: int, largest: float) -> None:
        import numpy as np
        from onnx import TensorProto

        self._form = form
        self._kind = TensorProto.FLOAT8E4M3FN if form.type == "FLOAT4E2M1" else kind
        self._whole = np.float32(1)
        self.scale_of_scales: TensorProto | None = None
        if form.type == "FLOAT4E2M1":
            self._whole = np.float32((largest or 1.0) / (form.largest * LARGEST_FLOAT8))
            self.scale_of_scales = _tensor("FLOAT", (), self._whole.tobytes())

    def of(self, largest: Floats) -> Floats:
        """The scales with which `largest`, (channels, blocks), is the largest number, as they will be stored."""
        import numpy as np

        scale = np.where(largest > 0, largest, 1.0) / self._form.largest
        if self.scale_of_scales is None:
            rounded = scale.astype(self._dtype()).astype(np.float32)
            return np.where(rounded > 0, rounded, np.float32(SMALLEST_SCALE))
        eighth = np.clip(scale / self._whole, SMALLEST_FLOAT8, LARGEST_FLOAT8)
        return np.asarray(eighth.astype(self._dtype()).astype(np.float32) * self._whole)

    def search(self, part: Floats, importance: Floats | None) -> Floats:
        """The scales with the least squared error among those of `RATIOS`."""
        import numpy as np

        largest = np.abs(part).max(axis=2, initial=0)
        best, least = self.of(largest), np.full(largest.shape, np.inf, np.float32)
        for ratio in RATIOS:
            scale = self.of(largest * np.float32(ratio))
            error = (self.numbers(self.codes(part, scale), scale) - part) ** 2
            total = (error if importance is None else error * importance).sum(axis=2)
            best, least = np.where(total < least, scale, best), np.minimum(total, least)
        return best

    def codes(self, part: Floats, scale: Floats) -> Codes:
        """The nearest codes of `part`, (channels, blocks, weights), one to a byte."""
        import numpy as np

        exact = part / scale[..., np.newaxis]
        if self.scale_of_scales is None:
            whole = np.clip(np.rint(exact), -self._form.largest, self._form.largest).astype(np.int8)
            return np.asarray(whole.view(np.uint8))
        halfway = np.array([(low + high) / 2 for low, high in pairwise(FLOAT4)], np.float32)
        sign = np.signbit(exact).astype(np.uint8) << 3
        return np.asarray(np.searchsorted(halfway, np.abs(exact)).astype(np.uint8) | sign)

    def numbers(self, codes: Codes, scale: Floats) -> Floats:
        """What `codes` stand for."""
        import numpy as np

        if self.scale_of_scales is None:
            return codes.view(np.int8) * scale[..., np.newaxis]
        magnitudes = np.array(FLOAT4, np.float32)
        return np.concatenate([magnitudes, -magnitudes])[codes] * scale[..., np.newaxis]

    def stored(self, scale: Floats) -> TensorProto:
        """The tensor of scales."""
        from onnx import TensorProto

        low = (scale / self._whole).astype(self._dtype())
        return _tensor(TensorProto.DataType.Name(self._kind), scale.shape, low.tobytes())

    def _dtype(self) -> np.dtype[np.generic]:
        from onnx import helper

        return helper.tensor_dtype_to_np_dtype(self._kind)


def _largest(array: npt.NDArray[np.generic]) -> float:
    """The largest magnitude, without a copy of the array."""
    return max(float(array.max()), -float(array.min())) if array.size else 0.0


def _packed(codes: Codes) -> bytes:
    """Two codes of 4 bits to a byte, the first one low; the last byte is padded."""
    import numpy as np

    flat = np.ascontiguousarray(codes).reshape(-1) & 15
    flat = np.append(flat, np.uint8(0)) if flat.size % 2 else flat
    return (flat[::2] | flat[1::2] << 4).tobytes()


def _tensor(type_: str, shape: tuple[int, ...], content: bytes) -> TensorProto:
    from onnx import TensorProto

    return TensorProto(data_type=TensorProto.DataType.Value(type_), dims=shape, raw_data=content)
