import json
import math
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from onnx import TensorProto, helper

from conf.compose import compose
from stages.comparison import Comparison
from stages.stage import Job, Metrics, StageError
from stages.validate import STAGE, ValidateConfig, validate
from tests.stages.stage_runs import PROFILE, classifier, conv, facts, model, run_stage, save

DIGITS = Path(__file__).parents[2] / "conf" / "data" / "digits"
DIGITS_PROFILE = {"default": {"images": {"min": [1, 1, 8, 8], "opt": [8, 1, 8, 8], "max": [64, 1, 8, 8]}}}


def run(
    out: Path, reference: Path, candidate: Path, config: ValidateConfig | None = None, **inputs: Any
) -> tuple[Metrics, dict[str, Any]]:
    profiles, data = inputs.pop("profiles", PROFILE), inputs.pop("data", {})
    files = {"reference": [reference], "onnx": [candidate]} | {name: [path] for name, path in inputs.items()}
    metrics = validate(Job(config or ValidateConfig(), files, facts(profiles=profiles, holdout=data), out))
    return metrics, json.loads((out / STAGE.outputs["report"]).read_text())


def holdout(path: Path, count: int = 20, **others: Any) -> Path:
    images = np.random.default_rng(5).standard_normal((count, 4, 8, 8)).astype(np.float32)
    np.savez(path, **{"x": images, **others})
    return path


def test_a_model_against_itself_has_no_error(tmp_path: Path) -> None:
    path = classifier(tmp_path / "model.onnx")
    metrics, report = run(tmp_path, path, path)
    assert (metrics["max_abs_error"], metrics["cosine"], metrics["top1_agreement"]) == (0.0, 1.0, 1.0)
    assert metrics["sqnr_db"] is None and metrics["runtime"] == "onnxruntime"
    assert report["summary"] == metrics
    assert report["relative_error"] == "|candidate - reference| / max(|reference|, 1e-06)"


def test_the_numbers_are_those_of_their_formulas_over_all_batches(tmp_path: Path) -> None:
    import onnxruntime

    one, other = classifier(tmp_path / "one.onnx"), classifier(tmp_path / "other.onnx", noise=0.05)
    data = holdout(tmp_path / "data.npz")
    _, report = run(tmp_path, one, other, data={"batch_size": 7}, holdout=data)
    feed = {"x": np.load(data)["x"]}
    r, c = (onnxruntime.InferenceSession(str(path)).run(None, feed)[0].astype(np.float64) for path in (one, other))
    error = np.abs(c - r)
    got = report["candidate"]["outputs"]["logits"]
    assert got["values"] == 20 * 5
    assert got["max_abs_error"] == pytest.approx(error.max(), rel=1e-4)
    assert got["mean_abs_error"] == pytest.approx(error.mean(), rel=1e-4)
    assert got["max_relative_error"] == pytest.approx((error / np.maximum(np.abs(r), 1e-6)).max(), rel=1e-3)
    assert got["cosine"] == pytest.approx((r * c).sum() / np.linalg.norm(r) / np.linalg.norm(c), rel=1e-6)
    assert got["sqnr_db"] == pytest.approx(10 * math.log10((r * r).sum() / (error * error).sum()), rel=1e-3)
    assert got["top1_agreement"] == pytest.approx((r.argmax(1) == c.argmax(1)).mean())


def test_labels_give_the_accuracy_of_both_and_the_drop(tmp_path: Path) -> None:
    config = ValidateConfig(labels="labels")
    path, data = DIGITS / "digits.onnx", DIGITS / "holdout.npz"
    metrics, report = run(tmp_path, path, path, config, holdout=data, profiles=DIGITS_PROFILE, data={"batch_size": 50})
    assert metrics["inputs"] == "held-out" and metrics["samples"] == 360
    assert report["candidate"]["accuracy"]["count"] == 360
    assert metrics["accuracy"] == metrics["accuracy_reference"] > 0.95
    assert metrics["accuracy_drop"] == 0.0


