"""Image files, decoded one at a time and made into arrays as the config declares (`stages.data.options.Images`).

Sizes follow torchvision: the longer side of a resized image is rounded down, and a crop lies in the middle, rounded
half to even.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages import batches
from stages.batches import Header, Input, Limits
from stages.data.options import Images
from stages.stage import StageError
from stages.wording import first_line

if TYPE_CHECKING:
    from PIL.Image import Image

    from stages.batches import Array, Batch

DEEP = ("I", "F")
"""How Pillow's modes of more than 8 bits a pixel begin; making 8 of them would clip, not scale."""


@dataclass(frozen=True)
class Pictures:
    """A set of image files.

    Attributes:
        files: In the order that counts.
        inputs: The model's one input, and the labels where they are wanted.
        how: How an image becomes an array.
        classes: How many files each class has, in order; None where the files stand in no subdirectories.
        limits: What the profiles take.
    """

    files: Sequence[Path]
    inputs: Sequence[Input]
    how: Images
    classes: Sequence[int] | None = None
    limits: Sequence[Limits] = ()

    def count(self) -> int:
        """How many images there are; whether the arrays will fit the model is checked as far as that is known.

        Raises:
            StageError: Pillow is missing, the model does not take images like these, or labels are wanted without
                subdirectories.
        """
        _require_pillow()
        image, *others = (wanted for wanted in self.inputs if wanted.dtype is not None)
        if others:
            raise StageError(
                f"images feed a model with one input, and this has {1 + len(others)}: "
                f"{', '.join(wanted.name for wanted in self.inputs)}",
                "let a function of your own give the batches: callable=package.module:function",
            )
        self._require_type(image)
        if self._labels and self.classes is None:
            raise StageError(
                f"no {self._labels!r} of images that stand in no subdirectories",
                "sort the images into one subdirectory for each class, or ask for no labels",
            )
        if self.how.size is not None:
            shape = self._shape(*self.how.size)
            batches.require_fit("the images", {image.name: Header(shape, _dtype(image))}, [image], self.limits)
        return len(self.files)

    def pieces(self, chosen: Sequence[int], rows: int | None) -> Iterator[Batch]:
        """Each of the images `chosen`, as a piece of one sample.

        Raises:
            StageError: An image is damaged, or does not fit the model; names it.
        """
        import numpy as np

        labels = self._numbered()
        image = next(wanted for wanted in self.inputs if wanted.dtype is not None)
        for index in chosen:
            path = self.files[index]
            piece: Batch = {image.name: self._array(path, image)[None]}
            batches.require_fit(str(path), {image.name: Header.of(piece[image.name])}, [image], self.limits)
            if self._labels:
                piece[self._labels] = np.array([labels[index]])
            yield piece

    @property
    def _labels(self) -> str | None:
        return next((wanted.name for wanted in self.inputs if wanted.dtype is None), None)

    def _numbered(self) -> Array:
        """The class of each file."""
        import numpy as np

        ends = list(accumulate(self.classes or ()))
        return np.searchsorted(ends, np.arange(len(self.files)), side="right")

    def _require_type(self, image: Input) -> None:
        is_float, has_range = "float" in str(image.dtype), self.how.range is not None
        if not is_float and image.dtype != "uint8":
            raise StageError(
                f"{image.name!r} is {image.dtype}: images become floats or uint8",
                "let a function of your own give the batches: callable=package.module:function",
            )
        if is_float and not has_range:
            raise StageError(
                f"{image.name!r} is {image.dtype}, and images.range does not say what pixel values 0 and 255 become",
                "give it as the model was trained: images.range=[0,1], [-1,1] or [0,255]",
            )
        if not is_float and (has_range or self.how.mean or self.how.std):
            raise StageError(
                f"{image.name!r} is uint8: it takes pixel values as they are",
                "leave out range, mean and std of images",
            )

    def _shape(self, height: int, width: int) -> tuple[int, ...]:
        channels = self.how.channels
        return (1, channels, height, width) if self.how.layout == "nchw" else (1, height, width, channels)

    def _array(self, path: Path, wanted: Input) -> Array:
        """`(C, H, W)` or `(H, W, C)`, as the layout says."""
        import numpy as np

        pixels = np.asarray(_prepared(path, self.how))
        pixels = pixels[:, :, None] if pixels.ndim == 2 else pixels
        pixels = pixels[:, :, ::-1] if self.how.color == "bgr" else pixels
        if self.how.range is not None:
            pixels = self._normalized(pixels)
        ordered = pixels.transpose(2, 0, 1) if self.how.layout == "nchw" else pixels
        return np.ascontiguousarray(ordered, dtype=_dtype(wanted))

    def _normalized(self, pixels: Array) -> Array:
        import numpy as np

        low, high = np.asarray(self.how.range, np.float32)
        values: Array = pixels.astype(np.float32) / np.float32(255) * (high - low) + low
        if self.how.mean is not None:
            values = values - np.asarray(self.how.mean, np.float32)
        if self.how.std is not None:
            values = values / np.asarray(self.how.std, np.float32)
        return values


def _prepared(path: Path, how: Images) -> Image:
    """The image at `path`, turned, in its color mode, resized and cropped.

    Raises:
        StageError: It cannot be decoded, has more than 8 bits a pixel and channel, or is smaller than the crop.
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as opened:
            if opened.mode.startswith(DEEP):
                raise StageError(
                    f"{path}: its pixels have more than 8 bits (Pillow's mode {opened.mode})",
                    "convert it, or let a function of your own give the batches: callable=package.module:function",
                )
            image: Image.Image = ImageOps.exif_transpose(opened).convert("L" if how.color == "gray" else "RGB")
    except StageError:
        raise
    except Exception as error:  # Pillow's decoders raise what they like: OSError, SyntaxError, struct.error, …
        reason = first_line(error)
        raise StageError(f"{path}: cannot be decoded: {reason}", "copy the image again, or take it out") from error
    if how.resize is not None:
        image = image.resize(_resized(image.size, how.resize), Image.Resampling[how.interpolation.upper()])
    return image if how.crop is None else _cropped(image, how.crop, path)


def _resized(size: tuple[int, int], asked: Any) -> tuple[int, int]:
    """Width and height, of an image of width and height `size`."""
    if isinstance(asked, list):
        return (asked[1], asked[0])
    width, height = size
    shorter = min(size)
    return (asked * width // shorter, asked * height // shorter)


def _cropped(image: Image, asked: Any, path: Path) -> Image:
    height, width = asked if isinstance(asked, list) else (asked, asked)
    if image.width < width or image.height < height:
        raise StageError(
            f"{path}: the image is {image.height} high and {image.width} wide, and the crop {height} and {width}",
            "resize it first: images.resize, at least as large as images.crop",
        )
    left, top = round((image.width - width) / 2), round((image.height - height) / 2)
    return image.crop((left, top, left + width, top + height))


def _dtype(wanted: Input) -> Any:
    import numpy as np

    return np.dtype(str(wanted.dtype))


def _require_pillow() -> None:
    try:
        import PIL  # noqa: F401
    except ImportError as error:
        raise StageError("images need Pillow, which is not installed here", "pip install 'trtforge[images]'") from error
