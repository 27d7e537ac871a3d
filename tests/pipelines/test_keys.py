"""Everything that can change an answer is in its key, and what is not stands in `pipelines.keys` with the reason."""

from __future__ import annotations

import ast
import itertools
import os
import shutil
import sys
from dataclasses import dataclass, fields, is_dataclass, replace
from enum import Enum
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from artifacts.errors import StoreError
from artifacts.record import Blob, Record
from conf import schema
from conf.compose import compose
from conf.errors import ConfigError
from pipelines import execute, targets
from pipelines.execute import Workshop
from pipelines.keys import NOT_KEYED, NOT_KEYED_TOOLS, why_not_keyed
from stages import STAGES, backends
from stages.build_config import BuildConfig
from stages.data.options import Dataset, Images
from stages.gpus import Gpu, Gpus
from stages.knobs import KNOBS, Effect
from stages.refit import RefitConfig
from stages.stage import DATA_SUFFIX, MODEL_FACTS, TARGET_FACTS
from tests.pipelines.planning import DIGITS, keys, plan, question
from tests.stages.knob_values import OTHER, configured

ROOT = Path(__file__).parents[2]
L4 = Gpus((Gpu("NVIDIA L4", "GPU-0", "8.9", 24 << 30),))
ABSENT = {
    "torch": "2.8.0",
    "onnxscript": "0.5.0",
    "onnx-ir": "0.1.0",
    "safetensors": "0.5.0",
    "datasets": "4.0.0",
    "pyarrow": "20.0.0",
    "nvidia-modelopt": "0.47.0",
    "onnxslim": "0.1.98",
}
"""What the machine of these tests need not have; planning asks for the version only."""

PROFILE = "{images: {min: [1,1,8,8], opt: [8,1,8,8], max: [32,1,8,8]}}"


def kinds(images: str, dataset: str) -> list[str]:
    """Overrides that give one data set as images, which `pictures` makes, and the other as a dataset of the hub."""
    which = f"{{name: a/b, revision: {'a' * 40}, subset: s, split: test, columns: {{column: images}}}}"
    how = "{range: [0, 1], mean: [0.5], std: [0.5], resize: 8, crop: 8}"
    given = {images: {"path": PICTURES, "images": how}, dataset: {"path": "null", "dataset": which}}
    return ["targets=[l4]", *(f"model.{name}.{key}={value}" for name in given for key, value in given[name].items())]


PICTURES = Path("PICTURES")
SCENARIOS = {
    "int8": ["targets=[l4]"],
    "fp16": ["targets=[l4]", "flow=fp16", "model.holdout.metric=examples.digits.train:main"],
    "sensitive": ["targets=[l4]", "flow=int8_sensitive"],
    "auto": ["targets=[l4]", "steps.quantize.config.skip=auto", "gates.min_sqnr_db=30"],
    "weights": ["targets=[l4]", "flow=int4_weights", "steps.cast.config.layers={first: bf16}"],
    "modelopt": ["targets=[l4]", "steps.quantize.stage=modelopt_quantize"],
    "refit": ["targets=[l4]", "flow=refit", f"model.profiles.default={PROFILE}"],
    "torch": ["model.source=torch", "flow=export"],
    "tensorrt": ["targets=[l4]", "flow=fp32", "backend=tensorrt"],
    "bench": [
        "targets=[l4]",
        "flow=fp32",
        "steps.bench={stage: bench, inputs: {onnx: surgery.onnx, plan: build.plan}}",
    ],
    "images and a dataset": kinds("calibration", "holdout"),
    "a dataset and images": kinds("holdout", "calibration"),
}
ENTRIES = {
    "model.inputs": schema.TensorSpec,
    "model.profiles": dict[str, schema.Profile],
    "model.dims": list[int],
    "steps": schema.Step,
}
"""What the values of the open mappings are; `conf.compose` holds them against these."""

OPTIONAL = {
    f"model.{name}.{key}": kind
    for name in ("calibration", "holdout")
    for key, kind in (("images", Images), ("dataset", Dataset))
}
"""What stands where it is not null; likewise."""


