"""The data that a model's config names: the files, and what else batches depend on beside the files' content.

The content of every file is an input of the steps that read them, and no path is part of a key. What remains is one
fact for `model.calibration` and one for `model.holdout`, which `stages.data.reading` reads.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, fields
from itertools import groupby
from pathlib import Path
from typing import Any

from conf.errors import ConfigError
from conf.schema import Calibration, Holdout
from pipelines import sources
from stages import installed
from stages.data.options import Data
from stages.stage import JSON

ARRAYS = (".npz", ".npy")
IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
PARQUET = (".parquet",)
SAVED = (".arrow", ".json")
"""Suffixes of what each kind of source is read from; those of a saved dataset belong together."""

EXTRAS: Mapping[str, tuple[str, ...]] = {"images": ("pillow",), "dataset": ("datasets", "pyarrow")}
"""The distributions that decide what is read of each kind."""

SPLITS = "dataset_dict.json"
"""What `DatasetDict.save_to_disk` leaves beside a directory for each split."""

SCRIPT = ".py:"


def files(name: str, data: Calibration | Holdout) -> dict[str, Sequence[Path]]:
    """The files of `model.<name>`, and as `<name>_source` the user's own Python that gives batches.

    Args:
        name: `calibration` or `holdout`.
        data: What the config says of it.

    Returns:
        dict: Empty where the model has no such data.

    Raises:
        ConfigError: A path is missing, not there, or holds nothing of the kind; or a callable is not found.
    """
    key = f"model.{name}"
    if data.kind == "arrays" and not data.path:
        return {}
    found: dict[str, Sequence[Path]] = {name: _FILES[data.kind](key, data)}
    if data.callable is not None:
        module, script = callable_of(f"{key}.callable", data.callable)
        own = f"{key}.callable"
        found[f"{name}_source"] = sources.script(script, own) if script else sources.modules(module, key=own)
    return found


def fact(
    name: str, data: Calibration | Holdout, given: Mapping[str, Sequence[Path]], profiles: Mapping[str, Any]
) -> dict[str, JSON] | None:
    """What the batches of `model.<name>` depend on beside their files' content: the fact of that name.

    Args:
        name: `calibration` or `holdout`.
        data: What the config says of it.
        given: What `files` gave.
        profiles: The fact `profiles`.

    Returns:
        dict: The fields of `stages.data.options.Data`, and `packages`: the versions of what reads them; `classes`: how
        many images each subdirectory holds; `shapes`: the least and the largest sample of each profile; `profiles`:
        all of them, for random samples only; `held`, where the model has shape tensors: what each holds. None where the
        model has no such data.

    Raises:
        ConfigError: What is needed to read them is not installed.
    """
    if name not in given:
        return None
    options: dict[str, JSON] = {each.name: _plain(getattr(data, each.name)) for each in fields(Data)}
    if data.callable is not None:
        module, script = callable_of(f"model.{name}.callable", data.callable)
        options["callable"] = f"{SCRIPT}{module.partition(':')[2]}" if script else module
    sampled = {
        profile: {each: ends for each, ends in inputs.items() if not ends.get("values")}
        for profile, inputs in profiles.items()
    }
    held = _held(profiles)
    return {
        **options,
        "packages": _packages(name, data),
        "classes": _classes(given[name], Path(data.path)) if data.images and data.path else None,
        "shapes": _samples(sampled),
        "profiles": sampled if data.random else None,
        **({"held": held} if held else {}),
    }


def _held(profiles: Mapping[str, Any]) -> dict[str, JSON]:
    """What each shape tensor holds while data are read: samples have none, so the first profile's opt."""
    first: Mapping[str, Any] = next((profiles[name] for name in sorted(profiles)), {})
    return {each: list(ends["opt"]) for each, ends in first.items() if ends.get("values")}


def _plain(value: Any) -> Any:
    return asdict(value) if hasattr(value, "__dataclass_fields__") else value


def _samples(profiles: Mapping[str, Any]) -> dict[str, JSON]:
    """The profiles without the first dim: how many samples go into a batch is no matter of a sample's shape."""
    return {
        profile: {each: {end: list(shapes[end][1:]) for end in ("min", "max")} for each, shapes in inputs.items()}
        for profile, inputs in profiles.items()
    }


def _packages(name: str, data: Data) -> dict[str, JSON]:
    if data.callable is not None:
        module, script = callable_of(f"model.{name}.callable", data.callable)
        key = f"model.{name}.callable"
        return dict(sources.script_packages(script, key) if script else sources.packages(module, key=key))
    versions: dict[str, JSON] = {}
    for package in EXTRAS.get(data.kind, ()):
        versions[package] = installed.version(package)
        if versions[package] is None:
            extra = {"images": "images", "dataset": "datasets"}[data.kind]
            raise ConfigError(
                f"model.{name}.{data.kind}: {package} is not installed", f"pip install 'trtforge[{extra}]'"
            )
    return versions


