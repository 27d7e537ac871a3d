"""A run, planned: its config, its targets, its graph, and how every node stands in the store.

Nothing here imports Prefect, onnx or TensorRT: what is up to date is decided by hashing and looking up alone.
"""

from __future__ import annotations

import json
import platform
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any

from artifacts import publications
from artifacts.record import Blob, Record
from artifacts.store import Store
from conf.errors import ConfigError
from conf.schema import Calibration, Config, Holdout, Source
from pipelines import data, evidence, graph, judging, kept_ranges, profiles, sharing, sources, targets
from pipelines.configs import Configs
from pipelines.errors import Exit
from pipelines.execute import Outcome, Workshop
from pipelines.graph import Node
from pipelines.targets import BuildTarget
from stages import STAGES, installed
from stages.gates import Baseline
from stages.stage import JSON, Progress

if TYPE_CHECKING:
    from pipelines.reasons import Reasons
    from pipelines.sending import Sender

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")


@dataclass
class Session:
    """One run of one flow for one model.

    Attributes:
        config: The composed config.
        targets: The targets; empty for a flow that does not depend on them.
        nodes: The step graph, each node after all that it depends on.
        workshop: What executes a node.
        outcomes: How each node stands, by id.
        bugs: What was raised where nothing should be.
        signature: The key of what the model looks like from outside.
        sender: What has the steps of targets run that are for queues; None where there is no such target.
    """

    config: Config
    targets: Sequence[BuildTarget]
    nodes: Sequence[Node]
    workshop: Workshop
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    bugs: list[Exception] = field(default_factory=list)
    signature: str | None = None
    sender: Sender | None = None

    @property
    def store(self) -> Store:
        """Where the run's answers are kept."""
        return self.workshop.store

    def upstream(self, node: Node) -> dict[str, Record]:
        """The records of the nodes before `node`, all of which are done."""
        found = {name: self.outcomes[name].record for name in node.before}
        return {name: record for name, record in found.items() if record is not None}

    def obstacle(self, node: Node) -> str | None:
        """Why `node` cannot run although nothing before it is still to come; None where it can."""
        for name in sorted(node.before):
            before = self.outcomes[name]
            if before.state in ("failed", "skipped"):
                return f"{name} {before.state}"
            if refusals := self.refusals(before):
                return f"gate: {'; '.join(refusals)}"
        if node.stage.name == "publish" and (refusals := self.reservations(node.target)):
            return f"gate: {'; '.join(refusals)}"  # of a step beside it, such as bench
        return None

    def refusals(self, outcome: Outcome) -> list[str]:
        """What the flow's gates have against what a step made or measured; empty where they ask nothing of it."""
        published = partial(self._baseline, outcome.node)
        return judging.refusals(self.config.gates, outcome, self.nodes, self.outcomes, published)

    def look(self) -> None:
        """Finds out how every node stands; runs and changes nothing."""
        for node in self.nodes:
            if all(self.outcomes[name].done for name in node.before):
                obstacle = self.obstacle(node)
                looked = self.workshop.look(node, self.upstream(node))
                self.outcomes[node.id] = looked if obstacle is None else Outcome(node, "waiting", reason=obstacle)
            else:
                waits = ", ".join(name for name in sorted(node.before) if not self.outcomes[name].done)
                self.outcomes[node.id] = Outcome(node, "waiting", reason=f"waits for {waits}")
        self.store.memo.save()

    def claim(self) -> None:
        """Keeps gc from what the run relies on; what it took since the last look is looked up again.

        Raises:
            StoreError: The store cannot be written.
        """
        self.store.claim(outcome.key for outcome in self.outcomes.values() if outcome.key)
        self.look()

    @contextmanager
    def holding(self) -> Iterator[None]:
        """Keeps gc from what the run relies on while the block runs, for what runs some of its steps alone.

        Raises:
            StoreError: The store cannot be written.
        """
        self.claim()
        try:
            yield
        finally:
            self.store.memo.save()
            self.store.release()

    @property
    def up_to_date(self) -> bool:
        """Whether nothing is left to run."""
        return all(
            outcome.state == "cached" or self.obstacle(outcome.node) is not None for outcome in self.outcomes.values()
        )

    def settle(self) -> None:
        """Closes a run: what gates keep from running is skipped, refs move, and published directories are there.

        Raises:
            StoreError: The store cannot be written, or is damaged where it says what was published.
        """
        for name, outcome in self.outcomes.items():
            if outcome.state in ("waiting", "missing"):
                reason = self.obstacle(outcome.node) or outcome.reason
                self.outcomes[name] = Outcome(outcome.node, "skipped", reason=reason)
        if self.signature is not None:  # no plan is made from it, and every run asks for it
            self.store.set_ref(f"signatures/{self.config.model.name}", self.signature)
        refs = kept_ranges.refs(self.config, self.outcomes.values())
        for target in self.targets:
            plan = self.plan(target)
            if plan is not None and plan.key:
                refs[f"plans/{self.place(target)}"] = plan.key
        for name, key in refs.items():
            self.store.set_ref(name, key)
        for outcome in self.outcomes.values():
            if outcome.done and outcome.key and self.is_published(outcome.node):
                refs |= self._publish(outcome, outcome.key)
        for target in self.targets:
            self._mark(target)
        if self.workshop.sharing and any(outcome.state == "built" for outcome in self.outcomes.values()):
            self.workshop.sharing.send_refs(refs)
        self.store.memo.save()
        self.store.release()

    def _publish(self, outcome: Outcome, key: str) -> dict[str, str]:
        """Publishes what a step made, unless a gate says no or somebody rolled it back; the ref that says so."""
        place = self.place(outcome.node.target)
        published = self.store.ref(f"published/{place}")
        if self.held_back(outcome.node.target):
            return {}
        if published != key:
            history = publications.history(self.store, place)
            if key in history.withdrawn:
                self.workshop.note(f"{place}: not published, it was rolled back: `trtforge publish` publishes it again")
                return {}
        record = outcome.record
        if record is not None and published == key:  # what is published is mended where it is damaged
            self.store.publish(place, key, published_files(record))
        elif record is not None:
            publication = publications.Publication(key, at=publications.now(), by=publications.whoever())
            publications.move(self.store, place, published_files(record), publication)
        return {f"published/{place}": key}

    def _mark(self, target: BuildTarget) -> None:
        """Marks the target's plan in the store where a gate says no to it, and takes the mark off where none does."""
        plan = self.plan(target)
        if plan is None or plan.key is None:
            return
        if found := self.held_back(target):
            publications.refuse(self.store, self.place(target), plan.key, found)
        elif self.validated(target) or self.published(target) is not None:
            publications.let_pass(self.store, self.place(target))

    def reservations(self, target: BuildTarget | None) -> list[str]:
        """What the gates have against what is made for `target`, by any of its steps or of those before them."""
        return [refusal for outcome in self._own(target) for refusal in self.refusals(outcome)]

    def held_back(self, target: BuildTarget | None) -> list[str]:
        """Why what is made for `target` is not to be published: the gates say no, or could not be asked."""
        return self.reservations(target) + judging.unjudged(self.config.gates, self._own(target))

    def _own(self, target: BuildTarget | None) -> list[Outcome]:
        """The steps of `target`, and those that it shares with others."""
        return [outcome for outcome in self.outcomes.values() if outcome.node.target in (None, target)]

    def way_past(self, outcome: Outcome) -> str:
        """What the user can do about the refusals of a step."""
        if not any(plan.done for plan in map(self.plan, self.targets) if plan):
            return "nothing was built from it: loosen the gate, or let `quantize` leave out more by other options"
        kept = "the plan is kept and not published: `trtforge publish … --force --reason TEXT` publishes it anyway"
        searched = [node.step for node in self.nodes if node.stage.name == "keep_float"]
        if not searched or outcome.node.stage.name != "validate":
            return kept
        return f"on calibration data it held: ask for more there, steps.{searched[0]}.config.min_sqnr_db=…; {kept}"

    def is_published(self, node: Node) -> bool:
        """Whether what `node` makes is for people: a plan with its manifest, or the ONNX that a flow ends with."""
        if node.stage.name == "publish":
            return True
        return not self.targets and "onnx" in node.stage.outputs and node.id == self.nodes[-1].id

    def plan(self, target: BuildTarget) -> Outcome | None:
        """The last step that made a plan for `target` and did not merely publish it; None while there is none."""
        made = [
            outcome
            for outcome in self.outcomes.values()
            if outcome.node.target == target and outcome.done and graph.makes_plan(outcome.node.stage)
        ]
        return made[-1] if made else None

    def published(self, target: BuildTarget | None) -> Path | None:
        """The directory that the run published for `target`; None for a flow that does not depend on targets."""
        place = self.place(target)
        own = [o for o in self.outcomes.values() if o.node.target == target and self.is_published(o.node)]
        # A step may be done and its plan not be the published one: a gate says no, or it was rolled back.
        done = any(o.done and o.key == self.store.ref(f"published/{place}") for o in own)
        return self.store.root / "published" / place if done else None

    def validated(self, target: BuildTarget) -> bool:
        """Whether the target's plan was validated and no gate has anything against it."""
        own = [o for o in self.outcomes.values() if o.node.target == target and o.node.stage.name == "validate"]
        return bool(own) and all(outcome.done and not self.refusals(outcome) for outcome in own)

    @property
    def exit(self) -> Exit:
        """How the run ended."""
        if any(outcome.state == "failed" for outcome in self.outcomes.values()):
            return Exit.STEP_FAILED
        if any(self.refusals(outcome) for outcome in self.outcomes.values()):
            return Exit.GATE_SAID_NO
        return Exit.DONE

    def place(self, target: BuildTarget | None) -> str:
        """`digits/sm_89/rtx-1.7.1.116/int8`; the GPU's target is named where a plan is for that GPU only."""
        if target is None:
            return f"{self.config.model.name}/{self.config.flow}"
        flow = self.config.flow if target.facts["gpu"] is None else f"{self.config.flow}@{target.name}"
        return f"{self.config.model.name}/{target.architecture}/{target.release}/{flow}"

    def _baseline(self, node: Node) -> Baseline | None:
        """How fast the plan is that is published where that of `node` would be."""
        return judging.baseline(self.store, self.place(node.target))


