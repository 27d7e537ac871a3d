"""ONNX's own backend tests, and real models, through surgery: what breaks, how much is folded, how long it takes.

`make conformance` runs it in an environment of its own, which has polygraphy, onnxsim and the wheels with the models.
Every case runs as it is, with all inputs made constants, and with all but the first made constants, on ONNX Runtime or,
where that has no kernel for it, on ONNX's reference evaluator. It is *broken* where the tool raises, the result does
not load, or its outputs differ by more than the case's own tolerance.

    python -m benchmarks.conformance              the whole, with tables at its end; exit code 1 where a model is broken
    python -m benchmarks.conformance --every 20   a fixed sample, without the other tools: what CI runs
    python -m benchmarks.conformance --torch      only what torch exports: `make conformance-torch`
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

from benchmarks import torch_exports
from stages import onnx_file
from stages.agreement import DisagreementError, NotComparedError, compare, distance
from stages.folding import RANDOM
from stages.onnx_session import open_session
from stages.passes import entries
from stages.passes.entries import Listed
from stages.profiles import Profile, Range
from stages.surgery import DEFAULT

ROOT = Path(onnx.__file__).parent / "backend" / "test" / "data"
FOLDERS = ("simple", "light", "pytorch-operator", "pytorch-converted")
VARIANTS = ("as it is", "all inputs constant", "all but the first constant")

Model = onnx.ModelProto
Tool = Callable[[Model], Model]
Runtime = Callable[[Model, dict[str, Any]], list[Any]]


@dataclass(frozen=True)
class Case:
    """A model and what to run it with.

    Attributes:
        name: The suite's name of it.
        variant: One of `VARIANTS`.
        model: The model.
        feeds: What it is given.
        rtol: The suite's relative tolerance.
        atol: Its absolute one.
    """

    name: str
    variant: str
    model: Model
    feeds: dict[str, Any]
    rtol: float
    atol: float


@dataclass
class Score:
    """How a tool did over many cases."""

    seconds: float = 0.0
    ran: int = 0
    gone: Counter[str] = field(default_factory=Counter)
    broken: dict[str, str] = field(default_factory=dict)


def cases(every: int) -> Iterator[Case]:
    """All cases in a fixed order, or each `every`-th."""
    number = 0
    for name, model, inputs, rtol, atol in _suite():
        names = [value.name for value in _fed(model)]
        given = dict(zip(names, inputs, strict=False))
        for variant, constant in _variants(model, given):
            number += 1
            if number % every == 0:
                feeds = {key: value for key, value in given.items() if key not in constant}
                yield Case(name, variant, _with_constants(model, constant), feeds, rtol, atol)


def _suite() -> Iterator[tuple[str, Model, list[Any], float, float]]:
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the cases overflow and divide by zero on purpose
        nodes = list(collect_testcases(None))
    for case in nodes:
        if case.model is not None:
            inputs = [_plain(value) for value in case.data_sets[0][0]]
            yield case.name, case.model, inputs, case.rtol, case.atol
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).iterdir()):
            if path.is_dir():
                model = onnx.load(str(path / "model.onnx"))
                inputs = [_value(path / "test_data_set_0" / f"input_{i}.pb", v) for i, v in enumerate(_fed(model))]
                yield path.name, model, inputs, 1e-3, 1e-7
            elif path.suffix == ".onnx":
                model = onnx.load(str(path))
                yield path.stem, model, [_noise(value) for value in _fed(model)], 2e-3, 1e-7


def _plain(value: Any) -> Any:
    if isinstance(value, onnx.TensorProto):
        return numpy_helper.to_array(value)
    return np.asarray(value) if isinstance(value, np.generic) else value


def _fed(model: Model) -> list[onnx.ValueInfoProto]:
    weights = {tensor.name for tensor in model.graph.initializer}
    return [value for value in model.graph.input if value.name not in weights]


def _value(path: Path, value: onnx.ValueInfoProto) -> Any:
    if not path.is_file():
        return None
    content = path.read_bytes()
    if value.type.HasField("sequence_type"):
        return numpy_helper.to_list(onnx.SequenceProto.FromString(content))
    if value.type.HasField("optional_type"):
        return numpy_helper.to_optional(onnx.OptionalProto.FromString(content))
    return numpy_helper.to_array(onnx.TensorProto.FromString(content))


def _noise(value: onnx.ValueInfoProto) -> np.ndarray:
    shape = [dim.dim_value or 1 for dim in value.type.tensor_type.shape.dim]
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def _variants(model: Model, given: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    yield VARIANTS[0], {}
    tensors = {v.name for v in model.graph.input if v.type.HasField("tensor_type")}
    fixed = {name: value for name, value in given.items() if name in tensors and isinstance(value, np.ndarray)}
    if given and len(fixed) == len(given):
        yield VARIANTS[1], fixed
    rest = dict(list(fixed.items())[1:]) if list(given)[:1] == list(fixed)[:1] else fixed
    if len(given) > 1 and len(rest) == len(given) - 1:
        yield VARIANTS[2], rest


def _with_constants(model: Model, constant: dict[str, Any]) -> Model:
    made = Model()
    made.CopyFrom(model)
    if not constant:
        return made
    kept = [value for value in made.graph.input if value.name not in constant]
    types = {value.name: value.type.tensor_type.elem_type for value in made.graph.input}
    del made.graph.input[:]
    made.graph.input.extend(kept)
    for name, value in constant.items():
        tensor = numpy_helper.from_array(value, name)
        assert tensor.data_type == types[name], (model.graph.name, name)
        made.graph.initializer.append(tensor)
    return made


def run_reference(model: Model, feeds: dict[str, Any]) -> list[Any]:
    """What ONNX's reference evaluator computes: for what ONNX Runtime has no kernels or numpy no types for."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return list(ReferenceEvaluator(model).run(None, feeds))