@dataclass(frozen=True)
class Leaf:
    """A field of a schema: `steps.*.config.percentile` of the stage `calibrate`."""

    path: str
    hint: Any
    stage: str | None = None

    def __str__(self) -> str:
        return f"{self.path} ({self.stage})" if self.stage else self.path


def leaves(hint: Any, path: str = "", stage: str | None = None) -> list[Leaf]:
    if hint is BuildConfig:
        return []  # walked knob by knob below: what of it counts, the backend says
    hint = OPTIONAL.get(path, hint)
    if is_dataclass(hint):
        hints = get_type_hints(hint)
        below = [(f"{path}.{field.name}".lstrip("."), hints[field.name]) for field in fields(hint)]
        return list(itertools.chain(*(leaves(inner, name, stage) for name, inner in below)))
    if path == "steps.*.config":
        own = ((name, STAGES[name].config) for name in STAGES if name not in OFF_FLOW)
        return list(itertools.chain(*(leaves(config, path, name) for name, config in own)))
    if path in ENTRIES or get_origin(hint) is dict:
        return leaves(ENTRIES.get(path) or get_args(hint)[1], f"{path}.*", stage)
    return [Leaf(path, hint, stage)]


OFF_FLOW = ("signature", "operators", "layers")
"""Stages that no flow has: what a model looks like, and what `inspect --ops` and `layers --time` ask."""

LEAVES = leaves(schema.Config)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return tmp_path_factory.mktemp("keys") / "store"


@pytest.fixture(autouse=True)
def well_equipped(monkeypatch):
    """A machine with an L4, TensorRT and torch, as far as planning asks; in the directory of the example's module."""
    installed, version = backends.installed_version, metadata.version
    monkeypatch.setattr(
        backends, "installed_version", lambda name: "10.13.3.9" if name == "tensorrt" else installed(name)
    )
    monkeypatch.setattr(targets, "gpus_here", lambda: L4)
    monkeypatch.setattr(metadata, "version", lambda name: ABSENT.get(name) or version(name))
    monkeypatch.setattr(execute, "_version", lambda name: ABSENT.get(name) or version(name))
    monkeypatch.chdir(ROOT)


@pytest.fixture(scope="module", autouse=True)
def pictures(tmp_path_factory):
    """A directory of images, as far as planning looks at them."""
    folder = tmp_path_factory.mktemp("pictures")
    (folder / "a.png").write_bytes(b"a")
    for name, lines in SCENARIOS.items():
        SCENARIOS[name] = [line.replace("=PICTURES", f"='{folder}'") for line in lines]


@pytest.fixture(scope="module")
def known():
    """Keys of the scenarios as they are, each found once."""
    return {}


@pytest.fixture
def planned(store):
    return plan(store, SCENARIOS["int8"])


def before(name, store, known):
    if name not in known:
        known[name] = sorted(keys(plan(store, SCENARIOS[name])).values())
    return known[name]


def concrete(leaf: Leaf, config: schema.Config) -> tuple[str, Any] | None:
    """The leaf's path in `config` with names for `*`, and its value; None where `config` has no such thing."""
    found, names = config, []
    for part in leaf.path.split("."):
        if found is None:
            return None
        if part == "*":
            candidates = [
                name
                for name, value in found.items()
                if leaf.stage is None or not isinstance(value, schema.Step) or value.stage == leaf.stage
            ]
            if not candidates:
                return None
            part = candidates[0]
        names.append(part)
        found = found[part] if isinstance(found, dict) else getattr(found, part)
    return ".".join(names), found


def other(leaf: Leaf, path: str, value: Any, tmp_path: Path) -> str:
    """An override that gives the leaf another value of its type."""
    if leaf.path in CHANGES:
        return CHANGES[leaf.path](path, value, tmp_path)
    hint = list if get_origin(leaf.hint) is list else next(iter({*get_args(leaf.hint)} - {type(None)}), leaf.hint)
    if isinstance(hint, type) and issubclass(hint, Enum):
        return f"{path}={next(member.value for member in hint if member is not value)}"
    if hint is bool:
        return f"{path}={str(not value).lower()}"
    if hint in (int, float):
        return f"{path}={(value or 0) + 1}"
    if hint is list:
        return f"{path}=[other]"
    assert hint is str, f"{leaf}: say in CHANGES how to change a {hint}"
    return f"{path}=other"


