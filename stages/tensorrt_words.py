"""The words in which TensorRT's inspector and builder log tell of layers: types of tensors, kinds of layers.

They differ by version: `Half`, `Row major linear FP16 format`, `Channel major FP16 format where channel % 8 == 0`.
"""

from __future__ import annotations

import re

UNKNOWN = "?"

_TYPES = (
    (r"fp64|double", "double"),
    (r"bf16|bfloat16", "bf16"),
    (r"fp16|half|float16", "half"),
    (r"fp8|e4m3", "fp8_e4m3"),
    (r"fp4|e2m1", "fp4_e2m1"),
    (r"fp32|float", "float"),
    (r"uint8", "uint8"),
    (r"int8", "int8"),
    (r"int4", "int4"),
    (r"int64", "int64"),
    (r"int32", "int32"),
    (r"bool", "bool"),
)
"""TensorRT's words for types and those of a plan, those first that hold others."""

_PRODUCTS = re.compile(r"conv|gemm|matmul|matrix_?multiply|fully_?connected|_mha|attention", re.IGNORECASE)
"""Kinds of layers that are convolutions, matrix products or attentions: `CaskConvolution`, `CaskGemmConvolution`,
`CaskDeconvolutionV2`, `CudaDepthwiseConvolution`, `gemm`, `MatrixMultiply`, …"""

_MATRICES = re.compile(r"gemm|matmul|matrix_?multiply|_mha|attention", re.IGNORECASE)


def type_of(words: str) -> str:
    """The type that `words` tell of, as a plan calls it; `?` where they tell of none."""
    return next((kind for pattern, kind in _TYPES if re.search(pattern, words, re.IGNORECASE)), UNKNOWN)


def is_product(kind: str) -> bool:
    """Whether a layer of this kind is a convolution, a matrix product or an attention."""
    return bool(_PRODUCTS.search(kind))


def takes_two(kind: str) -> bool:
    """Whether both factors of a product of this kind may be computed ones, and not a weight."""
    return bool(_MATRICES.search(kind))
