"""Amounts as people write them."""

from __future__ import annotations

import pytest

from stages.sizes import size_bytes


@pytest.mark.parametrize(
    ("text", "size"), [("1024", 1024), ("2GiB", 2 << 30), (" 1.5 kB ", 1500), ("0", 0), (7, 7), ("0.5KiB", 512)]
)
def test_an_amount_is_so_many_bytes(text, size):
    assert size_bytes(text) == size


@pytest.mark.parametrize("text", ["", "many", "-1", "1 gib", "2 GiB more", "1e9", "nan", "GiB"])
def test_what_is_no_amount_is_none(text):
    assert size_bytes(text) is None
