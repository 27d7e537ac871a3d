"""A store as it is after a catalog of models was built, made in a minute instead of hours.

One model is really built for the four targets. The others are copies of its ONNX file with other weights, whose records
and objects are written through the store's own code under the keys that the planner asks for; objects are cut to
`OBJECT_BYTES`, of which a look at the store with remembered digests sees no difference. That the keys are right is
checked by whoever runs `trtforge status` on it: every step is cached.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from artifacts.record import Blob, Record
from artifacts.store import Store
from conf.compose import compose
from conf.schema import Config
from pipelines import graph, session, sources, targets
from pipelines.execute import Workshop
from pipelines.graph import Node
from stages import STAGES

TARGETS = ("a10", "l4", "rtx5090", "rtx4090")
OBJECT_BYTES = 4096

_MODEL = """# Made by benchmarks/catalog.py.
path: {path}
dims: {{batch: [1, 8, 32]}}
calibration: {{path: {digits}/calibration.npz, batch_size: 32}}
holdout: {{path: {digits}/holdout.npz, labels: labels}}
"""


def name_of(number: int) -> str:
    """The name of a model: `net_0007`."""
    return f"net_{number:04}"


def overrides() -> list[str]:
    """What all runs of the catalog have in common."""
    return [f"targets=[{','.join(TARGETS)}]", "flow=int8", "runner=local"]


def write_models(home: Path, digits: Path, count: int) -> Path:
    """Writes `count` models, each with weights of its own, and a config directory that lists them."""
    import onnx
    from onnx import numpy_helper

    directory = home / "catalog"
    (directory / "model").mkdir(parents=True)
    (home / "models").mkdir()
    model = onnx.load(str(digits / "digits.onnx"))
    weights = next(tensor for tensor in model.graph.initializer if len(tensor.dims) == 4)
    values = numpy_helper.to_array(weights).copy()
    for number in range(count):
        values.flat[0] += 1e-3
        weights.CopyFrom(numpy_helper.from_array(values, weights.name))
        path = home / "models" / f"{name_of(number)}.onnx"
        onnx.save(model, str(path))
        (directory / "model" / f"{name_of(number)}.yaml").write_text(_MODEL.format(path=path, digits=digits))
    return directory


def derive(home: Path, directory: Path, count: int) -> int:
    """Answers every question that the models after the first will ask, as the first was answered.

    Returns:
        How many records were written.
    """
    first = compose([f"model={name_of(0)}", *overrides()], [directory])
    store = Store(Path(first.store.root))
    answers = _plan(first, store, {})
    for number in range(1, count):
        _plan(_renamed(first, number, home), store, answers)
    store.memo.save()
    return (count - 1) * (len(answers))


def _renamed(config: Config, number: int, home: Path) -> Config:
    name = name_of(number)
    steps = dict(config.steps)
    steps["publish"] = replace(steps["publish"], config=replace(steps["publish"].config, model=name))
    model = replace(config.model, name=name, path=str(home / "models" / f"{name}.onnx"))
    return replace(config, model=model, steps=steps)


def _plan(config: Config, store: Store, answers: dict[str, Record]) -> dict[str, Record]:
    """Every node's record, looked up where `answers` is empty, else derived from it under this config's own key."""
    main = sources.main_file(config.model)
    assert main is not None
    stage = STAGES["signature"]
    face = Node("signature", stage, stage.config(), files={"onnx": [main]})
    found = {"signature": _answer(Workshop(store), face, {}, answers, config)}
    signature: Any = _signature(store, found["signature"])
    workshop = Workshop(store, session._model_facts(config, signature))
    nodes: Sequence[Node] = graph.expand(config, targets.resolve(config), sources.collect(config.model, signature))
    for node in nodes:
        found[node.id] = _answer(workshop, node, found, answers, config)
    return found


def _signature(store: Store, record: Record) -> Any:
    import json

    return json.loads(store.path(record.outputs["signature"]).read_text())


def _answer(
    workshop: Workshop, node: Node, upstream: dict[str, Record], answers: dict[str, Record], config: Config
) -> Record:
    store, question = workshop.store, workshop.question(node, upstream)
    if not answers:
        found = store.record(Record(question, {}).key)
        assert found is not None, f"{node.id} of the first model is not built"
        return found
    like = answers[node.id]
    outputs = {
        name: blob if node.step in ("signature", "publish") else _other(store, blob, f"{config.model.name} {node.id}")
        for name, blob in like.outputs.items()
    }
    if node.step == "publish":  # which hands on the plan it was given
        outputs["plan"] = upstream[node.upstream["plan"][0]].outputs["plan"]
    made = {**like.provenance, "model": config.model.name}
    record = Record(question, outputs, like.metrics, made, like.log)
    store.put(record)
    return record


def _other(store: Store, blob: Blob, mark: str) -> Blob:
    with store.scratch() as aside:
        fresh = aside / "fresh"
        fresh.write_bytes(mark.encode() + store.path(blob).read_bytes()[: OBJECT_BYTES - len(mark)])
        return store.add(fresh)
