"""Stage `publish`: a plan and the manifest that says what it is, ready to be handed on."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path

from stages import plan
from stages.stage import JSON, Job, Metrics, Stage, StageError

FORMAT = 1
"""The manifest's own version: raised when a field changes its meaning or goes away."""


@dataclass(frozen=True)
class PublishConfig:
    """What the manifest cannot read off the plan.

    Attributes:
        model: The model's name.
        flow: The flow that built the plan.
        stripped: Whether the plan was to be built without its weights. Where that cannot be done it has them, and the
            manifest says so as far as the plan's header does.
        forced_reason: Why it is published although gates say no; `trtforge publish --force --reason` sets it.
        forced_gates: What they say; set likewise.
        forced_by: Who did it, `user@host`; set likewise.
    """

    model: str
    flow: str = ""
    stripped: bool = False
    forced_reason: str = ""
    forced_gates: list[str] = field(default_factory=list)
    forced_by: str = ""

    @property
    def forced(self) -> JSON:
        """As the manifest has it; null where nothing had to be forced."""
        if not self.forced_gates:
            return None
        return {"reason": self.forced_reason, "gates": self.forced_gates, "by": self.forced_by}


def publish(job: Job[PublishConfig]) -> Metrics:
    """Copies `plan` and writes `manifest.json` beside it: the same bytes whenever and wherever it runs.

    Returns:
        Metrics: `sha256`, `plan_bytes` and whether it was `validated`.

    Raises:
        StageError: The plan is damaged or not for the target, or the report cannot be read.
    """
    facts = job.facts
    header = plan.read(job.file("plan"))
    plan.check(header, facts["backend"], facts["backend_version"], facts["compute_capability"])
    destination = job.out / "model.plan"
    shutil.copyfile(job.file("plan"), destination)
    digest = _sha256(destination)
    validation = _summary(job.file("report")) if job.inputs.get("report") else None
    manifest: dict[str, JSON] = {
        "format": FORMAT,
        "model": job.config.model,
        "flow": job.config.flow,
        "backend": facts["backend"],
        "backend_version": facts["backend_version"],
        "compute_capability": facts["compute_capability"],
        "gpu": facts["gpu"],
        "platform": facts["platform"],
        "plan": {"file": destination.name, "sha256": digest, "bytes": header.bytes},
        "validation": validation,
        "stripped": job.config.stripped and not header.weight_bytes,
        "forced": job.config.forced,
    }
    text = json.dumps(manifest, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    (job.out / "manifest.json").write_text(text, encoding="utf-8")
    return {"sha256": digest, "plan_bytes": header.bytes, "validated": validation is not None}


def _summary(report: Path) -> JSON:
    try:
        summary: JSON = json.loads(report.read_text(encoding="utf-8"))["summary"]
    except (ValueError, KeyError, TypeError) as error:
        raise StageError(f"{report}: not a validation report: {error}", "run the validate step again") from error
    return summary


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


STAGE = Stage(
    name="publish",
    version=2,
    config=PublishConfig,
    run=publish,
    inputs=("plan",),
    optional=("report",),
    outputs={"plan": "model.plan", "manifest": "manifest.json"},
    facts=("backend", "backend_version", "compute_capability", "gpu", "platform"),
)