def test_a_worse_model_drops_in_accuracy(tmp_path: Path) -> None:
    import onnxruntime

    one, other = classifier(tmp_path / "one.onnx"), classifier(tmp_path / "other.onnx", noise=0.5)
    feed = {"x": np.load(holdout(tmp_path / "x.npz"))["x"]}
    labels = onnxruntime.InferenceSession(str(one)).run(None, feed)[0].argmax(1)
    data = holdout(tmp_path / "data.npz", labels=labels)
    metrics, _ = run(tmp_path, one, other, ValidateConfig(labels="labels"), holdout=data)
    assert metrics["accuracy_reference"] == 1.0
    assert metrics["accuracy_drop"] == pytest.approx(1.0 - float(str(metrics["accuracy"]))) != 0.0


def test_without_held_out_data_every_shape_of_the_profile_is_generated_and_said(tmp_path: Path) -> None:
    path = classifier(tmp_path / "model.onnx")
    metrics, _ = run(tmp_path, path, path, ValidateConfig(generated_samples=1))
    assert metrics["inputs"] == "generated" and metrics["samples"] == 1 + 4 + 8
    assert metrics["accuracy"] is None


def test_generated_inputs_depend_on_the_seed_alone(tmp_path: Path) -> None:
    one, other = classifier(tmp_path / "one.onnx"), classifier(tmp_path / "other.onnx", noise=0.1)
    errors = [run(tmp_path, one, other, ValidateConfig(seed=seed))[0]["mean_abs_error"] for seed in (1, 1, 2)]
    assert errors[0] == errors[1] != errors[2]


def test_a_static_model_needs_no_profile(tmp_path: Path) -> None:
    path = conv(tmp_path / "model.onnx")
    metrics, _ = run(tmp_path, path, path, profiles={})
    assert metrics["samples"] == 8 and metrics["top1_agreement"] is None


def test_a_model_with_a_fixed_batch_takes_held_out_data_in_its_own_batches(tmp_path: Path) -> None:
    path = classifier(tmp_path / "model.onnx", batch=4)
    metrics, _ = run(tmp_path, path, path, holdout=holdout(tmp_path / "data.npz"), profiles={})
    assert metrics["samples"] == 20


def test_at_most_max_samples_are_read(tmp_path: Path) -> None:
    path = classifier(tmp_path / "model.onnx")
    metrics, _ = run(tmp_path, path, path, data={"max_samples": 5}, holdout=holdout(tmp_path / "d.npz"))
    assert metrics["samples"] == 5


def test_a_candidate_with_fp16_inputs_is_fed_and_compared(tmp_path: Path) -> None:
    reference, candidate = conv(tmp_path / "f32.onnx"), conv(tmp_path / "f16.onnx", np.float16)
    metrics, _ = run(tmp_path, reference, candidate, profiles={})
    assert 0 < float(str(metrics["max_abs_error"])) < 0.1 and float(str(metrics["cosine"])) > 0.9999


def test_a_bf16_model_runs_in_the_reference_evaluator_and_the_report_says_so(tmp_path: Path) -> None:
    reference = classifier(tmp_path / "f32.onnx")
    candidate = classifier(tmp_path / "bf16.onnx", ml_dtypes.bfloat16)
    metrics, report = run(tmp_path, reference, candidate)
    assert metrics["runtime"] == "onnx reference evaluator"
    assert 0.999 < float(str(metrics["cosine"])) < 1.0
    assert report["runtimes"]["reference"]["name"] == "onnxruntime"
    assert "Conv" in report["runtimes"]["candidate"]["reason"]


def test_a_model_with_bf16_inputs_and_outputs_runs_too(tmp_path: Path) -> None:
    reference, candidate = conv(tmp_path / "f32.onnx"), conv(tmp_path / "bf16.onnx", ml_dtypes.bfloat16)
    metrics, _ = run(tmp_path, reference, candidate, profiles={})
    assert metrics["runtime"] == "onnx reference evaluator" and float(str(metrics["cosine"])) > 0.999


