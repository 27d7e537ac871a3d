"""Messages name the first of many, and say the first of what an error says."""

from __future__ import annotations

import pytest

from stages.wording import first_line, listed


@pytest.mark.parametrize(
    ("count", "told"), [(0, ""), (1, "a"), (2, "a, b"), (3, "a, b and 1 more"), (5, "a, b and 3 more")]
)
def test_the_first_are_named_and_the_rest_counted(count, told):
    assert listed(list("abcde")[:count], 2) == told


def test_an_error_is_its_first_line_or_its_type():
    assert first_line(ValueError("\n one\n two")) == "one"
    assert first_line(KeyboardInterrupt()) == "KeyboardInterrupt"
