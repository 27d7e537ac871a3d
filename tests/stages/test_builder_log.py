"""The builder's log is read for why a build failed. Lines as TensorRT 8 and 10 print them."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from stages.builder_log import Memory, build_error

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
    assert "Could not find any implementation" in error_of([NO_TACTIC], []).what
