"""Models against references, run by run: engines, edges and extremes, with runtimes that compute what they are told."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stages.batches import Input
from stages.runtimes import Runtime
from stages.stage import Job, StageError
from stages.study import CANDIDATE, ENGINE, Feed, Study
from stages.validate import ValidateConfig


def runtime(compute: Callable[[Any], Any]) -> Runtime:
    return Runtime("numpy", [Input("x", "float32", ("n", 2))], lambda feed: {"y": compute(feed["x"])})


def study(tmp_path: Path, engine: Callable[[Any], Any], reference: Callable[[Any], Any] = lambda x: x) -> Study:
    models = {CANDIDATE: runtime(lambda x: x), ENGINE: runtime(engine)}
    return Study(Job(ValidateConfig(), {}, {}, tmp_path), {"onnx": runtime(reference)}, models, None, (1,))


X = np.ones((3, 2), np.float32)


def test_an_engine_alone_that_overflows_is_told_apart_from_the_onnx_that_it_was_built_from(tmp_path: Path) -> None:
    with pytest.raises(StageError) as caught:
        study(tmp_path, lambda x: np.where(np.arange(3)[:, None] == 2, np.inf, x)).add(Feed({"x": X}))
    assert "output 'y' of the engine has 2 values that are not finite" in caught.value.what
    assert caught.value.what.endswith("sample 2; the ONNX that it was built from is finite there")


def test_each_model_has_its_own_numbers(tmp_path: Path) -> None:
    found = study(tmp_path, lambda x: x + 0.5)
    found.add(Feed({"x": X}))
    found.add(Feed({"x": X}))
    errors = {who: found.of("onnx", who).summary()["max_abs_error"] for who in (CANDIDATE, ENGINE)}
    assert errors == {CANDIDATE: 0.0, ENGINE: 0.5} and found.of("golden", CANDIDATE) is None


def refusing(x: Any) -> Any:
    if len(x) > 3:
        raise StageError("too many")
    return x


def test_what_a_reference_refuses_is_noted_at_an_edge_and_fails_elsewhere(tmp_path: Path) -> None:
    found, large = study(tmp_path, lambda x: x, refusing), {"x": np.ones((4, 2), np.float32)}
    found.add(Feed(large, edge="profile p: n=4"))
    assert found.skipped == [{"inputs": "profile p: n=4", "reason": "too many"}]
    with pytest.raises(StageError, match="too many"):
        found.add(Feed(large))


def test_an_edge_is_named_where_a_model_overflows_on_it(tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"\(profile p: n=3\)"):
        study(tmp_path, lambda x: x * np.nan).add(Feed({"x": X}, edge="profile p: n=3"))


def test_at_an_extreme_nothing_fails(tmp_path: Path) -> None:
    found = study(tmp_path, lambda x: x / x.max(), lambda x: np.log(x + 1))
    with np.errstate(all="ignore"):
        found.try_extremes(iter([("zeros", {"x": X * 0}), ("minus", {"x": -X}), ("large", {"x": X})]))
    zeros, minus, large = (found.extremes[kind] for kind in ("zeros", "minus", "large"))
    assert zeros["candidate"]["finite"] is True and zeros["engine"]["finite"] is False  # type: ignore[index,call-overload]
    assert minus["compared"] is False and "of the reference" in str(minus["reason"])  # type: ignore[index,call-overload]
    assert large["engine"]["max_abs_error"] == pytest.approx(1 - np.log(2))  # type: ignore[index,call-overload]