def moved(path: str, value: Any, tmp_path: Path) -> str:
    if Path(value).is_dir():
        return f"{path}='{shutil.copytree(value, tmp_path / 'moved')}'"
    return f"{path}='{shutil.copy(value, tmp_path / f'moved{Path(value).suffix}')}'"


def larger(path: str, value: Any, tmp_path: Path) -> str:
    return f"{path}=[{value[0] + 1},{','.join(str(size) for size in value[1:])}]"


CHANGES = {
    "model.path": moved,
    "model.weights": moved,
    "model.calibration.path": moved,
    "model.holdout.path": moved,
    "model.holdout.golden": moved,
    "model.holdout.metric": lambda path, *_: f"{path}=examples.digits.network:load",
    "model.holdout.metric_direction": lambda path, *_: f"{path}=lower",
    "steps.*.config.references": lambda path, *_: f"{path}=[onnx]",
    "steps.*.config.against": lambda path, *_: f"{path}=published",
    "steps.*.config.top_k": lambda path, *_: f"{path}=[3]",
    "model.ranges": moved,
    **{
        f"model.{name}.{key}": lambda path, *_, value=value: f"{path}={value}"
        for name in ("calibration", "holdout")
        for key, value in {
            "callable": "examples.digits.train:main",
            "order": "shuffled",
            "images.resize": 9,
            "images.crop": 9,
            "images.color": "bgr",
            "images.range": "[0,2]",
            "images.mean": "[1]",
            "images.std": "[1]",
            "images.layout": "nhwc",
            "images.interpolation": "bicubic",
            "dataset.revision": "b" * 40,
        }.items()
    },
    "model.entry_point": lambda path, *_: f"{path}=examples.digits.train:main",
    "model.examples": lambda path, *_: f"{path}=examples.digits.train:main",
    "model.inputs.*.shape": lambda path, *_: f"{path}=[batch,1,16,16]",
    "model.dims.*": lambda path, *_: f"{path}=[1,8,64]",
    "model.profiles.*.*.min": larger,
    "model.profiles.*.*.opt": larger,
    "model.profiles.*.*.max": larger,
    "targets.*.compute_capability": lambda path, *_: f"{path}='8.6'",
    "targets.*.backend": lambda path, *_: f"{path}=tensorrt",
    "targets.*.memory": lambda path, *_: f"{path}=9GiB",
    "backend.name": lambda path, value, *_: f"{path}={'tensorrt' if value == 'tensorrt_rtx' else 'tensorrt_rtx'}",
    "steps.*.stage": lambda *_: "steps.surgery.stage=export",
    "steps.*.inputs.*": lambda *_: "steps.validate.inputs.reference=surgery.onnx",
    "steps.*.config.points": lambda path, *_: f"{path}=[opt]",
    "steps.*.config.streams": lambda path, *_: f"{path}=[3]",
    "steps.*.config.passes": lambda path, *_: f"{path}=[fold]",
    "steps.*.config.first": lambda path, *_: f"{path}=[drop_dead]",
    "steps.*.config.then": lambda path, *_: f"{path}=[drop_dead]",
    "model.plugins": lambda path, *_: f"{path}=[examples/digits/train.py]",
    "steps.*.config.precision": lambda path, value, *_: (
        f"{path}={ {'fp16': 'bf16', 'int8': 'fp8'}.get(value, 'int8') }"
    ),
    "steps.*.config.layers.*": lambda path, *_: f"{path}=fp32",
    "steps.*.config.block_size": lambda path, *_: f"{path}=64",
    "steps.*.config.method": lambda path, *_: f"{path}=max",
    "steps.*.config.attention": lambda path, *_: f"{path}=qk_pv",
    "steps.*.config.skip": lambda path, *_: f"{path}=[other]",
    "steps.*.config.only_ops": lambda path, *_: f"{path}=[Conv]",
    "steps.*.config.algorithm": lambda path, *_: f"{path}=percentile",
    "steps.*.config.percentile": lambda path, *_: f"{path}=99.5",
    "steps.*.config.opset": lambda path, *_: f"{path}=18",
    "steps.*.config.fallback": lambda path, *_: f"{path}=fail",
    "steps.*.config.tolerance": lambda path, *_: f"{path}=0.5",
    "steps.*.config.mode": lambda *_: "refit={mode: named, weights: [w]}",
    "steps.*.config.weights": lambda *_: "refit={mode: named, weights: [w]}",
    "refit": lambda *_: "refit=any",
    "store.root": lambda path, value, tmp_path: f"{path}='{tmp_path / 'other'}'",
    "steps.*.memory_limit": lambda path, *_: f"{path}=9GiB",
    "store.budget": lambda path, *_: f"{path}=9GiB",
    "flow": lambda *_: "flow=bf16",
}
"""Where another value of the type would not do."""