def run(model: Model, feeds: dict[str, Any]) -> list[Any]:
    """What ONNX Runtime computes, with every node as the model has it."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    return list(open_session(model, options).run(None, feeds))


@cache
def _listed(kind: str) -> list[Listed]:
    # The light models have generators in the place of weights; with a budget they stay, and everything else loads
    # hundreds of megabytes. To compare like with like, the second kind has none.
    unlimited = {"pass": "fold", "max_bytes": 2**40, "max_growth_bytes": 2**40}
    default = [name for name in DEFAULT if name != "check_qdq"]  # which refuses ONNX's asymmetric cases
    no_budget = [unlimited if name == "fold" else name for name in default]
    fused = ["fuse_conv_scale", "deduplicate", "merge_equal", unlimited, "drop_dead"]
    passes = {"default": list(default), "no budget": no_budget, "fused": [*no_budget, *fused]}[kind]
    return entries.listed(entries.checked(passes, "passes"))


def ours(model: Model, kind: str = "default") -> Model:
    """The model after our passes: the default ones, the same without a budget for growth, or with fusing ones, too."""
    made = Model()
    made.CopyFrom(model)
    for each in _listed(kind):
        assert each.declared is not None
        each.declared.run(made, each.options)
    return made


def polygraphy(model: Model) -> Model:
    """What `polygraphy surgeon sanitize --fold-constants` does, in this process."""
    from polygraphy.backend.onnx import fold_constants

    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere):  # it tells of every pass of every case
        return fold_constants(model, error_ok=True)  # type: ignore[no-any-return]


def graphsurgeon(model: Model) -> Model:
    """What onnx-graphsurgeon's own constant folding does."""
    import onnx_graphsurgeon

    graph = onnx_graphsurgeon.import_onnx(model)
    graph.fold_constants().cleanup()
    return onnx_graphsurgeon.export_onnx(graph)  # type: ignore[no-any-return]


def onnxsim(model: Model) -> Model:
    """What `onnxsim` does by default, without its own check."""
    from onnxsim import simplify

    return simplify(model, check_n=0)[0]  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Real:
    """A real model of a wheel.

    Attributes:
        name: What the table calls it.
        path: The file, below site-packages.
    """

    name: str
    path: str


REAL = (
    Real("OCR detector", "rapidocr_onnxruntime/models/ch_PP-OCRv4_det_infer.onnx"),
    Real("OCR recognizer", "rapidocr_onnxruntime/models/ch_PP-OCRv4_rec_infer.onnx"),
    Real("OCR classifier", "rapidocr_onnxruntime/models/ch_ppocr_mobile_v2.0_cls_infer.onnx"),
    Real("voice activity", "silero_vad/data/silero_vad.onnx"),
    Real("voice activity 16k", "silero_vad/data/silero_vad_16k_op15.onnx"),
    Real("voice activity, no If", "silero_vad/data/silero_vad_op18_ifless.onnx"),
    Real("voice activity half", "silero_vad/data/silero_vad_half.onnx"),
)


def real_models() -> Iterator[tuple[str, Model]]:
    """The models of the wheels, and the light ones of the onnx wheel."""
    packages = Path(onnx.__file__).parents[1]
    for each in REAL:
        if (packages / each.path).is_file():
            yield each.name, onnx.load(str(packages / each.path))
    for path in sorted((ROOT / "light").glob("*.onnx")):
        yield path.stem, onnx.load(str(path))


