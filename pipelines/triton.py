"""Writes published plans as a model repository of the Triton Inference Server.

    <repository>/<model>/config.pbtxt
    <repository>/<model>/3/sm_86.plan, sm_89.plan

One model holds the plans of all targets: `cc_model_filenames` tells Triton which file is for which compute capability.
The configuration is a text protobuf of Triton's `ModelConfig`.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from artifacts import digest
from artifacts.record import Blob, Record
from artifacts.store import Store
from conf.errors import ConfigError
from pipelines import lookup
from stages import STAGES, profiles
from stages.gpus import architecture, capabilities
from stages.stage import Job, StageError

TYPES: Mapping[str, str] = {
    "bool": "TYPE_BOOL",
    "uint8": "TYPE_UINT8",
    "int8": "TYPE_INT8",
    "int32": "TYPE_INT32",
    "int64": "TYPE_INT64",
    "float16": "TYPE_FP16",
    "bfloat16": "TYPE_BF16",
    "float32": "TYPE_FP32",
}
"""Triton's names of element types, by NumPy's."""

NOT_TENSORRT = (
    "Triton's backend `tensorrt` loads plans of TensorRT; to serve these, it needs a backend that loads TensorRT-RTX's"
)


@dataclass(frozen=True)
class Tensor:
    """An input or output of a plan.

    Attributes:
        name: Its name.
        dtype: In numpy's words.
        shape: A number for each fixed dim; None or a name for others.
        is_shape: Whether it holds a shape.
    """

    name: str
    dtype: str
    shape: Sequence[int | str | None]
    is_shape: bool = False


@dataclass(frozen=True)
class Face:
    """What a plan looks like from outside.

    Attributes:
        inputs: What it takes.
        outputs: What it gives.
        profiles: Its optimization profiles.
    """

    inputs: Sequence[Tensor]
    outputs: Sequence[Tensor]
    profiles: Sequence[profiles.Profile]

    @property
    def max_batch_size(self) -> int:
        """How many samples Triton may put together: what every profile takes.

        0 where it may not: the first dims of all inputs and outputs do not have one name, or 1 is too few.
        """
        names = {tensor.shape[0] if tensor.shape else None for tensor in (*self.inputs, *self.outputs)}
        if len(names) != 1 or not all(isinstance(name, str) for name in names) or any(t.is_shape for t in self.inputs):
            return 0
        ends = [
            {(profile.ranges[tensor.name].min[0], profile.ranges[tensor.name].max[0]) for tensor in self.inputs}
            for profile in self.profiles
        ]
        same = all(len(each) == 1 and min(each)[0] == 1 for each in ends)
        return min((min(each)[1] for each in ends), default=0) if same else 0


def write(store: Store, repository: Path, records: Sequence[Record], note: Callable[[str], None]) -> list[Path]:
    """Writes the plans of published records of one model; a version that holds just these is not written again.

    Args:
        store: Where they are.
        repository: The model repository.
        records: Of stage `publish`.
        note: Told what the server must be able to do.

    Returns:
        The files, the configuration first.

    Raises:
        ConfigError: Two plans are for one capability, are not of one model, or nothing of it is a plan.
        StageError: A plan takes what Triton has no word for, or nobody knows any more what it takes.
        StoreError: The store cannot be read.
    """
    plans = _by_capability(records)
    model = str(records[0].fields["config"]["model"])
    faces = [_face(store, record) for record in records]
    if any(face != faces[0] for face in faces):
        raise ConfigError(f"{model}: its plans take different inputs or profiles", "publish one target at a time")
    if any(record.fields["facts"]["backend"] != "tensorrt" for record in records):
        note(NOT_TENSORRT)
    files = {f"{architecture(record.fields['facts']['compute_capability'])}.plan": record for record in records}
    try:
        version = _version(store, repository / model, {name: record.outputs["plan"] for name, record in files.items()})
        config = repository / model / "config.pbtxt"
        text = _config(model, faces[0], {capability: _file(plans[capability]) for capability in sorted(plans)}, plans)
        _replace(config, text)
    except OSError as error:
        raise ConfigError(
            f"--triton {repository}: {error.strerror or error}", "name a directory you may write"
        ) from error
    return [config, *sorted(version.iterdir())]


def _by_capability(records: Sequence[Record]) -> dict[str, Record]:
    found: dict[str, Record] = {}
    for record in records:
        if record.fields["stage"] != "publish":
            raise ConfigError("--triton takes plans, and this flow publishes an ONNX file", "take a flow that builds")
        for capability in capabilities(record.fields["facts"]["compute_capability"]):
            if capability in found:
                raise ConfigError(
                    f"--triton: two plans are for {capability}, and Triton chooses by the capability",
                    "publish one of them at a time: targets=[…], each to a repository of its own",
                )
            found[capability] = record
    return found


def _file(record: Record) -> str:
    return f"{architecture(record.fields['facts']['compute_capability'])}.plan"


def _version(store: Store, directory: Path, files: Mapping[str, Blob]) -> Path:
    """The directory of the version that holds `files`: the latest, if it does, or a new one."""
    numbers = [int(path.name) for path in directory.glob("*") if path.name.isdigit()] if directory.is_dir() else []
    latest = directory / str(max(numbers, default=0))
    wanted = {name: blob.digest for name, blob in files.items()}
    if latest.is_dir() and {path.name: digest.of_file(path) for path in latest.iterdir()} == wanted:
        return latest
    directory.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=directory, prefix=".") as aside:  # Triton looks at numbers only
        fresh = Path(aside) / "version"
        fresh.mkdir()
        for name, blob in files.items():
            shutil.copyfile(store.path(blob), fresh / name)
            if digest.of_file(fresh / name) != blob.digest:
                raise StageError(f"object {blob.digest} is damaged", "run `trtforge verify --repair`, then build again")
        return fresh.rename(directory / str(max(numbers, default=0) + 1))


def _replace(path: Path, text: str) -> None:
    with TemporaryDirectory(dir=path.parent, prefix=".") as aside:
        (Path(aside) / path.name).write_text(text, encoding="utf-8")
        (Path(aside) / path.name).replace(path)


def _face(store: Store, record: Record) -> Face:
    """What the plan of a published record looks like, from the ONNX that it was built from."""
    makers = _makers(store, record.outputs["plan"].digest)
    onnx = next((files for each in makers if (files := _onnx(each))), None)
    facts = next((each.fields["facts"]["profiles"] for each in makers if "profiles" in each.fields["facts"]), None)
    paths = [store.path(Blob(one, 0)) for one in onnx or ()]
    if facts is None or not paths or not paths[0].is_file():
        raise StageError(
            f"what the plan {record.outputs['plan'].digest[:16]} takes is not known: the ONNX file behind it is gone",
            "run the same `trtforge build` again, then publish with --triton",
        )
    found = profiles.profiles_of(facts)
    held = profiles.shape_tensors(found)
    signature = _signature(paths)
    inputs = [_tensor(each, each["name"] in held) for each in signature["inputs"]]
    return Face(inputs, [_tensor(each, False) for each in signature["outputs"]], found)


def _makers(store: Store, plan: str) -> list[Record]:
    """The record that made the plan, that of the plan which it was made from, and so on."""
    found = list[Record]()
    wanted: str | None = plan
    while wanted is not None:
        made = lookup.maker(wanted, store, lookup.PLAN_MAKERS)
        found += [made] if made else []
        before = made.fields["inputs"].get("plan") if made else None
        wanted = before if isinstance(before, str) and before != wanted else None
    return found


def _onnx(record: Record) -> list[str]:
    """The digests of the ONNX file, and of its data file where it has one, that a plan was made from."""
    inputs = record.fields["inputs"]
    given = inputs.get("onnx") or inputs.get("structure") or []
    return [given] if isinstance(given, str) else list(given)


def _signature(paths: Sequence[Path]) -> dict[str, Any]:
    stage = STAGES["signature"]
    with TemporaryDirectory() as directory:
        stage.run(Job(stage.config(), {"onnx": list(paths)}, {}, Path(directory)))
        content: dict[str, Any] = json.loads((Path(directory) / stage.outputs["signature"]).read_text())
    return content


def _tensor(described: Mapping[str, Any], is_shape: bool) -> Tensor:
    name, dtype, shape = described["name"], described["dtype"], described["shape"]
    if dtype not in TYPES or shape is None:
        what = f"has the type {dtype}" if shape is not None else "has a rank that nobody knows"
        raise StageError(f"Triton cannot serve it: {name!r} {what}", f"it takes tensors of {', '.join(TYPES)}")
    return Tensor(name, dtype, shape, is_shape)


def _config(model: str, face: Face, files: Mapping[str, str], records: Mapping[str, Record]) -> str:
    batched = face.max_batch_size > 0
    lines = [
        f"name: {_quoted(model)}",
        'platform: "tensorrt_plan"',
        f"max_batch_size: {face.max_batch_size}",
        *(line for tensor in face.inputs for line in _block("input", _tensor_lines(tensor, batched))),
        *(line for tensor in face.outputs for line in _block("output", _tensor_lines(tensor, batched))),
    ]
    if len(face.profiles) > 1:
        own = ", ".join(_quoted(str(number)) for number in range(len(face.profiles)))
        lines += _block("instance_group", ["kind: KIND_GPU", f"profile: [ {own} ]"])
    for capability, file in files.items():
        lines += _block("cc_model_filenames", [f"key: {_quoted(capability)}", f"value: {_quoted(file)}"])
    for capability, record in sorted(records.items()):
        value = f"value {{ string_value: {_quoted(record.key)} }}"
        lines += _block("parameters", [f"key: {_quoted(f'trtforge_key_{capability}')}", value])
    return "\n".join(lines) + "\n"


def _tensor_lines(tensor: Tensor, batched: bool) -> list[str]:
    dims = [dim if isinstance(dim, int) else -1 for dim in (tensor.shape[1:] if batched else tensor.shape)]
    lines = [f"name: {_quoted(tensor.name)}", f"data_type: {TYPES[tensor.dtype]}"]
    # Triton knows no tensor without dims: one number is told as one dim of 1, and reshaped.
    lines += [f"dims: [ {', '.join(map(str, dims))} ]"] if dims else ["dims: [ 1 ]", "reshape { shape: [ ] }"]
    return lines + (["is_shape_tensor: true"] if tensor.is_shape else [])


def _block(name: str, lines: Sequence[str]) -> list[str]:
    return [f"{name} {{", *(f"  {line}" for line in lines), "}"]


def _quoted(text: str) -> str:
    # What a JSON string escapes, a text protobuf reads the same way, but for characters beyond ASCII.
    return json.dumps(text, ensure_ascii=False)