def published_files(record: Record) -> dict[str, Blob]:
    """What a published record's directory holds, by the names of the files."""
    stage = STAGES[record.fields["stage"]]
    return {stage.file_name(name): blob for name, blob in record.outputs.items()}


def open_session(
    overrides: Sequence[str],
    config_dirs: Sequence[Path],
    progress: Progress,
    stop: Event | None = None,
    note: Callable[[str], None] = lambda text: None,
    configs: Configs | None = None,
) -> Session:
    """Plans a run.

    Args:
        overrides: Hydra overrides.
        config_dirs: The user's own config directories.
        progress: Called while a model that was never seen before is read.
        stop: Set when the user wants to stop.
        note: Told what a waiting user wants to know: that the remote is down.
        configs: What composes; a sweep has one for all its runs.

    Raises:
        ConfigError: The config, or a file it names, is wrong.
        CannotBuildError: No one can build a target.
    """
    configs = configs or Configs(config_dirs)
    config = configs.compose(overrides)
    if not _NAME.fullmatch(config.model.name or ""):
        raise ConfigError(
            f"model.name={config.model.name!r}: letters, digits and ._- are allowed", "name it: model.name=NAME"
        )
    if not config.store.root:
        raise ConfigError("store.root is empty", "name a directory, or unset TRTFORGE_STORE")
    judging.require_measured(config)
    main = sources.main_file(config.model)
    workshop = Workshop(configs.store(Path(config.store.root)), {}, _provenance(config, overrides), stop or Event())
    chosen = targets.resolve(config, note) if any(graph.is_per_target(config).values()) else []
    targets.refuse_precisions(config, chosen)
    targets.refuse_without_refit(config, chosen)
    sources.refuse_plugins(config.model, *(target.backend for target in chosen))
    signature, key = _signature(workshop, main, progress) if main else (None, None)
    if signature is not None:
        targets.refuse_fp32_products(config, chosen, signature["fp32_products"])
    shared = sharing.opened(config.store, workshop.store, note)
    facts = _model_facts(config, signature)
    files = {**sources.collect(config.model, signature), **data.files("calibration", config.model.calibration),
             **data.files("holdout", config.model.holdout), **evidence.files(config.model.holdout)}  # fmt: skip
    facts |= _data_facts(config, files, facts)
    reasons = _reasons(workshop, overrides, config_dirs)
    workshop = replace(
        workshop,
        note=note,
        sharing=shared,  # from here on: what a model looks like from outside is found out faster than fetched
        model_facts=facts,
        reason=lambda node, question: reasons()(node, question),
        origins=lambda node: reasons().origins(node),
    )
    kept = kept_ranges.find(config, workshop.store, note)
    session = Session(config, chosen, graph.expand(config, chosen, files, kept), workshop, signature=key)
    session.look()
    if any(getattr(step.config, "against", None) for step in config.steps.values()):
        session.nodes = evidence.with_against(session, lambda path: _onnx_files(workshop, path, progress))
        session.look()
    if any(target.worker for target in chosen):
        from pipelines import sending

        sending.refuse_own_code(session.nodes)
        session.sender = sending.Sender(session)
    configs.keep()
    return session


