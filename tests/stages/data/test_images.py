"""Image files become the arrays that the config declares, one at a time, and those that cannot are named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from stages.batches import Input, Limits
from stages.data.images import Pictures
from stages.data.options import Data, Images
from stages.data.reading import Batches
from stages.stage import StageError

LABELS = Input("labels", None, None)


def model(*shape: int | str, dtype: str = "float32") -> Input:
    return Input("x", dtype, ("n", *shape))


def pixels(height: int, width: int, channels: int = 3) -> np.ndarray:
    values = np.random.default_rng(height * width).integers(0, 256, (height, width, channels), np.uint8)
    return values if channels > 1 else values[:, :, 0]


def stored(path: Path, values: np.ndarray, **options: Any) -> Path:
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(values).save(path, **options)
    return path


def read(files: list[Path], wanted: Input, classes: list[int] | None = None, **how: Any) -> list[dict[str, Any]]:
    inputs = [wanted, *([LABELS] if classes else [])]
    options = {key: how.pop(key) for key in ("batch_size", "max_samples", "order", "seed") if key in how}
    images = Images(**how)
    return list(Batches(Pictures(files, inputs, images, classes), inputs, Data(images=images, **options)))


def one(path: Path, wanted: Input, **how: Any) -> np.ndarray:
    (batch,) = read([path], wanted, **how)
    return batch["x"][0]


def refused(files: list[Path], wanted: Input, **how: Any) -> StageError:
    with pytest.raises(StageError) as caught:
        read(files, wanted, **how)
    assert caught.value.next_step
    return caught.value


def test_range_mean_std_and_layout_are_those_that_are_declared(tmp_path: Path) -> None:
    values = pixels(5, 4)
    path = stored(tmp_path / "a.png", values)
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    found = one(path, model(3, 5, 4), range=[0, 1], mean=mean, std=std)
    expected = ((values / np.float32(255)) - np.float32(mean)) / np.float32(std)
    np.testing.assert_array_equal(found, expected.transpose(2, 0, 1))
    assert found.dtype == np.float32
    last = one(path, model(5, 4, 3), range=[-1, 1], layout="nhwc")
    np.testing.assert_allclose(last, values / 127.5 - 1, atol=1e-6)


@pytest.mark.parametrize("dtype", ["uint8", "float16", "float32"])
def test_pixel_values_stay_as_they_are_where_that_is_asked_for(tmp_path: Path, dtype: str) -> None:
    values = pixels(3, 3)
    options = {} if dtype == "uint8" else {"range": [0, 255]}
    found = one(stored(tmp_path / "a.png", values), model(3, 3, 3, dtype=dtype), layout="nhwc", **options)
    assert found.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(found, values)


def test_colors(tmp_path: Path) -> None:
    values = pixels(3, 3)
    path = stored(tmp_path / "a.png", values)
    rgb, bgr = (one(path, model(3, 3, 3, dtype="uint8"), color=color) for color in ("rgb", "bgr"))
    np.testing.assert_array_equal(rgb, bgr[::-1])
    gray = one(path, model(1, 3, 3, dtype="uint8"), color="gray")
    np.testing.assert_array_equal(gray[0], np.asarray(Image.fromarray(values).convert("L")))
    from_gray = one(stored(tmp_path / "g.png", pixels(3, 3, 1)), model(3, 3, 3, dtype="uint8"))
    np.testing.assert_array_equal(from_gray[0], from_gray[2])


@pytest.mark.parametrize(
    ("resize", "size"), [(8, (8, 13)), (16, (16, 26)), ([6, 5], (6, 5))], ids=["smaller", "larger", "exact"]
)
def test_resizing_keeps_the_ratio_or_is_exact(tmp_path: Path, resize: Any, size: tuple[int, int]) -> None:
    values = pixels(12, 20)
    found = one(stored(tmp_path / "a.png", values), model("c", "h", "w", dtype="uint8"), resize=resize)
    expected = Image.fromarray(values).resize(size[::-1], Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(found, np.asarray(expected).transpose(2, 0, 1))


def test_the_interpolation_is_the_declared_one(tmp_path: Path) -> None:
    path = stored(tmp_path / "a.png", pixels(12, 20))
    ways = ("nearest", "bilinear", "bicubic", "lanczos")
    found = [one(path, model(3, 6, 6, dtype="uint8"), resize=[6, 6], interpolation=way).tobytes() for way in ways]
    assert len(set(found)) == len(ways)


def test_the_crop_is_the_middle(tmp_path: Path) -> None:
    values = pixels(7, 10)
    found = one(stored(tmp_path / "a.png", values), model(4, 5, 3, dtype="uint8"), crop=[4, 5], layout="nhwc")
    np.testing.assert_array_equal(found, values[2:6, 2:7])  # torchvision: round(1.5) and round(2.5) are both 2


def test_a_photo_is_turned_as_its_camera_said(tmp_path: Path) -> None:
    values, exif = pixels(4, 6), Image.Exif()
    exif[0x0112] = 6  # the camera was held turned to the right
    path = stored(tmp_path / "a.png", values, exif=exif)
    found = one(path, model(6, 4, 3, dtype="uint8"), layout="nhwc")
    np.testing.assert_array_equal(found, np.rot90(values, -1))


def test_labels_are_numbers_of_the_subdirectories(tmp_path: Path) -> None:
    files = [stored(tmp_path / f"{index}.png", pixels(2, 2)) for index in range(5)]
    batches = read(files, model(3, 2, 2, dtype="uint8"), [2, 0, 3], batch_size=2)
    assert [batch["labels"].tolist() for batch in batches] == [[0, 0], [2, 2], [2]]
    with pytest.raises(StageError, match="no 'labels' of images that stand in no subdirectories"):
        Pictures(files, [model(3, 2, 2), LABELS], Images(range=[0, 1])).count()


def test_images_come_one_by_one_or_in_batches_or_as_the_model_takes_them(tmp_path: Path) -> None:
    files = [stored(tmp_path / f"{index}.png", pixels(2, 2)) for index in range(6)]
    free, fixed = model(3, 2, 2, dtype="uint8"), Input("x", "uint8", (3, 3, 2, 2))
    assert [len(batch["x"]) for batch in read(files, free)] == [1] * 6
    assert [len(batch["x"]) for batch in read(files, free, batch_size=4)] == [4, 2]
    assert [len(batch["x"]) for batch in read(files, fixed)] == [3, 3]
    assert len(read(files, free, max_samples=2)) == 2


def test_only_the_images_that_are_taken_are_decoded(tmp_path: Path) -> None:
    files = [stored(tmp_path / f"{index}.png", pixels(2, 2)) for index in range(3)]
    files[2].write_bytes(b"damaged")
    assert len(read(files, model(3, 2, 2, dtype="uint8"), max_samples=2)) == 2


@pytest.mark.parametrize("how", ["empty", "cut short", "no image"])
def test_an_image_that_cannot_be_decoded_is_named(tmp_path: Path, how: str) -> None:
    good, bad = (stored(tmp_path / f"{name}.png", pixels(40, 40)) for name in ("good", "bad"))
    content = bad.read_bytes()
    bad.write_bytes({"empty": b"", "cut short": content[: len(content) // 2], "no image": b"hello"}[how])
    message = str(refused([good, bad], model(3, 40, 40, dtype="uint8")))
    assert str(bad) in message
    assert "cannot be decoded" in message


def test_more_than_eight_bits_a_pixel_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "deep.png"
    Image.fromarray(np.full((4, 4), 40_000, np.uint16)).save(path)
    assert f"{path}: its pixels have more than 8 bits" in str(refused([path], model(3, 4, 4, dtype="uint8")))


@pytest.mark.parametrize(
    ("wanted", "how", "says"),
    [
        (model(3, 8, 8), {}, "images.range does not say"),
        (model(3, 8, 8, dtype="uint8"), {"range": [0, 1]}, "'x' is uint8: it takes pixel values as they are"),
        (model(3, 8, 8, dtype="int64"), {}, "'x' is int64: images become floats or uint8"),
        (model(3, 8, 8), {"range": [0, 1], "crop": 4}, "the images: 'x' is float32 (1, 3, 4, 4)"),
        (model(3, 8, 8), {"range": [0, 1], "resize": 5}, "a.png: 'x' is float32 (1, 3, 5, 5)"),
        (model(8, 8, 3), {"range": [0, 1]}, "a.png: 'x' is float32 (1, 3, 8, 8)"),
        (model(3, 8, 8), {"range": [0, 1], "crop": 9}, "is float32 (1, 3, 9, 9)"),
        (model(3, "h", "w"), {"range": [0, 1], "crop": 9}, "8 high and 8 wide, and the crop 9 and 9"),
    ],
)
def test_what_does_not_fit_the_model_is_said(tmp_path: Path, wanted: Input, how: dict[str, Any], says: str) -> None:
    assert says in str(refused([stored(tmp_path / "a.png", pixels(8, 8))], wanted, **how))


def test_images_outside_of_every_profile_are_refused_before_one_is_decoded(tmp_path: Path) -> None:
    limits = [Limits("default", {"x": ((3, 224, 224), (3, 640, 640))})]
    how = Images(crop=64, range=[0, 1])
    source = Pictures([tmp_path / "not there"], [model(3, "h", "w")], how, None, limits)
    with pytest.raises(StageError, match=r"the images: a sample of 'x' is \(3, 64, 64\), profile 'default' takes"):
        source.count()


def test_a_model_with_several_inputs_is_refused() -> None:
    source = Pictures([], [model(3, 8, 8), Input("k", "int64", ("n",))], Images(range=[0, 1]))
    with pytest.raises(StageError, match="images feed a model with one input, and this has 2: x, k"):
        source.count()
