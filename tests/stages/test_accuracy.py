"""Accuracy of two models on the same samples."""

from __future__ import annotations

import numpy as np
import pytest

from stages.accuracy import Accuracy
from stages.intervals import paired_difference, wilson


def test_each_sample_counts_for_who_is_right_on_it() -> None:
    labels = np.arange(4) % 2
    right, wrong = np.eye(2)[labels], np.eye(2)[1 - labels]
    found = Accuracy("logits")
    found.add(right, right, labels)
    found.add(right, np.where([[True], [False], [False], [True]], right, wrong), labels)
    found.add(wrong, wrong, labels)
    assert (found.both, found.reference_only, found.candidate_only, found.neither) == (6, 2, 0, 4)
    told = found.result()
    assert (told["count"], told["reference"], told["candidate"]) == (12, 8 / 12, 6 / 12)
    assert told["drop"] == pytest.approx(2 / 12)
    assert told["reference_interval"] == wilson(8, 12) and told["candidate_interval"] == wilson(6, 12)
    assert told["drop_interval"] == paired_difference(6, 2, 0, 4)
