"""Any text as a value of a Hydra override."""

from __future__ import annotations

import re

_BEFORE_QUOTE = re.compile(r"(\\*)('|\Z)")
_BEFORE_INTERPOLATION = re.compile(r"(\\*)\$\{")


def quoted(text: str) -> str:
    """`text` in quotes, so that neither Hydra nor OmegaConf reads anything into it.

    Hydra takes backslashes as they are but before a quote, where two stand for one; OmegaConf does the same before
    `${`.
    """
    plain = _BEFORE_INTERPOLATION.sub(lambda found: found[1] * 2 + r"\${", text)
    return "'" + _BEFORE_QUOTE.sub(lambda found: found[1] * 2 + (r"\'" if found[2] else ""), plain) + "'"
