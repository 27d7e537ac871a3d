"""What is told of a GPU's clocks; test_gpu_timing.py reads those of a real one."""

from __future__ import annotations

from stages.gpu_clocks import ClockReader, Clocks

NOWHERE = "GPU-00000000-0000-0000-0000-000000000000"


def test_a_clock_that_read_the_same_throughout_was_steady_unless_something_held_it_down() -> None:
    assert Clocks([1980, 1980], 1980).steady is True
    assert Clocks([1980, 1755], 1980).steady is False
    assert Clocks([1755, 1755], 1980, {"EVENT_REASON_SW_POWER_CAP"}).steady is False
    assert Clocks().steady is None


def test_reports_have_the_lowest_the_highest_and_why() -> None:
    told = Clocks([1980, 1755, 1800], 1980, {"b", "a"}).told()
    assert told["sm_mhz"] == {"min": 1755, "max": 1980} and told["highest_sm_mhz"] == 1980
    assert told["held_down_by"] == ["a", "b"] and told["readings"] == 3


def test_where_nvml_knows_no_such_gpu_the_reason_stands_for_the_clocks() -> None:
    reader = ClockReader(NOWHERE)
    reader.read()
    told = reader.clocks.told()
    assert told["sm_mhz"] is None and told["steady"] is None and "NVML" in str(told["unread"])
