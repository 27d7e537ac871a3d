import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from stages.publish import STAGE, PublishConfig
from stages.stage import Job, Metrics, StageError
from tests.stages.stage_runs import VERSION, conv, facts, one_node, run_stage


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("built")
    run_stage("build", folder, {"onnx": conv(folder / "model.onnx")})
    return folder / "model.plan"


def publish(
    out: Path, plan: Path, report: Path | None = None, config: PublishConfig | None = None, **given: Any
) -> Metrics:
    out.mkdir(exist_ok=True)
    inputs = {"plan": [plan]} | ({"report": [report]} if report else {})
    return STAGE.run(Job(config or PublishConfig("digits", "int8"), inputs, facts(**given), out))


def test_the_manifest_says_what_the_plan_is_and_its_digest_is_the_plans(built: Path, tmp_path: Path) -> None:
    publish(tmp_path, built)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    content = (tmp_path / "model.plan").read_bytes()
    assert content == built.read_bytes()
    sha256 = hashlib.sha256(content).hexdigest()
    assert manifest == {
        "format": 1,
        "model": "digits",
        "flow": "int8",
        "backend": "tensorrt_rtx",
        "backend_version": VERSION,
        "compute_capability": "8.9",
        "gpu": None,
        "platform": "linux_x86_64",
        "plan": {"file": "model.plan", "sha256": sha256, "bytes": len(content)},
        "validation": None,
        "stripped": False,
        "forced": None,
    }


def test_a_plan_that_was_to_have_no_weights_and_has_them_is_not_called_stripped(built: Path, tmp_path: Path) -> None:
    run_stage("build", tmp_path / "without", {"onnx": one_node(tmp_path / "m.onnx", "Relu")})
    for name, plan, stripped in (("a", built, False), ("b", tmp_path / "without" / "model.plan", True)):
        publish(tmp_path / name, plan, config=PublishConfig("digits", "int8", stripped=True))
        assert json.loads((tmp_path / name / "manifest.json").read_text())["stripped"] is stripped


def test_the_manifest_says_what_was_forced(built: Path, tmp_path: Path) -> None:
    forced: dict[str, Any] = {
        "forced_reason": "the customer waits",
        "forced_gates": ["cosine 0.5 < 0.9"],
        "forced_by": "me@here",
    }
    publish(tmp_path, built, config=PublishConfig("digits", "int8", **forced))
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["forced"] == {"reason": "the customer waits", "gates": ["cosine 0.5 < 0.9"], "by": "me@here"}


def test_publishing_twice_gives_the_same_bytes(built: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        publish(tmp_path / name, built)
    assert (tmp_path / "one" / "manifest.json").read_bytes() == (tmp_path / "two" / "manifest.json").read_bytes()


def test_the_manifest_carries_the_reports_summary(built: Path, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    report.write_text(json.dumps({"summary": {"cosine": 0.99, "engine_executed": False}, "candidate": {}}))
    assert publish(tmp_path, built, report)["validated"] is True
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["validation"] == {"cosine": 0.99, "engine_executed": False}


def test_a_read_only_plan_is_copied_into_a_writable_one(built: Path, tmp_path: Path) -> None:
    """Objects of the store have the mode 0444."""
    source = tmp_path / "object"
    source.write_bytes(built.read_bytes())
    source.chmod(0o444)
    publish(tmp_path / "out", source)
    assert (tmp_path / "out" / "model.plan").stat().st_mode & 0o200


def test_a_plan_for_another_target_is_not_published(built: Path, tmp_path: Path) -> None:
    with pytest.raises(StageError, match="plan was built for sm_89, the target is sm_120"):
        publish(tmp_path, built, compute_capability="12.0")
    assert not (tmp_path / "manifest.json").exists()


def test_a_damaged_plan_is_not_published(built: Path, tmp_path: Path) -> None:
    (tmp_path / "cut.plan").write_bytes(built.read_bytes()[:1000])
    with pytest.raises(StageError, match="the plan has 1000"):
        publish(tmp_path, tmp_path / "cut.plan")


@pytest.mark.parametrize("content", ["{}", "[]", "no json"])
def test_what_is_no_report_is_refused(content: str, built: Path, tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text(content)
    with pytest.raises(StageError, match="not a validation report"):
        publish(tmp_path, built, tmp_path / "report.json")
