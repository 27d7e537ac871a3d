"""Options of data that make no sense are refused while a config is composed."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest

from conf.compose import compose
from conf.errors import ConfigError
from stages.data.options import Data, Dataset, Images, restored

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("calibration.order=sorted", "order: got 'sorted'; allowed: given, shuffled"),
        ("calibration.seed=-1", "seed: got -1; allowed: 0 and more"),
        ("holdout.batch_size=0", "batch_size: got 0; allowed: 1 and more, or null"),
        ("calibration.images.color=blue", "images.color: got 'blue'; allowed: rgb, bgr, gray"),
        ("calibration.images.resize=0", "images.resize: got 0; allowed: a side in pixels, [height, width], or null"),
        ("calibration.images.resize=[1,2,3]", "images.resize: got [1, 2, 3]"),
        ("calibration.images.range=[1,0]", "images.range: got [1.0, 0.0]; allowed: [lowest, highest], or null"),
        ("calibration.images.mean=[1,2]", "images.mean: got [1.0, 2.0]; allowed: 1 number, or 3 for rgb"),
        ("calibration.images.std=[0]", "images.std: got [0.0]; allowed: numbers above 0"),
        ("calibration.dataset.name=a/b", "dataset.revision: got None; allowed: the hub's commit"),
        ("calibration.dataset={name: a/b, revision: main, split: x}", "dataset.revision: got 'main'"),
        (f"calibration.dataset={{name: a/b, revision: {COMMIT}}}", "dataset.split: got None"),
        ("calibration={random: 4, callable: 'a:b'}", "random: got 4; allowed: null beside callable"),
        ("calibration={order: shuffled, callable: 'a:b'}", "order: got 'shuffled'; allowed: given, beside callable"),
    ],
)
def test_a_wrong_option_is_refused_with_its_key(override: str, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        compose([f"model.{override}"])
    assert caught.value.what.startswith(f"model.{override.partition('.')[0].partition('=')[0]}.{says}")


def test_options_that_are_null_by_default_can_be_given_one_by_one() -> None:
    config = compose(["model.calibration.images.resize=256", "model.calibration.images.range=[0,1]"])
    assert config.model.calibration.images == Images(resize=256, range=[0, 1])
    assert config.model.holdout.images is None
    both = compose(["model.calibration.images={crop: 8, layout: nhwc}", "model.calibration.images.crop=[4,5]"])
    assert both.model.calibration.images == Images(crop=[4, 5], layout="nhwc")


@pytest.mark.parametrize(
    ("given", "kind"),
    [
        ({}, "arrays"),
        ({"images": Images(crop=[2, 3])}, "images"),
        ({"dataset": Dataset("a/b", COMMIT, split="test", columns={"a": "x"})}, "dataset"),
        ({"callable": "a:b"}, "callable"),
        ({"random": 3, "order": "shuffled"}, "random"),
    ],
)
def test_options_come_back_as_they_were(given: dict[str, Any], kind: str) -> None:
    data = Data(**given)
    assert restored(asdict(data)) == data
    assert data.kind == kind


@pytest.mark.parametrize(
    ("how", "size"),
    [({}, None), ({"resize": 8}, None), ({"resize": [4, 8]}, (4, 8)), ({"resize": 9, "crop": 8}, (8, 8)),
     ({"resize": [9, 9], "crop": [4, 8]}, (4, 8))],
)  # fmt: skip
def test_the_size_of_images_is_known_where_it_is_declared(how: dict[str, Any], size: Any) -> None:
    assert Images(**how).size == size