def judge(tool: Tool, case: Case, runtime: Runtime, expected: list[Any], score: Score) -> None:
    """Runs one case through `tool` and notes in `score` how it went."""
    start = time.perf_counter()
    try:
        result = tool(case.model)
    except Exception as error:
        score.seconds += time.perf_counter() - start
        score.broken[f"{case.name} ({case.variant})"] = f"raises {_line(error)}"
        return
    score.seconds += time.perf_counter() - start
    score.ran += 1
    score.gone[case.variant] += not result.graph.node
    problem = _difference(case, runtime, expected, result)
    if problem:
        score.broken[f"{case.name} ({case.variant})"] = problem


def _difference(case: Case, runtime: Runtime, expected: list[Any], result: Model) -> str:
    if [value.name for value in case.model.graph.output] != [value.name for value in result.graph.output]:
        return "other outputs"
    if [value.name for value in _fed(case.model)] != [value.name for value in _fed(result)]:
        return "other inputs"
    try:
        got = runtime(result, case.feeds)
    except Exception as error:
        return f"does not run: {_line(error)}"
    random = any(node.op_type in RANDOM for node in onnx_file.iter_nodes(case.model))
    for one, other in zip(expected, got, strict=True):
        if random:  # other numbers every time: only their number and type can be compared
            problem = "" if (one.shape, one.dtype) == (other.shape, other.dtype) else "another shape or type"
        else:
            problem = _differs(one, other, case)
        if problem:
            return problem
    return ""


def _differs(one: Any, other: Any, case: Case) -> str:
    if not isinstance(one, np.ndarray) or one.dtype.kind not in "fc" or not isinstance(other, np.ndarray):
        found = distance(np.asarray(one), np.asarray(other), 0.0) if np.isscalar(one) else distance(one, other, 0.0)
        return found if isinstance(found, str) else ""
    if one.shape != other.shape or one.dtype != other.dtype:
        return f"gives {other.dtype} {other.shape} instead of {one.dtype} {one.shape}"
    if not np.allclose(one, other, case.rtol, case.atol, equal_nan=True):
        return "differs beyond the tolerance"
    return ""


def _line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]


def suite(tools: dict[str, Tool], every: int) -> tuple[dict[str, Score], Counter[str]]:
    """All tools over the suite, case by case in turn, so that they meet the same machine."""
    scores = {name: Score() for name in tools}
    counted: Counter[str] = Counter()
    for case in cases(every):
        counted["cases"] += 1
        runtime, expected = _expected(case)
        if runtime is None:
            counted["neither runs"] += 1
            continue
        counted[runtime.__name__] += 1
        counted[case.variant] += 1
        for name, tool in tools.items():
            judge(tool, case, runtime, expected, scores[name])
    return scores, counted


def _expected(case: Case) -> tuple[Runtime | None, list[Any]]:
    for runtime in (run, run_reference):
        try:
            return runtime, runtime(case.model, case.feeds)
        except Exception as error:
            logging.debug("%s (%s): %s", case.name, case.variant, error)
    return None, []


def count(model: Model, constants: bool = True) -> int:
    """The nodes of `model`, those of subgraphs too; without `Constant` nodes, which are no work, if so asked."""
    return sum(constants or node.op_type != "Constant" for node in onnx_file.walk(model.graph.node))


OURS = ("default", "no budget", "fused")
"""The columns of the tables that are ours."""


def cells(tool: Tool, model: Model) -> tuple[str, float]:
    """Nodes left, those without `Constant` in brackets where there are such, and the seconds; or why there is none."""
    given = Model()
    given.CopyFrom(model)  # polygraphy changes what it is given
    start = time.perf_counter()
    try:
        result = tool(given)
    except Exception as error:
        return f"raises {_line(error)[:24]}", time.perf_counter() - start
    seconds = time.perf_counter() - start
    nodes, plain = count(result), count(result, constants=False)
    text = str(nodes) if nodes == plain else f"{nodes} ({plain})"
    return text + _verdict(model, result), seconds


def _verdict(model: Model, result: Model) -> str:
    try:
        compare(model, result, _shapes(model), 1e-3, {})
    except DisagreementError as error:
        words = {"cannot load": " does not load", "it fails": " does not run"}
        return next((verdict for found, verdict in words.items() if found in str(error)), " wrong")
    except NotComparedError as why:
        return " does not load" if "cannot load" in str(why) else " not compared"
    return ""


