"""What a config may list as passes, and how a wrong one is refused before anything runs."""

from __future__ import annotations

from typing import Any

import pytest

from stages.allowed import NotAllowedError
from stages.passes import PASSES, entries, named
from stages.surgery import DEFAULT, SurgeryConfig


def test_a_name_is_an_entry_with_every_option_at_its_default() -> None:
    assert entries.checked(["fold"], "passes") == [
        {"pass": "fold", "max_bytes": 1048576, "max_growth_bytes": 8388608, "changes_results": False}
    ]


def test_two_ways_to_say_the_same_are_one_config() -> None:
    assert SurgeryConfig(passes=[{"pass": "fold", "max_bytes": 1048576}]) == SurgeryConfig(passes=["fold"])


def test_what_was_checked_is_allowed_again() -> None:
    config = SurgeryConfig(first=[{"pass": "set_dims", "dims": {"n": 2}}], then=["my.own"])
    assert SurgeryConfig(passes=config.passes, first=config.first, then=config.then) == config


def test_the_default_lists_passes_that_there_are() -> None:
    assert set(DEFAULT) <= set(PASSES)
    assert all(named(name).name == name for name in PASSES)
    assert list(PASSES) == sorted(PASSES)


def test_a_dot_makes_it_the_users_own_and_its_options_are_the_users() -> None:
    config = SurgeryConfig(then=[{"pass": "net.passes.prune", "share": 0.5}, "net.other"])
    assert config.own_passes == ["net.passes.prune", "net.other"]
    assert entries.listed(config.then)[0].options == {"share": 0.5}


@pytest.mark.parametrize(
    ("entry", "key", "words"),
    [
        ("fodl", "passes[0]", "did you mean fold?"),
        ({"pass": "fold", "max_byte": 1}, "passes[0].max_byte", "did you mean max_bytes?"),
        ({"pass": "fold", "max_bytes": "1"}, "passes[0].max_bytes", "a whole number"),
        ({"pass": "fold", "max_bytes": True}, "passes[0].max_bytes", "a whole number"),
        ({"pass": "fold", "max_bytes": -1}, "passes[0].max_bytes", "0 and more"),
        ({"pass": "fold", "changes_results": 1}, "passes[0].changes_results", "true, false"),
        ({"pass": "mark_outputs"}, "passes[0].tensors", "needs it"),
        ({"pass": "mark_outputs", "tensors": [1]}, "passes[0].tensors", "a list"),
        ({"pass": "set_dims", "dims": {"n": 1.5}}, "passes[0].dims", "a whole number"),
        ({"pass": "cast_io", "inputs": {"x": "half"}}, "passes[0].inputs.x", "float16"),
        ({"max_bytes": 1}, "passes[0]", "the name of a pass"),
        (3, "passes[0]", "the name of a pass"),
    ],
)
def test_a_wrong_entry_is_refused_with_its_place_and_what_is_allowed(entry: Any, key: str, words: str) -> None:
    with pytest.raises(NotAllowedError) as caught:
        SurgeryConfig(passes=[entry])
    assert caught.value.key == key
    assert words in caught.value.allowed
    assert "\n" not in str(caught.value)
