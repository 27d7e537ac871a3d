"""What `make reproducibility` says of plans that were built from one key."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.reproducibility import Compared, compared
from tests.stages.test_plan import rtx_plan


@pytest.mark.parametrize(
    ("bodies", "said"),
    [
        ([b"engineweights"] * 4, Compared(plans=1, weights=1, differing_bytes=0, sizes=1)),
        ([b"engineweights", b"enginEweights", b"ENgineweights"], Compared(3, weights=1, differing_bytes=3, sizes=1)),
        ([b"engineweights", b"engineWeights"], Compared(plans=2, weights=2, differing_bytes=1, sizes=1)),
        ([b"engineweights", b"engineweights and more"], Compared(plans=2, weights=1, differing_bytes=0, sizes=2)),
    ],
    ids=["the same bytes", "names differ", "weights differ", "sizes differ"],
)
def test_plans_are_compared_as_a_whole_and_by_their_weights(
    bodies: list[bytes], said: Compared, tmp_path: Path
) -> None:
    paths = [tmp_path / str(number) for number in range(len(bodies))]
    for path, body in zip(paths, bodies, strict=True):
        path.write_bytes(rtx_plan(body=body))
    assert compared(paths) == said
