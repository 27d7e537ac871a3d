"""`steps.quantize.config.skip=auto` from the command line."""

from __future__ import annotations

from tests.pipelines.conftest import Forge

AUTO = ("targets=[l4]", "steps.quantize.config.skip=auto", "steps.sensitivity.config.samples=1")


def test_the_search_is_held_to_the_flows_gates_and_what_it_does_not_reach_is_not_built(built: Forge) -> None:
    ran = built.build(*AUTO, "gates.min_sqnr_db=30")
    assert ran.code == 0, ran.err
    assert ran.step("keep_float")["metrics"]["layers"] == []
    # Nothing had to stay in float: the same bytes as ever, so that nothing after them runs.
    assert [ran.states()[name] for name in ("keep_float", "quantize", "build[l4]")] == ["built", "built", "cached"]

    ran = built.build(*AUTO, "gates.min_sqnr_db=200")
    assert ran.code == 3
    assert [ran.states()[name] for name in ("sensitivity", "keep_float")] == ["cached", "built"]
    assert ran.states()["quantize"] == "skipped"
    assert "the gate says no: skip=auto: sqnr_db" in ran.err
    assert "< 200, at best, with" in ran.err
    assert "nothing was built from it" in ran.err