def test_a_model_that_nothing_can_run_says_why_of_both(tmp_path: Path) -> None:
    proto = model([helper.make_node("Mystery", ["x"], ["y"], domain="acme")], {"x": [1]}, {"y": [1]})
    proto.opset_import.add(domain="acme", version=1)
    path = save(proto, tmp_path / "model.onnx")
    said = r"neither ONNX Runtime \(.*Mystery.*\) nor ONNX's reference evaluator \(.+\)"
    with pytest.raises(StageError, match=said) as caught:
        run(tmp_path, path, path)
    assert caught.value.next_step.endswith(": ~steps.validate ~steps.publish.inputs.report")
    without = compose(["flow=bf16", "~steps.validate", "~steps.publish.inputs.report"])
    assert list(without.steps["publish"].inputs) == ["plan"]


def test_outputs_of_other_names_are_refused_with_both_and_the_pass_that_names_them_back(tmp_path: Path) -> None:
    one, other = classifier(tmp_path / "one.onnx"), classifier(tmp_path / "other.onnx", rename="scores")
    with pytest.raises(StageError, match="candidate has the outputs scores, the reference has logits") as caught:
        run(tmp_path, one, other)
    _, _, override = caught.value.next_step.partition("'")
    config = compose(["model=onnx", f"model.path={other}", "flow=export", override.rstrip("'")])
    assert config.steps["surgery"].config.then[0]["tensors"] == {"scores": "logits"}


def test_outputs_of_other_shapes_are_refused_with_both(tmp_path: Path) -> None:
    one, other = classifier(tmp_path / "one.onnx"), classifier(tmp_path / "other.onnx", classes=6)
    with pytest.raises(StageError, match=r"'logits' of the candidate has the shape \(1, 6\), the reference's \(1, 5\)"):
        run(tmp_path, one, other)


def test_inputs_of_other_names_are_refused_with_both(tmp_path: Path) -> None:
    other = save(model([helper.make_node("Relu", ["z"], ["y"])], {"z": [1]}, {"y": [1]}), tmp_path / "z.onnx")
    one = save(model([helper.make_node("Relu", ["x"], ["y"])], {"x": [1]}, {"y": [1]}), tmp_path / "x.onnx")
    with pytest.raises(StageError, match="the model takes z, the reference x"):
        run(tmp_path, one, other, profiles={})


def test_an_overflow_is_refused_with_output_and_place(tmp_path: Path) -> None:
    """1000 * 1000 is beyond fp16's 65504."""
    outputs = {}
    for elem, name in ((TensorProto.FLOAT, "f32"), (TensorProto.FLOAT16, "f16")):
        nodes = [helper.make_node("Mul", ["x", "x"], ["y"])]
        outputs[name] = save(model(nodes, {"x": ["n", 2]}, {"y": ["n", 2]}, dtype=elem), tmp_path / f"{name}.onnx")
    np.savez(tmp_path / "d.npz", x=np.array([[1, 2], [3, 4], [5, 1000]], np.float32))
    said = (
        r"'y' of the candidate has 1 values that are not finite.*\[0, 1\].*sample 2; "
        r"it first appears in Mul 'y', whose output 'y' has inf"
    )
    with pytest.raises(StageError, match=said):
        given = {"holdout": tmp_path / "d.npz", "profiles": {}, "data": {"batch_size": 1}}
        run(tmp_path, outputs["f32"], outputs["f16"], **given)


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (np.zeros(19, int), "different numbers of samples"),
        (np.full(20, 5), "labels go from 5 to 5, and the scores have the classes 0 to 4"),
        (np.full(20, -1), "labels go from -1"),
        (np.zeros(20, np.float32), "each needs one whole number"),
        (np.zeros((20, 5), int), "each needs one whole number"),
    ],
)
def test_labels_that_do_not_fit_are_refused(labels: Any, words: str, tmp_path: Path) -> None:
    path, data = classifier(tmp_path / "model.onnx"), holdout(tmp_path / "data.npz", labels=labels)
    with pytest.raises(StageError, match=words):
        run(tmp_path, path, path, ValidateConfig(labels="labels"), holdout=data)