def _onnx_files(workshop: Workshop, path: Path, progress: Progress) -> list[Path]:
    """An ONNX file, and its data."""
    signature, _ = _signature(workshop, path, progress)
    return [path, *(path.parent / name for name in signature["external_data"])]


def _reasons(workshop: Workshop, overrides: Sequence[str], config_dirs: Sequence[Path]) -> Callable[[], Reasons]:
    @cache
    def reasons() -> Reasons:
        # Nothing of it is imported or opened while nothing is missing.
        from conf.origin import Origins
        from pipelines.reasons import Reasons

        return Reasons(workshop.store, workshop.provenance, Origins(overrides, config_dirs))

    return reasons


def _signature(workshop: Workshop, main: Path, progress: Progress) -> tuple[Mapping[str, Any], str | None]:
    """What the model looks like from outside, out of the store where its bytes were seen before; and the key of it."""
    stage = STAGES["signature"]
    outcome = workshop.execute(Node("signature", stage, stage.config(), files={"onnx": [main]}), {}, progress)
    if outcome.record is None:
        what = (outcome.error or "").removeprefix("signature: ")
        raise ConfigError(what, outcome.next_step)
    content: Mapping[str, Any] = json.loads(workshop.store.path(outcome.record.outputs["signature"]).read_text())
    workshop.store.release()
    return content, outcome.key