def _shapes(model: Model) -> list[Profile]:
    """Sizes that the models of the wheels can work with: a voice-activity model takes 512 samples, images are whole."""
    ranges = {}
    for value in _fed(model):
        dims = [onnx_file.dimension(dim) for dim in value.type.tensor_type.shape.dim]
        if all(isinstance(dim, int) for dim in dims):
            continue
        rates = [each for each in model.graph.node if each.op_type == "If" and each.input[0] in _rates(model)]
        samples = 288 if rates else 576  # the branch for 8 kHz takes half as many as the one for 16
        free = {4: (1, 3, 64, 64), 2: (1, samples), 3: (2, 1, 128)}.get(len(dims), (1,) * len(dims))
        shape = tuple(dim if isinstance(dim, int) else size for dim, size in zip(dims, free, strict=True))
        ranges[value.name] = Range(shape, shape, shape)
    return [Profile("default", ranges)] if ranges else []


def _rates(model: Model) -> set[str]:
    """What is computed from the sampling rate alone: a random rate is not 16 kHz."""
    return {name for node in model.graph.node if "sr" in node.input for name in node.output}


def table() -> list[str]:
    """Prints what is left of each real model, and returns those that ours broke."""
    tools: dict[str, Tool] = {
        "default": ours,
        "no budget": partial(ours, kind="no budget"),
        "polygraphy": polygraphy,
        "fused": partial(ours, kind="fused"),
        "onnxsim": onnxsim,
    }
    seconds, broken = dict.fromkeys(tools, 0.0), []
    print(f"\n{'nodes left':22} {'before':>8} " + " ".join(f"{name:>22}" for name in tools))
    for name, model in real_models():
        row = []
        for tool, run_tool in tools.items():
            text, spent = cells(run_tool, model)
            seconds[tool] += spent
            row.append(text)
            if tool in OURS and is_broken(text):
                broken.append(f"{name}: {text}")
        print(f"{name:22} {count(model):8} " + " ".join(f"{text:>22}" for text in row), flush=True)
    print(f"{'seconds':31} " + " ".join(f"{spent:22.1f}" for spent in seconds.values()))
    return broken


def torch_table() -> list[str]:
    """Prints what is left of torch's exports with fixed dims, and returns those that ours broke."""
    tools: dict[str, Tool] = {"default": ours, "polygraphy": polygraphy, "graphsurgeon": graphsurgeon}
    print(f"\n{'torch export':22} {'before':>8} " + " ".join(f"{name:>22}" for name in tools))
    broken = []
    for title, model in torch_exports.exports():
        if isinstance(model, str):
            print(f"{title:22} not measured: {model} is not installed")
            continue
        row = [cells(tool, model)[0] for tool in tools.values()]
        print(f"{title:22} {count(model):8} " + " ".join(f"{text:>22}" for text in row), flush=True)
        broken += [f"{title}: {row[0]}"] if is_broken(row[0]) else []
    return broken


def is_broken(cell: str) -> bool:
    """Whether a cell of the tables tells of a model that a tool broke."""
    return cell.startswith("raises") or cell.endswith((" wrong", " does not load", " does not run"))


def main() -> int:
    """Prints the tables; 1 where our passes broke a model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--every", type=int, default=1, help="only each so many-th case, and no other tool")
    parser.add_argument("--torch", action="store_true", help="only what torch exports")
    parser.add_argument("--json", type=Path, help="also write all numbers here")
    asked = parser.parse_args()
    logging.disable(logging.CRITICAL)
    ort.set_default_logger_severity(4)  # onnxsim's and polygraphy's sessions write 5,000 lines
    broken = torch_table() if asked.torch else _measured(asked.every, asked.json)
    for line in broken:
        print(f"broken: {line}")
    return 1 if broken else 0


def _measured(every: int, numbers: Path | None) -> list[str]:
    tools: dict[str, Tool] = {"trtforge": ours}
    if every == 1:
        tools["polygraphy"] = polygraphy
    scores, counted = suite(tools, every)
    ran = counted["cases"] - counted["neither runs"]
    print(f"{counted['cases']} cases, {ran} of which run: {counted['run']} on ONNX Runtime,")
    print(f"{ran - counted['run']} on ONNX's reference evaluator")
    print(f"{'':12} {'broken':>7} {'seconds':>8}  no node left, of " + ", ".join(f"{counted[v]} {v}" for v in VARIANTS))
    for name, score in scores.items():
        left = ", ".join(str(score.gone[variant]) for variant in VARIANTS)
        print(f"{name:12} {len(score.broken):7} {score.seconds:8.1f}  {left}")
    if "polygraphy" in scores:
        print(f"polygraphy takes {scores['polygraphy'].seconds / scores['trtforge'].seconds:.1f} times as long")
    if numbers:
        numbers.write_text(json.dumps({name: score.broken for name, score in scores.items()}, indent=1))
    broken = [f"{name}: {why}" for name, why in scores["trtforge"].broken.items()]
    return broken + (table() + torch_table() if every == 1 else [])


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        os.chdir(scratch)  # polygraphy leaves gigabytes of files where it runs
        code = main()
    sys.exit(code)