REFUSED = (
    "measures it",
    "has no plugins",
    "it must be 'l4'",
    "samples come from one place",
    "a shape tensor is int32 or int64",
)
"""Words of the errors that no value of a field but one gets past."""


@cache
def composed(name: str) -> schema.Config:
    """The scenario's config, composed once: no test changes it."""
    return compose(SCENARIOS[name])


def changed(leaf: Leaf, name: str, store: Path, known: Any, tmp_path: Path) -> bool | None:
    """Whether another value of the leaf changes a key of the scenario; None where the scenario has no such field."""
    found = concrete(leaf, composed(name))
    if found is None or (leaf.path in CHANGES and CHANGES[leaf.path] is moved and not found[1]):
        return None
    override = other(leaf, *found, tmp_path)
    scenario = [line for line in SCENARIOS[name] if line.partition("=")[0] != override.partition("=")[0]]
    try:
        after = sorted(keys(plan(store, [*scenario, override])).values())
    except ConfigError as error:
        assert any(words in error.what for words in REFUSED), error.what
        return why_not_keyed(leaf.path) is None  # refused: no answer, so none that is stale
    return after != before(name, store, known)


@pytest.mark.parametrize("leaf", [leaf for leaf in LEAVES if not why_not_keyed(leaf.path)], ids=str)
def test_every_field_is_in_a_key(leaf, store, known, tmp_path):
    found = (changed(leaf, name, store, known, tmp_path) for name in SCENARIOS)
    assert any(found), f"{leaf} changes no key: put it into one, or into pipelines.keys.NOT_KEYED with the reason"


@pytest.mark.parametrize("leaf", [leaf for leaf in LEAVES if why_not_keyed(leaf.path)], ids=str)
def test_what_is_said_to_be_in_no_key_is_in_none(leaf, store, known, tmp_path):
    found = [changed(leaf, name, store, known, tmp_path) for name in ("torch", "tensorrt", "refit")]
    assert not any(found)
    assert any(each is not None for each in found) or leaf.path.startswith(("store.", "model."))


def test_the_list_holds_no_field_that_is_gone():
    for pattern in NOT_KEYED:
        assert any(why_not_keyed(leaf.path) == NOT_KEYED[pattern] for leaf in LEAVES), pattern


def test_a_new_field_that_is_in_no_key_is_noticed(store, monkeypatch, tmp_path):
    @dataclass
    class Wider(schema.StoreConfig):
        colour: str = "blue"

    assert "store.colour" not in {leaf.path for leaf in LEAVES}
    assert "colour" in {leaf.path for leaf in leaves(Wider)}
    new = Leaf("runner", schema.Runner)  # stands for any field that no step's question holds
    assert changed(new, "int8", store, {}, tmp_path) is False


# The knobs of a build

OF_REFIT = ("refit", "refittable_weights", "strip_plan")


