"""Text that is handed to Hydra arrives as it was."""

from __future__ import annotations

from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from conf.quoting import quoted

SIGNS = st.text(st.sampled_from("a/\\'\" ${},=[]():\n\té"), max_size=12)


@given(SIGNS)
def test_any_text_is_what_the_config_holds(text):
    value = OverridesParser.create().parse_override(f"key={quoted(text)}").value()
    assert OmegaConf.create({"key": value}).key == text


@given(st.lists(SIGNS, min_size=1, max_size=3))
def test_so_it_is_in_a_list(texts):
    override = f"key=[{','.join(map(quoted, texts))}]"
    assert list(OmegaConf.create({"key": OverridesParser.create().parse_override(override).value()}).key) == texts