def test_labels_without_held_out_data_are_refused(tmp_path: Path) -> None:
    path = classifier(tmp_path / "model.onnx")
    with pytest.raises(StageError, match="labels is 'labels', and there is no held-out data") as caught:
        run(tmp_path, path, tmp_path / "never read", ValidateConfig(labels="labels"))
    assert "model.holdout.path=…" in caught.value.next_step and "model.holdout.labels=null" in caught.value.next_step


@pytest.mark.parametrize(
    ("shape", "got"), [((20, 4, 9, 8), "(8, 4, 9, 8)"), ((3, 4, 8, 8), "(3, 4, 8, 8)"), ((20, 4, 8, 7), "(8, 4, 8, 7)")]
)
def test_held_out_data_outside_of_every_profile_are_refused_without_a_gpu_too(
    shape: tuple[int, ...], got: str, tmp_path: Path
) -> None:
    path = save(
        model([helper.make_node("Relu", ["x"], ["y"])], {"x": ["n", 4, "h", "w"]}, {"y": ["n", 4, "h", "w"]}),
        tmp_path / "model.onnx",
    )
    low, high = [4, 4, 8, 8], [8, 4, 8, 8]
    given = {"p": {"x": {"min": low, "opt": low, "max": high}}, "q": {"x": {"min": high, "opt": high, "max": high}}}
    np.savez(tmp_path / "d.npz", x=np.zeros(shape, np.float32))
    with pytest.raises(StageError) as caught:
        run(tmp_path, path, path, holdout=tmp_path / "d.npz", profiles=given)
    assert caught.value.what == (
        f"input 'x' is {got}, profile 'p' takes (4, 4, 8, 8) to (8, 4, 8, 8), "
        "profile 'q' takes (8, 4, 8, 8) to (8, 4, 8, 8)"
    )
    assert caught.value.next_step


def test_held_out_data_within_a_profile_are_taken(tmp_path: Path) -> None:
    path = classifier(tmp_path / "model.onnx")
    assert run(tmp_path, path, path, holdout=holdout(tmp_path / "d.npz", count=9))[0]["samples"] == 9


def test_a_negative_and_an_unnamed_dimension_take_any_size(tmp_path: Path) -> None:
    """`?` twice is no promise that both are equal, and -1 is no size."""
    nodes = [helper.make_node("Relu", ["x"], ["r"]), helper.make_node("GlobalAveragePool", ["r"], ["y"])]
    path = save(model(nodes, {"x": [-1, 3, "?", "?"]}, {"y": ["n", 3, 1, 1]}), tmp_path / "model.onnx")
    np.savez(tmp_path / "d.npz", x=np.ones((16, 3, 48, 192), np.float32))
    low, high = [1, 3, 48, 48], [8, 3, 192, 192]
    given = {"default": {"x": {"min": low, "opt": low, "max": high}}}
    metrics, _ = run(tmp_path, path, path, holdout=tmp_path / "d.npz", profiles=given)
    assert metrics["samples"] == 16


def test_generated_inputs_that_no_machine_holds_are_refused_with_their_bytes(tmp_path: Path) -> None:
    path = classifier(tmp_path / "model.onnx")
    low, high = [1, 4, 8, 8], [2_000_000_000, 4, 8, 8]
    given = {"default": {"x": {"min": low, "opt": low, "max": high}}}
    with pytest.raises(StageError) as caught:
        run(tmp_path, path, path, profiles=given)
    assert caught.value.what == (
        "profile 'default': inputs of its max shape take 2,048,000,000,000 bytes (x (2000000000, 4, 8, 8)); "
        "allowed: at most 4,294,967,296"
    )
    assert "model.dims" in caught.value.next_step and "model.profiles.default" in caught.value.next_step


