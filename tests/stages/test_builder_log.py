"""The builder's log is read for why a build failed. Lines as TensorRT 8 and 10 print them."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from stages.builder_log import Memory, build_error, plain

NO_TACTIC = "Error Code 10: Internal Error (Could not find any implementation for node {ForeignNode[conv1...fc]}.)"
DEVICE = "Tactic Device request: 9318MB Available: 4096MB. Device memory is insufficient to use tactic."
TACTIC = (
    "UNSUPPORTED_STATE: Skipping tactic 3 due to insufficient memory on requested size of 9770631168 detected for "
    "tactic 0x0000000000000004."
)
OLD_TACTIC = "Skipping tactic 3 due to insuficient memory on requested size of 449 detected for tactic 4."


def error_of(errors, heard, workspace_bytes=64 << 30):
    memory = Memory()
    for line in heard:
        memory.hear(line)
    return build_error(SimpleNamespace(errors=errors, memory=memory), "tensorrt", "8.6", workspace_bytes)


@pytest.mark.parametrize("heard", [[DEVICE, TACTIC], [TACTIC, DEVICE], [OLD_TACTIC, DEVICE, TACTIC, OLD_TACTIC]])
def test_a_build_without_memory_says_what_was_wanted_and_what_there_was(heard):
    error = error_of([NO_TACTIC], heard)
    assert error.what.startswith("out of device memory: no tactic is left for node '{ForeignNode[conv1...fc]}', ")
    assert "wanted 9.1 GiB, " in error.what
    assert "the workspace is 64.0 GiB" in error.what
    assert error.next_step.startswith("lower the max of the profiles")


def test_a_workspace_below_what_was_wanted_is_to_be_raised():
    error = error_of([NO_TACTIC], [TACTIC], 4 << 30)
    assert "tactic 0x0000000000000004 wanted 9.1 GiB, the workspace is 4.0 GiB" in error.what
    assert error.next_step.startswith("raise the workspace, or lower the max")


def test_sizes_of_old_versions_count_megabytes():
    assert "tactic 4 wanted 449 MiB" in error_of([NO_TACTIC], [OLD_TACTIC]).what


def test_memory_that_ran_out_is_told_without_any_tactic():
    error = error_of(["[resize.cpp::grow::145] Error Code 2: OutOfMemory (Requested size was 977 bytes.)"], [])
    assert error.what.startswith("out of device memory: OutOfMemory (Requested size was 977 bytes.)")


def test_tactics_that_were_skipped_do_not_explain_another_failure():
    error = error_of(["Error Code 4: the node conv1 is wrong"], [DEVICE, TACTIC])
    assert "memory" not in error.what
    assert "the node conv1 is wrong" in error.what


def test_a_node_without_implementation_where_memory_was_enough_is_told_as_it_is():
    error = error_of([NO_TACTIC], [])
    assert error.what == (
        "no tactic computes a part of this model: Could not find any implementation for node {ForeignNode[conv1...fc]}."
    )
    assert "optimization_level: 5" in error.next_step


def test_a_timing_that_a_build_must_not_take_is_told_with_the_setting():
    error = error_of(["[optimizer.cpp::f::1] Error Code 2: Internal Error (Assertion !errorOnMiss failed. )"], [])
    assert error.what.startswith("a tactic is not in the timing cache, so this plan would differ")
    assert "error_on_miss: false" in error.next_step


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (
            "IBuilder::build: Error Code 1: Myelin (No kernel for f(x) In compileGraph at /_src/m.cpp:2)",
            "No kernel for f(x)",
        ),
        ("Error Code 9: it is so (as was said)", "it is so (as was said)"),
        ("IBuilder::build: Error Code 4: Internal Error (x: n (y) is odd)", "x: n (y) is odd"),
    ],
)
def test_a_message_is_told_without_its_code_source_and_brackets(said, told):
    assert plain(said) == told


def test_of_a_plan_for_several_the_targets_that_lack_a_type_are_named():
    said = "Myelin ([pass.cpp:1500: run_passes] Cannot compile for target(s) sm80, sm86, because the model contains "
    error = error_of([f"{said}HW-specific datatypes: fp8_e4m3. In compileGraph"], [])
    assert error.what == "sm_80, sm_86 cannot compute in fp8, which this model does"
