"""A config goes to JSON and back unchanged, type for type, or not at all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from conf import plain
from conf.compose import compose
from conf.schema import Config

FLOWS = Path(__file__).parents[2] / "conf" / "flow"


@pytest.mark.parametrize("flow", sorted(path.stem for path in FLOWS.glob("*.yaml")))
def test_every_shipped_flow_comes_back_as_it_was(flow: str) -> None:
    config = compose([f"flow={flow}", "model.profiles.p.images={min: [1], opt: [2], max: [3]}", "gates.plan_bytes=5"])
    text = plain.dumps(config)
    assert text is not None
    assert repr(plain.loads(text)) == repr(config)
    assert plain.loads(text) == config


@pytest.mark.parametrize("odd", [(1, 2), {1: "a"}, {"set"}, b"bytes", 1j])
def test_what_json_cannot_say_is_not_kept(odd: object) -> None:
    assert plain.dumps(Config(flow="x", steps={"odd": odd})) is None


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "nonsense",
        "{}",
        json.dumps({"class": "os:system", "value": "true"}),
        json.dumps({"class": "conf.schema:require", "value": {}}),
        json.dumps({"class": "conf.schema:Config", "value": {"nothing": 1}}),
        json.dumps({"class": "conf.schema:Backend", "value": {"name": "x"}}),
    ],
)
def test_what_is_no_config_is_refused_and_nothing_is_called(text: str) -> None:
    with pytest.raises(ValueError):
        plain.loads(text)