def test_labels_for_a_model_without_scores_are_refused(tmp_path: Path) -> None:
    path, data = conv(tmp_path / "model.onnx"), tmp_path / "data.npz"
    np.savez(data, x=np.zeros((3, 4, 8, 8), np.float32), labels=np.zeros(3, int))
    with pytest.raises(StageError, match=r"labels need an output of floats \(N, K\)"):
        run(tmp_path, path, path, ValidateConfig(labels="labels"), holdout=data, profiles={})


def test_a_plan_is_checked_without_a_gpu_and_the_report_says_that_it_was_not_executed(tmp_path: Path) -> None:
    path = classifier(tmp_path / "model.onnx")
    run_stage("build", tmp_path, {"onnx": path}, given=facts(profiles=PROFILE))
    metrics, report = run(tmp_path, path, path, plan=tmp_path / "model.plan")
    assert metrics["engine_executed"] is False and metrics["reason"] == "no GPU of 8.9 here"
    assert metrics["engine"] is None and report["engine"] is None


def test_a_plan_for_another_target_is_refused_without_a_gpu_too(tmp_path: Path) -> None:
    path = conv(tmp_path / "model.onnx")
    run_stage("build", tmp_path, {"onnx": path}, given=facts("8.6"))
    with pytest.raises(StageError, match="plan was built for sm_86, the target is sm_89"):
        run(tmp_path, path, path, plan=tmp_path / "model.plan", profiles={})


def test_progress_ends_at_one(tmp_path: Path) -> None:
    path, seen = classifier(tmp_path / "model.onnx"), []
    files = {"reference": [path], "onnx": [path], "holdout": [holdout(tmp_path / "d.npz")]}
    known = facts(profiles=PROFILE, holdout={"batch_size": 8})
    job = Job(ValidateConfig(), files, known, tmp_path, lambda phase, done: seen.append(done))
    validate(job)
    assert seen[-1] == 1.0 and seen[1:] == sorted(seen[1:])


def test_zeros_against_zeros_are_equal_and_zeros_against_something_are_not() -> None:
    compared = Comparison("it")
    compared.add({"y": np.zeros((2, 3))}, {"y": np.zeros((2, 3))}, None)
    assert compared.summary()["cosine"] == 1.0
    compared.add({"y": np.zeros((2, 3))}, {"y": np.ones((2, 3))}, None)
    assert compared.summary()["cosine"] == 0.0 and compared.summary()["sqnr_db"] is None


def test_the_worst_output_is_the_one_with_the_most_noise_for_its_signal() -> None:
    compared = Comparison("it")
    reference = {"large": np.full((1, 2), 1000.0), "small": np.full((1, 2), 0.001)}
    compared.add(reference, {"large": reference["large"] + 0.1, "small": reference["small"] + 0.01}, None)
    assert compared.summary()["worst_output"] == "small"
    assert compared.summary()["max_abs_error"] == pytest.approx(0.1)


def narrow(path: Path, dtype: Any) -> Path:
    """y = x * x in rows of 128: of inputs (n, 2, h, w) whose size 128 divides."""
    elem = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    nodes = [
        helper.make_node("Mul", ["x", "x"], ["square"], name="square0"),
        helper.make_node("Reshape", ["square", "shape"], ["y"]),
    ]
    weights = {"shape": np.array([-1, 2 * 8 * 8])}
    return save(model(nodes, {"x": ["n", 2, "h", "w"]}, {"y": ["m", 128]}, weights, elem), path)


def test_an_edge_that_the_reference_refuses_is_noted_and_the_others_are_compared(tmp_path: Path) -> None:
    path = narrow(tmp_path / "m.onnx", np.float32)
    shapes = {"default": {"x": {"min": [4, 2, 8, 8], "opt": [4, 2, 8, 8], "max": [8, 2, 16, 9]}}}
    metrics, report = run(tmp_path, path, path, profiles=shapes)
    assert [each["inputs"] for each in report["skipped_edges"]] == ["profile default: w=9"]
    assert "cannot run the model" in report["skipped_edges"][0]["reason"]
    assert metrics["samples"] > 0