def callable_of(key: str, text: str, default: str = "load_data") -> tuple[str, Path | None]:
    """`module:function` and no script, or `:function` and the script.

    Args:
        key: Of the config.
        text: What it says.
        default: The function of a script that names none.

    Raises:
        ConfigError: It names no function, or a script that is not there.
    """
    place, _, function = text.rpartition(":") if not text.endswith(".py") else (text, "", default)
    if place.endswith(".py"):
        script = Path(place)
        if not script.is_file():
            raise ConfigError(f"{key}={text}: no such file: {script}", "give a script that is there")
        return f":{function}", script.absolute()
    if not place or not function:
        raise ConfigError(f"{key} is {text!r}", f"say which: {key}=package.module:function, or script.py:function")
    return text, None


def arrays(key: str, text: str) -> list[Path]:
    """The `.npz` and `.npy` files that `text` says: one, or those of a directory by name; none of one without.

    Raises:
        ConfigError: There is no such file.
    """
    path = Path(text)
    if not path.is_dir():
        return [sources.existing(key, text)]
    return sorted(file.absolute() for file in path.iterdir() if file.suffix in ARRAYS)


def _arrays(key: str, data: Calibration | Holdout) -> list[Path]:
    path = Path(data.path or "")
    found = arrays(f"{key}.path", str(data.path))
    if not found:
        there = {suffix for file in path.rglob("*") if (suffix := file.suffix.lower())}
        next_step = "put the batches there"
        if there & set(IMAGES):
            next_step = f"say how images become arrays: {key}.images={{resize: 256, crop: 224, range: [0, 1]}}"
        elif there & {*PARQUET, ".arrow"}:
            next_step = f"say that it is a dataset, and its split: {key}.dataset.split=NAME"
        raise ConfigError(f"{key}.path={data.path}: the directory holds no .npz or .npy file", next_step)
    return found


def _images(key: str, data: Calibration | Holdout) -> list[Path]:
    path = _path(key, data, "the directory of the images")
    return _with_suffix(f"{key}.path={data.path}", path, IMAGES, "image") if path.is_dir() else [path]


def _dataset(key: str, data: Calibration | Holdout) -> list[Path]:
    assert data.dataset is not None  # noqa: S101 - for mypy
    if data.dataset.name is not None:
        _refuse_path(key, data, "dataset.name")
        return []
    path, split = _path(key, data, "the dataset, or its name on the hub as dataset.name"), data.dataset.split
    where = f"{key}.path={data.path}"
    if path.is_file():
        return [path]
    if (path / SPLITS).is_file():
        splits = sorted(child.name for child in path.iterdir() if child.is_dir())
        if split not in splits:
            raise ConfigError(
                f"{key}.dataset.split is {split!r}; the dataset has {', '.join(splits)}", "name one of them"
            )
        path = path / str(split)
    if any(path.glob("*.arrow")):
        return _with_suffix(where, path, SAVED, "dataset")
    found = _with_suffix(where, path, PARQUET, "Parquet")
    chosen = [file for file in found if split is None or file.name.startswith(split)]
    if not chosen:
        raise ConfigError(
            f"{key}.dataset.split is {split!r}; no file begins so: {', '.join(file.name for file in found[:5])}",
            "leave the split out, or name the files SPLIT-….parquet",
        )
    return chosen


def _of_callable(key: str, data: Calibration | Holdout) -> list[Path]:
    if not data.path:
        return []
    path = _path(key, data, "")
    if path.is_file():
        return [path]
    return _sorted(path, (file for file in path.rglob("*") if file.is_file()))


def _random(key: str, data: Calibration | Holdout) -> list[Path]:
    _refuse_path(key, data, "random")
    return []


_FILES = {
    "arrays": _arrays,
    "images": _images,
    "dataset": _dataset,
    "callable": _of_callable,
    "random": _random,
}


def _refuse_path(key: str, data: Calibration | Holdout, beside: str) -> None:
    if data.path:
        raise ConfigError(
            f"{key}.path is {data.path}, and {key}.{beside} is given, too: samples come from one place",
            f"leave one of them out: {key}.path=null",
        )


def _path(key: str, data: Calibration | Holdout, what: str) -> Path:
    if not data.path:
        raise ConfigError(f"{key}.path is not given", f"give {what}: {key}.path=…")
    path = Path(data.path)
    if not path.exists():
        raise ConfigError(f"{key}.path={data.path}: no such file", f"give an existing path: {key}.path=…")
    return path.absolute()


def _with_suffix(where: str, path: Path, suffixes: Sequence[str], what: str) -> list[Path]:
    found = _sorted(path, (file for file in path.rglob("*") if file.suffix.lower() in suffixes and file.is_file()))
    if not found:
        raise ConfigError(f"{where}: the directory holds no {what} file ({', '.join(suffixes)})", "put them there")
    return found


def _sorted(root: Path, found: Iterable[Path]) -> list[Path]:
    """By directory, then by name, so that the files of a subdirectory stand together; hidden ones are left out."""
    parts = {file: file.relative_to(root).parts for file in found}
    return sorted((file for file in parts if not any(part.startswith(".") for part in parts[file])), key=parts.get)  # type: ignore[arg-type]


def _classes(found: Sequence[Path], root: Path) -> list[int] | None:
    """How many images each subdirectory of `root` holds, in order; None where images stand in `root` itself."""
    tops = [file.relative_to(root.absolute()).parts[:-1][:1] for file in found] if root.is_dir() else [()]
    return [len(list(group)) for _, group in groupby(tops)] if all(tops) else None