def _model_facts(config: Config, signature: Mapping[str, Any] | None) -> dict[str, JSON]:
    own_passes = graph.own_passes(config)
    facts: dict[str, JSON] = {"pass_packages": sources.pass_packages(own_passes) if own_passes else {}}
    if signature is None:
        return {**facts, **_torch_facts(config)}
    facts["source"] = {"kind": "onnx"}
    if graph.needs_fact(config, "profiles") or config.model.profiles or config.model.dims:
        facts["profiles"] = profiles.resolve(config.model, signature["inputs"])
    else:  # a flow that builds nothing does without: what could use them has none
        facts["profiles"] = {}
    return facts


def _data_facts(config: Config, files: sources.Files, facts: Mapping[str, Any]) -> dict[str, JSON]:
    def fact(name: str, said: Calibration | Holdout) -> dict[str, JSON] | None:
        # What no step reads need not be readable here.
        return data.fact(name, said, files, facts["profiles"]) if graph.takes(config, name) else None

    return {
        "calibration": fact("calibration", config.model.calibration),
        "holdout": fact("holdout", config.model.holdout),
        "metric": evidence.fact(config.model.holdout) if graph.needs_fact(config, "metric") else None,
    }


def _torch_facts(config: Config) -> dict[str, JSON]:
    if not config.model.inputs:
        raise ConfigError(
            "a torch module needs its inputs", "say their shapes: 'model.inputs={x: {shape: [batch, 3, 224, 224]}}'"
        )
    from importlib import metadata  # where there is torch, 20 ms are nothing

    try:
        exporter = {name: metadata.version(name) for name in ("torch", "onnxscript", "onnx-ir")}
    except metadata.PackageNotFoundError as error:
        raise ConfigError(
            f"model.source=torch: {error.name} is not installed", "pip install 'trtforge[torch]'"
        ) from None
    model = config.model
    declared = profiles.named(
        [{"name": name, "dtype": t.dtype, "shape": list(t.shape)} for name, t in model.inputs.items()]
    )
    resolved = profiles.resolve(model, declared)
    imported = sources.packages(*sources.entry_points(model))
    source: dict[str, JSON] = {
        "kind": "torch",
        "entry_point": model.entry_point,
        "examples": model.examples,
        "inputs": {t["name"]: {"shape": t["shape"], "dtype": model.inputs[t["name"]].dtype} for t in declared},
        "dims": profiles.dims(declared, resolved),
        # They are handed over in this order, and the canonical JSON of a key sorts names.
        "order": list(model.inputs),
        "exporter": exporter,
        "packages": {name: version for name, version in imported.items() if name not in exporter},
    }
    return {"source": source, "profiles": resolved}


def _provenance(config: Config, overrides: Sequence[str]) -> dict[str, JSON]:
    return {
        "model": config.model.name,
        "source": config.model.path if config.model.source is Source.onnx else config.model.entry_point,
        "flow": config.flow,
        "overrides": list(overrides),
        "host": platform.node(),
        "python": platform.python_version(),
        "trtforge": _own_version(),
    }


@cache
def _own_version() -> str:
    return installed.version("trtforge") or "unknown"