def test_extremes_are_told_apart_and_fail_nothing(tmp_path: Path) -> None:
    """100 * 3 is squared beyond fp16's 65504, and not beyond fp32's largest."""
    exact, half = narrow(tmp_path / "f32.onnx", np.float32), narrow(tmp_path / "f16.onnx", np.float16)
    metrics, report = run(
        tmp_path, exact, half, profiles={"default": {"x": {k: [4, 2, 8, 8] for k in ("min", "opt", "max")}}}
    )
    assert float(str(metrics["max_abs_error"])) < 0.1
    assert report["extremes"]["zeros"]["candidate"] == {
        "finite": True, "max_abs_error": 0.0, "cosine": 1.0, "sqnr_db": None,
    }  # fmt: skip
    large = report["extremes"]["large"]["candidate"]
    assert large["finite"] is False and "it first appears in Mul 'square0'" in large["reason"]


def test_a_reference_that_is_not_finite_is_located_too(tmp_path: Path) -> None:
    nodes = [helper.make_node("Neg", ["x"], ["n"]), helper.make_node("Sqrt", ["n"], ["y"], name="root")]
    path = save(model(nodes, {"x": ["k", 2]}, {"y": ["k", 2]}), tmp_path / "m.onnx")
    np.savez(tmp_path / "d.npz", x=np.array([[0, 0], [0, 1]], np.float32))
    with pytest.raises(StageError, match=r"of the reference has 1 values.*sample 1; it first appears in Sqrt 'root'"):
        run(tmp_path, path, path, holdout=tmp_path / "d.npz", profiles={})


def test_the_report_says_how_errors_are_distributed_and_which_batches_are_worst(tmp_path: Path) -> None:
    one, other = classifier(tmp_path / "one.onnx"), classifier(tmp_path / "other.onnx", noise=0.05)
    _, report = run(tmp_path, one, other, data={"batch_size": 1}, holdout=holdout(tmp_path / "data.npz"))
    histogram = report["candidate"]["outputs"]["logits"]["abs_error_histogram"]
    assert sum(histogram["counts"]) + histogram["exact"] == 20 * 5
    assert len(histogram["log10_edges"]) == len(histogram["counts"]) + 1
    worst = report["candidate"]["worst_batches"]
    assert len(worst) == 10 and {each["output"] for each in worst} == {"logits"}
    assert all(each["batch"] == each["first_sample"] for each in worst)


def test_a_metric_of_the_users_judges_by_labels_of_any_type(tmp_path: Path) -> None:
    one, other = classifier(tmp_path / "one.onnx"), classifier(tmp_path / "other.onnx", noise=0.5)
    data = holdout(tmp_path / "data.npz", text=np.array([f"sample {index}" for index in range(20)]))
    script = tmp_path / "own.py"
    script.write_text(
        "import numpy as np\n"
        "def metric(outputs, labels):\n"
        "    assert [len(each) for each in labels] == [len(each['logits']) for each in outputs]\n"
        "    assert labels[0][0] == 'sample 0'\n"
        "    return {'largest': np.concatenate([each['logits'].max(1) for each in outputs]), 'batches': len(labels)}\n"
    )
    fact = {"callable": ".py:metric", "direction": "lower", "packages": {}}
    files = {"reference": [one], "onnx": [other], "holdout": [data], "metric": [script]}
    known = facts(profiles=PROFILE, holdout={}, metric=fact)
    metrics = validate(Job(ValidateConfig(labels="text"), files, known, tmp_path))
    report = json.loads((tmp_path / "report.json").read_text())
    assert metrics["accuracy"] is None
    told = report["metric"]["candidate"]["largest"]
    assert told["drop"] == pytest.approx(told["candidate"] - told["reference"]) == metrics["metric_drop"]
    assert told["drop_interval"][0] < told["drop"] < told["drop_interval"][1]
    assert metrics["metric"]["batches"]["drop"] == 0.0  # type: ignore[index,call-overload]
    assert not list(tmp_path.glob("tmp*"))  # what was kept for it is gone
