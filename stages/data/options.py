"""What a config can say about data: where samples come from, which are taken, and how images become arrays.

All of it is part of the key, and a path is not. The classes are not frozen and say `Optional`, as OmegaConf needs it.
"""
# ruff: noqa: UP045

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import Any, Optional

from stages.allowed import require, require_at_least, require_word

INTERPOLATIONS = ("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos")
"""Pillow's, which averages over all pixels of an area that is made smaller."""

CHANNELS: Mapping[str, int] = {"rgb": 3, "bgr": 3, "gray": 1}
"""How many channels each color mode has."""

KINDS = ("arrays", "images", "dataset", "callable", "random")


@dataclass
class Images:
    """How image files become arrays, in this order: turned as EXIF says, color, resize, crop, range, mean, std, layout.

    Attributes:
        resize: `256`: the shorter side, the ratio is kept; `[224, 224]`: height and width exactly; null: as it is.
        crop: `224`, or height and width: cut out of the middle; null: nothing is cut off.
        color: `rgb`, `bgr` or `gray`.
        range: What the pixel values 0 and 255 become, such as `[0, 1]`; null for a model that takes uint8.
        mean: Taken off afterwards: one number, or one for each channel.
        std: Divided by afterwards: one number, or one for each channel.
        layout: `nchw` or `nhwc`.
        interpolation: `nearest`, `box`, `bilinear`, `hamming`, `bicubic` or `lanczos`.
    """

    resize: Any = None
    crop: Any = None
    color: str = "rgb"
    range: Optional[list[float]] = None
    mean: Optional[list[float]] = None
    std: Optional[list[float]] = None
    layout: str = "nchw"
    interpolation: str = "bilinear"

    def __post_init__(self) -> None:
        require_word(self, "color", tuple(CHANNELS))
        require_word(self, "layout", ("nchw", "nhwc"))
        require_word(self, "interpolation", INTERPOLATIONS)
        for key in ("resize", "crop"):
            value = getattr(self, key)
            require(value is None or _is_size(value), key, value, "a side in pixels, [height, width], or null")
        span = self.range
        fits = span is None or (len(span) == 2 and _finite(span) and span[0] < span[1])
        require(fits, "range", span, "[lowest, highest], or null")
        allowed = f"1 number, or {self.channels} for {self.color}"
        for key in ("mean", "std"):
            values = getattr(self, key)
            require(values is None or (len(values) in (1, self.channels) and _finite(values)), key, values, allowed)
        require(not self.std or all(value > 0 for value in self.std), "std", self.std, "numbers above 0")

    @property
    def channels(self) -> int:
        """How many each array has."""
        return CHANNELS[self.color]

    @property
    def size(self) -> tuple[int, int] | None:
        """Height and width of every array; None where it depends on the image."""
        if isinstance(self.crop, int):
            return (self.crop, self.crop)
        fixed = self.crop or self.resize
        return (fixed[0], fixed[1]) if isinstance(fixed, list) else None


@dataclass
class Dataset:
    """A Hugging Face dataset: the one at `path` (as `save_to_disk` leaves it, or Parquet files), or one of the hub.

    Attributes:
        name: Of the hub, such as `owner/name`; null: it is at `path`.
        revision: The hub's commit, 40 hexadecimal digits: a name alone means other rows tomorrow.
        subset: Which of its configurations, where it has several.
        split: Which split, such as `validation`; null where there is one only.
        columns: Model input by column; a column that is called as an input needs none.
    """

    name: Optional[str] = None
    revision: Optional[str] = None
    subset: Optional[str] = None
    split: Optional[str] = None
    columns: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.name is None:
            require(self.revision is None, "revision", self.revision, "null where there is no name of the hub")
            return
        commit = self.revision or ""
        pinned = len(commit) == 40 and all(digit in "0123456789abcdef" for digit in commit)
        allowed = "the hub's commit, 40 hexadecimal digits: a branch or a tag moves, so that no key could stand on it"
        require(pinned, "revision", self.revision, allowed)
        require(bool(self.split), "split", self.split, "the name of a split")


@dataclass
class Data:
    """Where samples come from and which are taken. Axis 0 is the sample axis.

    Attributes:
        images: How image files become arrays; null: `path` holds no images.
        dataset: Which Hugging Face dataset, and how its columns are called; null: it is none.
        callable: The user's own Python that gives the batches: `package.module:function`, or `script.py:function`
            (`load_data` where the function is not said).
        random: So many random samples, drawn within the profiles; null: none.
        batch_size: Samples per run; null: each file, image, row or feed is one batch.
        max_samples: Use only so many; null: all.
        order: Which these are: `given`: the first; `shuffled`: a random choice, in the order in which they stand.
        seed: Of that choice, and of random samples.
    """

    # OmegaConf cannot put a mapping where an optional dataclass is null; conf.compose holds them against theirs.
    images: Any = None  # Images
    dataset: Any = None  # Dataset
    callable: Optional[str] = None
    random: Optional[int] = None
    batch_size: Optional[int] = None
    max_samples: Optional[int] = None
    order: str = "given"
    seed: int = 0

    def __post_init__(self) -> None:
        require_at_least(self, 1, "random", "batch_size", "max_samples")
        require_at_least(self, 0, "seed")
        require_word(self, "order", ("given", "shuffled"))
        first, *others = [kind for kind in KINDS[1:] if getattr(self, kind) is not None] or [""]
        for other in others:
            require(False, other, getattr(self, other), f"null beside {first}: samples come from one place")
        ordered = self.callable is None or self.order == "given"
        require(ordered, "order", self.order, "given, beside callable: which samples it gives is for it to choose")

    @property
    def kind(self) -> str:
        """One of `KINDS`."""
        return next((kind for kind in KINDS[1:] if getattr(self, kind) is not None), KINDS[0])


def restored(values: Mapping[str, Any]) -> Data:
    """The `Data` that `dataclasses.asdict` made `values` of; what is not there has its default."""
    given = dict(values)
    for key, kind in (("images", Images), ("dataset", Dataset)):
        if given.get(key) is not None:
            given[key] = kind(**given[key])
    return Data(**given)


def _is_size(value: Any) -> bool:
    sides = value if isinstance(value, list) and len(value) == 2 else [value]
    return all(type(side) is int and side >= 1 for side in sides)


def _finite(values: Sequence[float]) -> bool:
    return all(isfinite(value) for value in values)
