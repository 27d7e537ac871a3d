"""The user's own metric: what it is given, what it may return, and what is said when it returns anything else."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stages.intervals import bootstrap, paired_difference, wilson
from stages.stage import StageError
from stages.users_metric import Judgement, Kept, UsersMetric

RIGHT = [{"logits": np.eye(4)[[0, 1, 2]]}, {"logits": np.eye(4)[[3, 0]]}]
WORSE = [{"logits": np.eye(4)[[0, 1, 1]]}, {"logits": np.eye(4)[[3, 3]]}]
LABELS = [np.array([0, 1, 2]), np.array([3, 0])]
HITS = "def metric(outputs, labels):\n    import numpy as np\n    return {RETURNED}\n"
HIT = "np.concatenate([o['logits'].argmax(1) == l for o, l in zip(outputs, labels)])"


@pytest.fixture
def script(tmp_path: Path) -> Path:
    return tmp_path / "own.py"


def judge(script: Path, body: str, direction: str = "higher", **models: Sequence[Any]) -> Any:
    script.write_text(body)
    metric = UsersMetric(".py:metric", [script], direction)
    return metric, metric.judge(models or {"reference": RIGHT, "candidate": WORSE}, LABELS)


def returning(expression: str) -> str:
    return HITS.replace("{RETURNED}", expression)


def refused(script: Path, body: str) -> str:
    with pytest.raises(StageError) as caught:
        judge(script, body)
    assert "\n" not in caught.value.what and caught.value.next_step
    return caught.value.what


def test_one_number_for_each_sample_gives_a_rate_with_its_interval(script: Path) -> None:
    metric, found = judge(script, returning(HIT))
    told = metric.result(found["reference"], found["candidate"])["metric"]
    assert (told["reference"], told["candidate"], told["drop"]) == (1.0, 0.6, 0.4)
    assert told["candidate_interval"] == wilson(3, 5)
    assert told["drop_interval"] == paired_difference(3, 2, 0, 0)


def test_numbers_that_are_no_rate_are_bootstrapped_by_sample(script: Path) -> None:
    metric, found = judge(script, returning(f"2.0 * {HIT}"))
    told = metric.result(found["reference"], found["candidate"])["metric"]
    assert told["drop"] == pytest.approx(0.8)
    assert told["candidate_interval"] == bootstrap(np.array([2.0, 2.0, 0.0, 2.0, 0.0]))
    assert told["drop_interval"] == bootstrap(np.array([0.0, 0.0, 2.0, 0.0, 2.0]))


def test_where_lower_is_better_the_drop_is_what_is_gained(script: Path) -> None:
    metric, found = judge(script, returning(f"1.0 - {HIT}"), "lower")
    told = metric.result(found["reference"], found["candidate"])["metric"]
    assert told["drop"] == pytest.approx(0.4)
    assert told["drop_interval"] == paired_difference(0, 2, 0, 3)


def test_several_numbers_go_by_their_names_and_one_alone_is_not_known_to_be_sure(script: Path) -> None:
    metric, found = judge(script, returning(f"{{'wer': 0.25, 'hits': {HIT}.sum()}}"))
    told = metric.result(found["reference"], found["candidate"])
    assert told["hits"]["drop"] == 2.0 and told["wer"]["drop"] == 0.0
    assert told["hits"]["drop_interval"] is None and told["hits"]["candidate_interval"] is None


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("def metric(outputs, labels):\n    return outputs[0]['boxes']\n", "raised KeyError: 'boxes' ({script}:2)"),
        (returning("None"), "returned no number: metric is NoneType"),
        (returning("'good'"), "returned no number: metric is str"),
        (returning("[[1, 2], [3]]"), "returned no number: metric is list"),
        (returning("'0.5'"), "returned no number: metric is str"),
        (returning("{}"), "returned no number: an empty dict"),
        (returning("float('nan')"), "returned a metric that is not finite"),
        (returning("{'a': np.array([0, 1, 2, np.inf, 0])}"), "returned a a that is not finite at sample 3"),
        (returning("np.zeros(4)"), "returned metric of the shape (4,), and there are 5 samples"),
        ("def metric(outputs):\n    return 1\n", "raised TypeError"),
        ("metric = 3\n", "is no function: it is int"),
        ("def other(): ...\n", "cannot be imported: AttributeError"),
    ],
)
def test_what_is_no_metric_is_refused_in_one_line_with_its_name(body: str, words: str, script: Path) -> None:
    told = refused(script, body)
    assert f"{script}:metric" in told and words.replace("{script}", str(script)) in told


def test_a_mistake_below_a_library_is_that_of_the_line_that_calls_it(script: Path) -> None:
    body = "import numpy as np\ndef other(a):\n    return np.load('/nowhere.npy')\n"
    assert f"({script}:3)" in refused(script, f"{body}def metric(outputs, labels):\n    return other(1)\n")


def test_another_name_for_the_candidate_is_refused(script: Path) -> None:
    metric = UsersMetric(".py:metric", [script])
    with pytest.raises(StageError, match="gave a for the reference and b for the candidate"):
        metric.result({"a": Judgement(1.0)}, {"b": Judgement(1.0)})


def test_batches_of_any_shape_and_text_are_kept_in_files_and_read_when_asked_for(tmp_path: Path) -> None:
    kept = Kept(tmp_path / "kept")
    for rows in (1, 3):
        kept.append({"a": np.full((rows, 2), rows, np.float32), "b/c": np.array(["x"] * rows)})
    assert [batch["a"].shape for batch in kept] == [(1, 2), (3, 2)]
    assert kept[-1]["b/c"].tolist() == ["x"] * 3 and len(kept[0:2]) == 2
    with pytest.raises(IndexError):
        kept[2]
