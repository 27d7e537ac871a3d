"""What a model is held against: stored outputs, an earlier plan, a torch module; alone and side by side."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from stages.stage import Job, Metrics, StageError
from stages.validate import STAGE, ValidateConfig, validate
from tests.stages.stage_runs import PROFILE, classifier, facts, run_stage

ROWS = 20


@pytest.fixture
def data(tmp_path: Path) -> Path:
    random = np.random.default_rng(5)
    labels = random.integers(0, 5, ROWS)
    np.savez(tmp_path / "data.npz", x=random.standard_normal((ROWS, 4, 8, 8)).astype(np.float32), labels=labels)
    return tmp_path / "data.npz"


@pytest.fixture
def one(tmp_path: Path) -> Path:
    return classifier(tmp_path / "one.onnx")


@pytest.fixture
def other(tmp_path: Path) -> Path:
    return classifier(tmp_path / "other.onnx", noise=0.05)


def run(
    out: Path, reference: Path, candidate: Path, config: ValidateConfig | None = None, **inputs: Any
) -> tuple[Metrics, dict[str, Any]]:
    data, given = inputs.pop("options", {}), inputs.pop("given", {})
    files = {"reference": [reference], "onnx": [candidate]} | {name: [path] for name, path in inputs.items()}
    known = facts(profiles=PROFILE, holdout=data, **given)
    metrics = validate(Job(config or ValidateConfig(), files, known, out))
    return metrics, json.loads((out / STAGE.outputs["report"]).read_text())


def outputs(path: Path, data: Path) -> np.ndarray:
    return onnxruntime.InferenceSession(str(path)).run(None, {"x": np.load(data)["x"]})[0]


def stored(path: Path, values: np.ndarray, name: str = "logits") -> Path:
    np.savez(path, **{name: values})
    return path


def test_golden_outputs_are_what_counts_where_they_are_given(
    one: Path, other: Path, data: Path, tmp_path: Path
) -> None:
    golden = stored(tmp_path / "golden.npz", outputs(other, data))
    metrics, report = run(tmp_path, one, other, holdout=data, golden=golden)
    assert metrics["reference"] == "golden" and float(str(metrics["max_abs_error"])) < 1e-5
    assert report["runtimes"]["reference"]["name"] == "golden outputs"


@pytest.mark.parametrize("options", [{"max_samples": 7}, {"batch_size": 3}, {"max_samples": 9, "order": "shuffled"}])
def test_golden_outputs_go_with_their_samples_whichever_are_taken(
    options: dict[str, Any], one: Path, data: Path, tmp_path: Path
) -> None:
    golden = stored(tmp_path / "golden.npz", outputs(one, data))
    metrics, _ = run(tmp_path, one, one, holdout=data, golden=golden, options=options)
    assert metrics["samples"] == options.get("max_samples", ROWS) and float(str(metrics["max_abs_error"])) < 1e-5


def test_several_references_stand_side_by_side_and_the_first_is_the_summary(
    one: Path, other: Path, data: Path, tmp_path: Path
) -> None:
    golden = stored(tmp_path / "golden.npz", outputs(other, data))
    config = ValidateConfig(references=["onnx", "golden"])
    metrics, report = run(tmp_path, one, other, config, holdout=data, golden=golden)
    assert metrics["reference"] == "onnx" and float(str(metrics["max_abs_error"])) > 1e-3
    assert metrics["references"]["golden"]["candidate"]["max_abs_error"] < 1e-5  # type: ignore[index,call-overload]
    assert report["references"]["golden"]["candidate"]["outputs"]["logits"]["values"] == ROWS * 5
    assert list(report["references"]["onnx"]) == ["name", "reason"]  # its numbers stand at the top


@pytest.mark.parametrize(
    ("values", "name", "words"),
    [
        (np.zeros((19, 5), np.float32), "logits", "there are 19 samples, and 20 held-out ones"),
        (np.zeros((20, 6), np.float32), "logits", "has the shape (8, 5), the reference's (8, 6)"),
    ],
)
def test_golden_outputs_that_do_not_fit_are_refused(
    values: np.ndarray, name: str, words: str, one: Path, data: Path, tmp_path: Path
) -> None:
    golden = stored(tmp_path / "golden.npz", values, name)
    with pytest.raises(StageError) as caught:
        run(tmp_path, one, one, holdout=data, golden=golden)
    assert words in caught.value.what and caught.value.next_step


def test_golden_outputs_without_held_out_data_are_refused(one: Path, data: Path, tmp_path: Path) -> None:
    with pytest.raises(StageError, match="need the inputs that they belong to"):
        run(tmp_path, one, one, golden=stored(tmp_path / "golden.npz", outputs(one, data)))


def test_an_earlier_plan_that_no_gpu_here_runs_is_stood_in_for_by_its_onnx(
    one: Path, other: Path, data: Path, tmp_path: Path
) -> None:
    run_stage("build", tmp_path, {"onnx": other}, given=facts(profiles=PROFILE))
    given = {"holdout": data, "against_plan": tmp_path / "model.plan"}
    metrics, report = run(tmp_path, one, other, **given, against_onnx=other)
    assert metrics["reference"] == "against" and metrics["max_abs_error"] == 0.0
    assert report["runtimes"]["reference"] == {"name": "ONNX of an earlier plan", "reason": "no GPU of 8.9 here"}
    with pytest.raises(
        StageError, match=r"is not run \(no GPU of 8.9 here\), and the store has not the ONNX"
    ) as caught:
        run(tmp_path, one, other, **given)
    assert caught.value.next_step


def test_any_onnx_file_can_be_compared_against(one: Path, other: Path, data: Path, tmp_path: Path) -> None:
    metrics, report = run(tmp_path, one, other, holdout=data, against_onnx=other)
    assert metrics["max_abs_error"] == 0.0 and report["runtimes"]["reference"]["name"] == "onnxruntime"


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (ValidateConfig(references=["torch"]), "references has 'torch', and there is none"),
        (ValidateConfig(references=["golden", "onnx"]), "references has 'golden', and there is none"),
        (ValidateConfig(references=["against"]), "references has 'against', and there is none"),
        (ValidateConfig(references=["against"], against="published"), "no other plan is published in this place"),
    ],
)
def test_a_reference_that_is_not_there_is_refused(
    config: ValidateConfig, words: str, one: Path, tmp_path: Path
) -> None:
    with pytest.raises(StageError, match=words) as caught:
        run(tmp_path, one, one, config)
    assert caught.value.next_step


def test_before_a_first_plan_is_published_the_other_references_do(one: Path, tmp_path: Path) -> None:
    config = ValidateConfig(references=["against", "onnx"], against="published")
    assert run(tmp_path, one, one, config)[0]["reference"] == "onnx"


MODULE = """
import numpy as np, onnx, torch
from onnx import numpy_helper
class Net(torch.nn.Module):
    output_names = ['logits']
    def __init__(self, weights):
        super().__init__()
        found = {t.name: torch.tensor(numpy_helper.to_array(t)) for t in onnx.load(weights).graph.initializer}
        self.w, self.g = found['w'].float(), found['g'].float()
    def forward(self, x):
        y = torch.relu(torch.nn.functional.conv2d(x, self.w, padding=1))
        return y.flatten(1) @ self.g
def load(weights):
    return Net(weights)
"""


@pytest.mark.torch
def test_the_torch_module_itself_is_a_reference(
    one: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "reference_net.py").write_text(MODULE)
    shape = {"x": {"shape": ["n", 4, 8, 8], "dtype": "float32"}}
    source = {"kind": "torch", "entry_point": "reference_net:load", "inputs": shape, "dims": {"n": [1, 4, 8]}}
    config = ValidateConfig(references=["torch"])
    given = {"torch_source": tmp_path / "reference_net.py", "torch_weights": one, "given": {"source": source}}
    metrics, report = run(tmp_path, one, one, config, holdout=data, **given)
    assert report["runtimes"]["reference"]["name"] == "torch" and metrics["samples"] == ROWS
    assert 0 < float(str(metrics["max_abs_error"])) < 1e-4
    far = run(tmp_path, one, classifier(tmp_path / "far.onnx", noise=0.1), config, holdout=data, **given)
    assert float(str(far[0]["max_abs_error"])) > 1e-2
