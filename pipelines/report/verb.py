"""The verb `report`: writes a page for each plan of a config that is built. Nothing is built or measured."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Event
from typing import Any

from conf.errors import ConfigError
from pipelines.report import accuracy, calibration, inside, origin, page, speed, summary
from pipelines.report.blocks import Report
from pipelines.report.subject import Subject, subjects
from pipelines.session import Session, open_session
from stages.stage import StageError

DIRECTORY = "reports"
"""In the store, where no other directory is named. What `publish` wrote stays as it wrote it."""


@dataclass(frozen=True)
class Written:
    """One page.

    Attributes:
        subject: What it is of.
        path: Where it lies.
    """

    subject: Subject
    path: Path

    def document(self) -> dict[str, Any]:
        """As `--json` prints it."""
        plan = self.subject.record.outputs["plan"]
        return {
            "target": self.subject.target.name,
            "plan": plan.digest,
            "key": self.subject.record.key,
            "path": str(self.path),
            "bytes": self.path.stat().st_size,
        }


@dataclass(frozen=True)
class Reports:
    """What the verb did.

    Attributes:
        session: The run whose plans they are.
        written: The pages, target by target.
        missing: Why there is none of a target, by its name.
    """

    session: Session
    written: Sequence[Written]
    missing: dict[str, str]

    def document(self) -> dict[str, Any]:
        """What `report --json` prints."""
        return {
            "flow": self.session.config.flow,
            "ok": True,
            "reports": [each.document() for each in self.written],
            "missing": dict(self.missing),
        }


def write(overrides: Sequence[str], config_dirs: Sequence[Path], out: Path | None, stop: Event) -> Reports:
    """Writes `<out>/<model>-<target>-<flow>.html` for every plan that is built.

    Args:
        overrides: Hydra overrides.
        config_dirs: The user's own config directories.
        out: The directory; None: `reports` in the store.
        stop: Set when the user wants to stop.

    Raises:
        ConfigError: The config is wrong, its flow makes no plan, or none of its plans is built.
        StageError: matplotlib is not installed.
        StoreError: Something that the records name is gone or damaged.
    """
    session = open_session(overrides, config_dirs, lambda phase, done: None, stop)
    found = subjects(session)
    missing = _missing(session, [each.target.name for each in found])
    if not found:
        told = "; ".join(dict.fromkeys(missing.values())) or f"flow {session.config.flow} makes no plan"
        raise ConfigError(f"a report is of what is built: {told}", f"build it first: {_command(overrides)}")
    directory = session.store.root / DIRECTORY if out is None else out
    directory.mkdir(parents=True, exist_ok=True)
    written = [Written(each, directory / f"{each.name}.html") for each in found]
    for each in written:
        _replace(each.path, page.html(report_of(each.subject)))
    session.store.memo.save()
    return Reports(session, written, missing)


def show(found: Reports) -> None:
    """Opens the pages in the user's browser.

    Raises:
        StageError: There is none.
    """
    import webbrowser

    for each in found.written:
        if not webbrowser.open(each.path.absolute().as_uri()):
            raise StageError("no browser was found to show the report in", f"open it yourself: {each.path}")


def report_of(subject: Subject) -> Report:
    """All that is said of a plan.

    Raises:
        StoreError: Something that the records name is gone or damaged.
    """
    found = evidence(subject)
    verdict = [*found.verdict, *summary.published(subject)]
    return replace(found, verdict=verdict, sections=[*found.sections, origin.published(subject)])


def evidence(subject: Subject) -> Report:
    """All of it but what is published, which a run that goes on has yet to decide.

    Raises:
        StoreError: Something that the records name is gone or damaged.
    """
    model, target, flow = subject.words
    sections = [
        *(summary.about(subject), summary.judged(subject), accuracy.section(subject), inside.section(subject)),
        *(speed.section(subject), calibration.section(subject), origin.steps(subject), origin.times(subject)),
    ]
    title = f"{model} on {target}, flow {flow}"
    return Report(title, summary.verdict(subject), [section for section in sections if section is not None])


def _missing(session: Session, found: Sequence[str]) -> dict[str, str]:
    """Why the other targets have no plan: the first of their steps that is not done."""
    reasons = {}
    for target in session.targets:
        if target.name in found:
            continue
        own = [session.outcomes[node.id] for node in session.nodes if node.target in (None, target)]
        first = next((outcome for outcome in own if not outcome.done), None)
        if first is not None:
            reasons[target.name] = f"{first.node.id} is {first.state}"
    return reasons


def _command(overrides: Sequence[str]) -> str:
    return " ".join(["trtforge build", *overrides])


def _replace(path: Path, text: str) -> None:
    """A reader sees the whole page or the one before."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    aside.write_text(text, encoding="utf-8")
    aside.replace(path)