@pytest.mark.parametrize("backend", ["tensorrt_rtx", "tensorrt"])
@pytest.mark.parametrize("stage", ["build", "refit"])
def test_a_knob_is_in_the_key_where_it_changes_what_the_backend_makes_and_nowhere_else(backend, stage, store):
    session = plan(store, [*SCENARIOS["refit"], f"backend={backend}"])
    node = next(node for node in session.nodes if node.stage.name == stage)

    def asked(config: BuildConfig) -> dict[str, object]:
        return question(session, replace(node, config=config if stage == "build" else RefitConfig(build=config)))

    for knob in KNOBS:
        if stage == "refit" and knob.path in OF_REFIT:
            assert asked(configured(knob.path)) == asked(BuildConfig()), knob.path  # a rebuilt plan is an ordinary one
        else:
            given = [each for each in KNOBS if each.path in OTHER[knob.path] and not each.only_fails]
            counts = any(each.on(backend).effect is Effect.TAKEN for each in given)
            assert (asked(configured(knob.path)) != asked(BuildConfig())) == counts, knob.path


def test_a_setting_without_effect_builds_nothing_anew(store):
    level = "steps.build.config.optimization_level=5"
    for name, changes in (("fp16", False), ("tensorrt", True)):
        assert (keys(plan(store, [*SCENARIOS[name], level])) != keys(plan(store, SCENARIOS[name]))) == changes


@pytest.mark.parametrize(
    ("scenario", "step", "setting", "version"),
    [
        ("fp16", "build", "dla_core=0", "tensorrt_rtx 1.7.1.116"),
        ("tensorrt", "build", "build_route=fast", "tensorrt 10.13.3.9"),
        ("refit", "refit", "build.dla_core=0", "tensorrt_rtx 1.7.1.116"),
    ],
)
def test_a_setting_that_a_target_lacks_is_refused_before_anything_runs(scenario, step, setting, version, store):
    override = f"steps.{step}.config.{setting}"
    with pytest.raises(ConfigError) as caught:
        plan(store, [*SCENARIOS[scenario], override])
    assert caught.value.what.startswith(f"target l4: {override}: {version} has no such setting")


def test_a_version_that_gets_refitting_wrong_is_refused_before_anything_runs(store, monkeypatch):
    monkeypatch.setattr(backends, "installed_version", lambda name: "11.3.0.99")
    for mode, override in (("any", "refit=any"), ("named", "refit={mode: named, weights: [w]}")):
        with pytest.raises(ConfigError) as caught:
            plan(store, [*SCENARIOS["tensorrt"], override])
        assert caught.value.what.startswith(f"target l4: steps.build.config.refit={mode}: tensorrt 11.3.0.99: a refitt")
        assert "tensorrt 11.4" in caught.value.next_step and "refit: identical or none" in caught.value.next_step
    for override in ("refit=identical", "refit=false"):
        plan(store, [*SCENARIOS["tensorrt"], override])


# The model


