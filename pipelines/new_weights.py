"""New weights for a model that is there already: the verb `refit`.

It is `build` with two overrides: the one that has the flow's plans take their weights last, and the one that swaps the
weights. Before that the weights are held against the model, by name, shape and type, and an ONNX file by its structure,
too. Nothing of that goes into the store.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from conf.compose import compose
from conf.errors import ConfigError
from conf.quoting import quoted
from conf.schema import Config, Model, Source
from pipelines import sources
from pipelines.document import bare_table, console
from stages import checkpoint, onnx_file, structure, structure_changes, tensor_tables
from stages.stage import StageError
from stages.tensor_tables import MOST_LISTED, Difference, Spec

CHECKPOINT, ONNX = ".safetensors", ".onnx"

PICKLED = (".pt", ".pth", ".bin", ".ckpt", ".pkl")
"""Suffixes of files that `torch.save` and pickle write."""

_MOST_TOLD = 3
"""So many changes of the structure stand in the error itself."""


class MismatchError(ConfigError):
    """Weights of another model.

    Args:
        what: As for any error.
        next_step: Likewise.
        differences: The tensors that are missing, extra or different.
        changes: What is different in an ONNX file beside its tensors.
    """

    def __init__(
        self, what: str, next_step: str, differences: Sequence[Difference] = (), changes: Sequence[str] = ()
    ) -> None:
        super().__init__(what, next_step)
        self.differences = differences
        self.changes = changes

    def document(self) -> dict[str, Any]:
        """What `--json` says beside the error itself."""
        return {"mismatch": [each.document() for each in self.differences], "structure": list(self.changes)}


def overrides(weights: Path, given: Sequence[str], config_dirs: Sequence[Path]) -> list[str]:
    """The overrides of the run that puts `weights` into the model that `given` says.

    Args:
        weights: A safetensors or ONNX file.
        given: The user's overrides.
        config_dirs: The user's own config directories.

    Raises:
        ConfigError: The config is wrong, or `weights` no such file.
        MismatchError: It has the weights of another model.
    """
    _require_suffix(weights)
    config = compose(given, config_dirs)
    with _as_config_errors():
        swapped = _swap_model(weights, config) if weights.suffix == ONNX else _swap_checkpoint(weights, config)
    is_refitted = config.refit is not None or any(step.stage == "refit" for step in config.steps.values())
    return [*given, *([] if is_refitted else ["refit=true"]), *swapped]


def print_mismatch(error: MismatchError) -> None:
    """Prints the tensors that do not fit as a table, the first `MOST_LISTED` of them."""
    from rich.text import Text

    screen = console()
    if error.differences:
        columns = ("tensor", "is", "the model has", "the weights have")
        table = bare_table(*columns, fold=columns)
        for each in error.differences[:MOST_LISTED]:
            table.add_row(Text(each.name), each.kind, *(Text(str(side or "-")) for side in (each.want, each.got)))
        screen.print(table)
    for change in error.changes[:MOST_LISTED]:
        screen.print(change, markup=False, highlight=False, soft_wrap=True)
    left = max(len(error.differences), len(error.changes)) - MOST_LISTED
    if left > 0:
        screen.print(f"and {left} more: --json lists all", highlight=False)


def _swap_checkpoint(weights: Path, config: Config) -> list[str]:
    tensors, main = checkpoint.read(weights), sources.main_file(config.model)
    if main is None:
        found = _beside_earlier(config.model, checkpoint.specs(tensors))
    else:
        found = checkpoint.hold_against(onnx_file.read(main), tensors).differences
    if found:
        raise _mismatch(weights, config.model, found)
    return [f"model.weights={quoted(str(weights))}"]


def _beside_earlier(model: Model, got: dict[str, Spec]) -> list[Difference]:
    """How weights differ from those that a torch module has been built with; what it wants itself only its code knows.

    Integers and booleans are left out: they are the training's own, such as `num_batches_tracked`, or the module says.
    """
    if not model.weights:
        return []
    earlier = sources.existing("model.weights", model.weights)
    try:
        want = checkpoint.specs(checkpoint.read(earlier))
    except StageError:  # of torch.save: the stage export reads it, in a process of its own
        return []
    return tensor_tables.compare(
        *({name: spec for name, spec in side.items() if spec.is_float} for side in (want, got))
    )


def _swap_model(weights: Path, config: Config) -> list[str]:
    main = sources.main_file(config.model)
    if main is None:
        raise ConfigError(
            f"--weights {weights}: model.source={config.model.source.value}, whose weights are no ONNX file",
            f"give its state dict: --weights net{CHECKPOINT}",
        )
    old, new = onnx_file.read(main), onnx_file.read(weights)
    found = tensor_tables.compare(checkpoint.model_specs(old), checkpoint.model_specs(new))
    if found:
        raise _mismatch(weights, config.model, found)
    if changes := structure_changes.changes(*(structure.split(model)[0] for model in (old, new))):
        raise MismatchError(
            f"{weights} has another structure than model {config.model.name}: {_first(changes)}",
            _build_instead(weights),
            changes=changes,
        )
    # The name is that of the file where the config says none, and plans are called by it.
    return [
        f"model.path={quoted(str(weights))}",
        "model.weights=null",
        f"model.name={quoted(str(config.model.name))}",
    ]


def _first(changes: Sequence[str]) -> str:
    left = len(changes) - _MOST_TOLD
    return "; ".join(changes[:_MOST_TOLD]) + (f"; and {left} more" if left > 0 else "")


def _mismatch(weights: Path, model: Model, found: Sequence[Difference]) -> MismatchError:
    next_step = "give weights of this model"
    if weights.suffix == ONNX:
        next_step = _build_instead(weights)
    elif model.source is Source.onnx:
        next_step += "; where the exporter gave weights other names, shapes or types, give the new ONNX file"
    return MismatchError(
        f"{weights} does not fit model {model.name}: {tensor_tables.counted(found)}", next_step, differences=found
    )


def _build_instead(weights: Path) -> str:
    return f"a model of another structure is built: trtforge build model.path={weights}"


def _require_suffix(weights: Path) -> None:
    if weights.suffix in PICKLED:
        raise ConfigError(f"--weights {weights}: a pickle can run code, and is never loaded", checkpoint.SAVE_TENSORS)
    if weights.suffix not in (CHECKPOINT, ONNX):
        raise ConfigError(
            f"--weights {weights}: neither a {CHECKPOINT} nor an {ONNX} file, by its name",
            f"give one of the two, under its name: --weights net{CHECKPOINT}",
        )


@contextmanager
def _as_config_errors() -> Iterator[None]:
    """A file that cannot be read is a wrong call here: no step has run."""
    try:
        yield
    except StageError as error:
        raise ConfigError(error.what, error.next_step) from error