def network(**changes: Any) -> onnx.ModelProto:
    """A model with a weight, an attribute, a shape, an opset and two edges to choose from."""
    given = {"weight": 1.0, "alpha": 0.1, "width": 4, "type": np.float32, "opset": 17, "edge": "x", **changes}
    bias = np.full((given["width"],), given["weight"], given["type"])
    nodes = [
        helper.make_node("Cast", ["bias"], ["cast"], to=TensorProto.FLOAT),
        helper.make_node("LeakyRelu", ["x"], ["relu"], alpha=given["alpha"]),
        helper.make_node("Add", [given["edge"], "cast"], ["sum"]),
        helper.make_node("Mul", ["relu", "sum"], ["y"]),
    ]
    sides = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, given["width"]]) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "net", sides[:1], sides[1:], [numpy_helper.from_array(bias, "bias")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", given["opset"])], ir_version=9)
    onnx.checker.check_model(model)
    return model


def export_key(store: Path, path: Path) -> str:
    return keys(plan(store, ["model=onnx", f"model.path='{path}'", "flow=export"]))["export"]


@pytest.mark.parametrize(
    "change",
    [{"weight": 1.5}, {"alpha": 0.2}, {"width": 8}, {"type": np.float16}, {"opset": 18}, {"edge": "relu"}],
    ids=lambda change: next(iter(change)),
)
def test_a_model_that_differs_in_anything_is_another_model(store, tmp_path, change):
    path = tmp_path / "net.onnx"  # under one name, as after a training
    found = []
    for model in (network(), network(**change), network()):
        onnx.save(model, path)
        found.append(export_key(store, path))
    assert found[0] == found[2] != found[1]


def test_one_byte_of_external_data_is_another_model_even_under_the_old_time_stamp(store, tmp_path):
    path, data = tmp_path / "net.onnx", tmp_path / "net.data"
    onnx.save(network(), path, save_as_external_data=True, location=data.name, size_threshold=0)
    earlier = export_key(store, path)
    stat, content = data.stat(), bytearray(data.read_bytes())
    content[0] ^= 1
    data.write_bytes(content)
    os.utime(data, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert export_key(store, path) != earlier


# Calibration


def test_content_order_and_number_of_calibration_files_count(store, tmp_path):
    def calibrate_key(*batches: int) -> str:
        directory = tmp_path / "batches"
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir()
        for position, batch in enumerate(batches):
            np.savez(directory / f"{position}.npz", images=np.full((4, 1, 8, 8), batch, np.float32))
        return keys(plan(store, ["targets=[l4]", f"model.calibration.path='{directory}'"]))["calibrate"]

    found = [calibrate_key(*batches) for batches in ((1, 2), (1, 3), (2, 1), (1, 2, 2), (1,))]
    assert len(set(found)) == len(found)
    assert calibrate_key(1, 2) == found[0]


# Code, facts and tools


@pytest.mark.parametrize("name", [name for name in STAGES if name not in OFF_FLOW])
def test_version_facts_and_tools_of_every_stage_are_in_its_keys(name, store, monkeypatch):
    flows = {"bench": "bench", "cast": "fp16", "refit": "refit", "build": "refit", "modelopt_quantize": "modelopt"}
    flows |= {"keep_float": "auto", "sensitivity": "sensitive", "quantize_weights": "weights", "split": "refit"}
    scenario = flows.get(name, "int8")
    session = plan(store, SCENARIOS[scenario])
    node = next(node for node in session.nodes if node.stage.name == name)
    told = question(session, node)
    assert told["version"] == STAGES[name].version
    assert told["stage"] == name
    assert set(told["tools"]) == set(STAGES[name].tools)
    assert set(told["facts"]) == {*STAGES[name].facts, *STAGES[name].facts_when(node.config)}
    earlier = keys(session)[node.id]
    for tool in STAGES[name].tools:
        with monkeypatch.context() as patch:
            patch.setattr(
                execute, "_version", lambda asked, tool=tool: "99.0" if asked == tool else metadata.version(asked)
            )
            assert keys(session)[node.id] != earlier, tool
    for fact in told["facts"]:
        with monkeypatch.context() as patch:
            facts = Workshop._facts
            patch.setattr(
                Workshop, "_facts", lambda self, each, fact=fact, facts=facts: {
                    **facts(self, each), **({fact: "another"} if each.id == node.id else {}),
                },
            )  # fmt: skip
            assert keys(session)[node.id] != earlier, fact
    with monkeypatch.context() as patch:
        patch.setitem(STAGES, name, replace(STAGES[name], version=99))
        assert keys(plan(store, SCENARIOS[scenario]))[node.id] != earlier


def test_every_fact_that_there_is_comes_from_planning(store):
    session = plan(store, SCENARIOS["refit"])
    assert set(session.workshop.model_facts) == set(MODEL_FACTS)
    assert set(session.targets[0].facts) == set(TARGET_FACTS)


def imported(module: str) -> set[str]:
    """What `stages.<module>` imports at run time, in functions too."""
    found: set[str] = set()

    def walk(node: ast.AST) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                continue
            if isinstance(child, ast.Import):
                found.update(alias.name for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                own = child.module == "stages"
                found.update([f"stages.{alias.name}" for alias in child.names] if own else [child.module or ""])
            walk(child)

    folder = ROOT / f"stages/{module}"
    for path in folder.glob("*.py") if folder.is_dir() else [folder.with_suffix(".py")]:
        walk(ast.parse(path.read_text()))
    return found


@pytest.mark.parametrize("name", STAGES)
def test_every_package_that_a_stage_imports_is_one_of_its_tools_or_facts(name):
    waiting, seen, packages = [name], set(), set()
    while waiting:
        module = waiting.pop()
        seen.add(module)
        names = imported(module)
        waiting += [own for each in names if each.startswith("stages.") and (own := each.split(".")[1]) not in seen]
        packages |= {each.partition(".")[0] for each in names} - {"stages"} - set(sys.stdlib_module_names)
    by_fact = {"torch": "source", "tensorrt": "backend_version", "tensorrt_rtx": "backend_version"}
    distributed = {"modelopt": "nvidia-modelopt"}
    # The facts of data hold the versions of what reads them.
    by_data = {"PIL", "datasets"} if {"calibration_source", "holdout_source"} & set(STAGES[name].optional) else set()
    for package in {distributed.get(each, each) for each in packages} - set(STAGES[name].tools) - by_data:
        by_list = {(name, package), ("*", package)} & NOT_KEYED_TOOLS.keys()
        assert by_list or by_fact.get(package) in STAGES[name].facts, (
            f"stage {name} uses {package}: name it in its tools, or in pipelines.keys.NOT_KEYED_TOOLS"
        )


# The user's own code


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package `net` in the working directory, of which `net.model` uses all but `net.other`."""
    monkeypatch.chdir(tmp_path)
    texts = {
        "net/__init__.py": "",
        "net/model.py": "from net.blocks import Block\ndef load():\n    from .sub import parts\n",
        "net/blocks.py": "import numpy\n",
        "net/sub/__init__.py": "",
        "net/sub/parts.py": "from ..blocks import Block\n",
        "net/other.py": "",
    }
    for name, text in texts.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def torch_key(store: Path, *overrides: str, inputs: str = "{x: {shape: [1, 3]}, y: {shape: [1, 3]}}") -> str:
    given = ["model=torch", "model.entry_point=net.model:load", "flow=export", f"model.inputs={inputs}"]
    return keys(plan(store, [*given, *overrides]))["export"]


def test_every_module_of_the_users_package_that_is_imported_counts(store, package):
    earlier = torch_key(store)
    for module in ("model", "blocks", "__init__", "sub/__init__", "sub/parts"):
        path = package / f"net/{module}.py"
        text = path.read_text()
        path.write_text(f"{text}# another line\n")
        assert torch_key(store) != earlier, module
        path.write_text(text)
    (package / "net/other.py").write_text("# another line\n")
    assert torch_key(store) == earlier


def test_the_order_of_a_torch_modules_inputs_counts(store, package):
    assert torch_key(store) != torch_key(store, inputs="{y: {shape: [1, 3]}, x: {shape: [1, 3]}}")


def test_the_checkpoint_of_a_torch_module_counts(store, package):
    found = []
    for content in (b"one", b"two"):
        (package / "w.safetensors").write_bytes(content)
        found.append(torch_key(store, "model.weights=w.safetensors"))
    assert len({*found, torch_key(store)}) == 3


@pytest.mark.parametrize("tool", ["torch", "onnxscript", "onnx-ir"])
def test_what_exports_a_torch_module_counts(store, package, monkeypatch, tool):
    earlier = torch_key(store)
    monkeypatch.setitem(ABSENT, tool, "99.0")
    assert torch_key(store) != earlier


def test_the_version_of_a_package_that_the_users_module_imports_counts(store, package, monkeypatch):
    earlier = torch_key(store)
    monkeypatch.setitem(ABSENT, "numpy", "99.0")  # net.blocks imports it
    assert torch_key(store) != earlier


def test_a_package_that_is_missing_counts_once_it_is_there(store, package, monkeypatch):
    (package / "net/blocks.py").write_text("try:\n    import faster\nexcept ImportError:\n    pass\n")
    earlier = torch_key(store)
    (package / "faster.py").write_text("")
    assert torch_key(store) != earlier


def test_the_callable_that_makes_example_inputs_and_its_source_count(store, package):
    (package / "data.py").write_text("def one():\n    return {}\ndef other():\n    return {}\n")
    found = {torch_key(store, f"model.examples=data:{name}") for name in ("one", "other")}
    (package / "data.py").write_text("def one():\n    return {'x': 1}\n")
    assert len({*found, torch_key(store), torch_key(store, "model.examples=data:one")}) == 4


def test_the_profiles_of_a_torch_module_are_the_range_of_its_export(store, package):
    inputs = "{x: {shape: [batch, 3]}, y: {shape: [batch, 3]}}"
    shapes = "{min: [1,3], opt: [2,3], max: [%d,3]}"
    found = [torch_key(store, f"model.dims.batch=[1,2,{most}]", inputs=inputs) for most in (4, 8)]
    given = [f"{{x: {shapes % most}, y: {shapes % most}}}" for most in (4, 8)]
    assert [torch_key(store, f"model.profiles.default={each}", inputs=inputs) for each in given] == found
    assert found[0] != found[1]


# What does not matter


def test_what_steps_are_called_does_not_matter(store, tmp_path):
    text = (ROOT / "conf/flow/export.yaml").read_text()
    (tmp_path / "flow").mkdir()
    (tmp_path / "flow/renamed.yaml").write_text(text.replace("surgery:", "cut:").replace("export", "take")
                                                .replace("stage: take", "stage: export"))  # fmt: skip
    renamed = keys(plan(store, ["flow=renamed"], [tmp_path]))
    shipped = keys(plan(store, ["flow=export"]))
    assert renamed == {"take": shipped["export"], "cut": shipped["surgery"]}


ANYTHING = st.dictionaries(st.text("abc", max_size=3), st.integers() | st.text(max_size=3), max_size=3)


@given(fields=ANYTHING, metrics=ANYTHING, provenance=ANYTHING)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_of_the_steps_before_only_their_output_counts(planned, fields, metrics, provenance):
    for node in planned.nodes:
        outputs = {output: Blob("a" * 64, 1) for _, output in node.upstream.values()}
        plain, other = Record({}, outputs), Record(fields, outputs, metrics, provenance, Blob("b" * 64, 1))
        asked = [planned.workshop.question(node, dict.fromkeys(node.before, record)) for record in (plain, other)]
        assert asked[0] == asked[1]


# Large weights, which a step hands on beside its ONNX file


def with_data(output: str, *digests: str) -> Record:
    names = (output, f"{output}{DATA_SUFFIX}")
    return Record({}, {name: Blob(digest, 1) for name, digest in zip(names, digests, strict=False)})


def test_an_onnx_file_and_its_data_file_are_both_in_the_key(store):
    session = plan(store, ["flow=export"])
    surgery = session.nodes[-1]
    one, two, three = (letter * 64 for letter in "abc")

    def told(*digests: str) -> Any:
        return session.workshop.question(surgery, {"export": with_data("onnx", *digests)})["inputs"]

    assert told(one) == {"onnx": one}  # as it was before there were data files
    assert told(one, two) == {"onnx": [one, two]}
    assert len({Record({"inputs": told(*each)}, {}).key for each in ((one,), (one, two), (one, three))}) == 3


# What cannot be hashed


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_a_value_that_cannot_be_hashed_stops_the_build(store, value):
    with pytest.raises((StoreError, ConfigError), match=r"cannot be hashed|got (nan|inf)"):
        keys(plan(store, ["targets=[l4]", f"steps.export.config.atol={value}"]))


def test_a_file_that_cannot_be_read_stops_the_build(store, tmp_path):
    (tmp_path / "batches/0.npz").mkdir(parents=True)
    with pytest.raises(StoreError, match="cannot be read"):
        keys(plan(store, ["targets=[l4]", f"model.calibration.path='{tmp_path}/batches'"]))


def test_a_model_is_never_found_by_its_name(store, tmp_path):
    shutil.copy(DIGITS / "digits.onnx", tmp_path / "net.onnx")
    named = ["model=onnx", f"model.path='{tmp_path}/net.onnx'", "model.name=digits", "flow=export"]
    assert keys(plan(store, [*named, "model.dims.batch=[1,8,32]"])) == keys(plan(store, ["flow=export"]))
    onnx.save(network(), tmp_path / "net.onnx")
    assert keys(plan(store, named))["export"] != keys(plan(store, ["flow=export"]))["export"]
