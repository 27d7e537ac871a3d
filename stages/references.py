"""What a model is held against: each reference is something that gives outputs for a feed.

- `onnx`: ONNX Runtime on the model as it was given;
- `torch`: the user's torch module itself, run as the stage `export` runs it;
- `golden`: outputs that somebody stored, for each sample of the held-out data;
- `against`: an earlier plan, run on a GPU, or where that cannot be the ONNX it was built from; or any ONNX file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from stages import backends, batches, onnx_file, plan, split, torch_export
from stages.batches import Input
from stages.data import reading
from stages.data.arrays import Arrays, headers
from stages.runtimes import Runtime, open_model, open_onnx, open_plan
from stages.stage import Job, StageError

if TYPE_CHECKING:
    from stages.batches import Array, Batch
    from stages.profiles import Profile

WORDS = ("onnx", "torch", "golden", "against")

INPUTS: Mapping[str, Sequence[str]] = {
    "onnx": ("reference",),
    "torch": ("torch_source",),
    "golden": ("golden",),
    "against": ("against_plan", "against_onnx"),
}
"""Where each reference comes from: one of these inputs of the stage."""

NOT_YET = "published"
"""What `against` may be although there is none: before a first plan stands published, there is nothing to go by."""

GOLDEN_FOR_EACH = "store the outputs of every held-out sample, in the same order"


def chosen(job: Job[Any], asked: Sequence[str] | None) -> list[str]:
    """The references of a job: those that were asked for, or those that were given in a fixed order.

    Raises:
        StageError: One was asked for and not given.
    """
    if asked is None:
        return [word for word in ("against", "golden") if _is_given(job, word)] or ["onnx"]
    for word in asked:
        if not _is_given(job, word) and not (word == "against" and job.config.against == NOT_YET):
            raise StageError(
                f"validate: references has {word!r}, and there is none",
                {
                    "torch": "torch is for models with model.source=torch",
                    "golden": "give the outputs: model.holdout.golden=FILE.npz",
                    "against": "say what: steps.validate.config.against=published, or a plan, a key or an ONNX file",
                }.get(word, ""),
            )
    found = [word for word in asked if _is_given(job, word)]
    if not found:
        raise StageError(
            "validate: no other plan is published in this place, and references has nothing else",
            "compare with the model as well: steps.validate.config.references=[against,onnx]",
        )
    return found


def _is_given(job: Job[Any], word: str) -> bool:
    return any(job.inputs.get(name) for name in INPUTS[word])


def opened(job: Job[Any], word: str, found: Sequence[Profile], stack: ExitStack) -> Runtime:
    """The reference `word` of a job.

    Raises:
        StageError: It cannot be opened.
    """
    match word:
        case "onnx":
            return open_onnx(job.inputs["reference"])
        case "torch":
            weights = job.file("torch_weights") if job.inputs.get("torch_weights") else None
            module = stack.enter_context(torch_export.opened(job.facts["source"], weights))
            return Runtime("torch", module.inputs, module.feed)
        case "golden":
            return _golden(job)
        case _:
            return _against(job, found, stack)


def _against(job: Job[Any], found: Sequence[Profile], stack: ExitStack) -> Runtime:
    """An earlier plan on the GPU; where it cannot run here, the ONNX it was built from."""
    why = "it is no plan"
    if job.inputs.get("against_plan"):
        why = _why_not_run(job)
        if not why:
            runtime = stack.enter_context(open_plan(job.file("against_plan"), job.facts["backend"], found))
            return Runtime("earlier plan", runtime.inputs, runtime.run)
        if not job.inputs.get("against_onnx"):
            raise StageError(
                f"the plan to compare against is not run ({why}), and the store has not the ONNX it was built from",
                "pull that from the remote, or name another: steps.validate.config.against=PLAN",
            )
    runtime = _of_files(job)
    if not job.inputs.get("against_plan"):
        return runtime
    return Runtime("ONNX of an earlier plan", runtime.inputs, runtime.run, why)


def _of_files(job: Job[Any]) -> Runtime:
    if not job.inputs.get("against_weights"):
        return open_onnx(job.inputs["against_onnx"])
    return open_model(split.joined(job.inputs["against_onnx"], job.file("against_weights")))  # of a refitted plan


def _why_not_run(job: Job[Any]) -> str:
    facts = job.facts
    try:
        header = plan.read(job.file("against_plan"))
        plan.check(header, facts["backend"], facts["backend_version"], facts["compute_capability"])
    except StageError as error:
        return error.what
    return "" if facts["gpu_here"] else backends.no_gpu(facts["compute_capability"])


def _golden(job: Job[Any]) -> Runtime:
    """Stored outputs, which go by in the order of the held-out samples."""
    if "holdout" not in job.inputs:
        raise StageError(
            "golden outputs need the inputs that they belong to, and there is no held-out data",
            "give the data: model.holdout.path=…",
        )
    model = onnx_file.read(job.inputs["reference"])
    stored = Golden(job, [value.name for value in model.graph.output])
    held_out = reading.opened(job, "holdout", batches.model_inputs(model)).there
    if held_out not in (None, stored.samples):
        raise StageError(
            f"golden outputs: there are {stored.samples} samples, and {held_out} held-out ones", GOLDEN_FOR_EACH
        )
    return Runtime("golden outputs", [], lambda feed: stored.take(batches.size(dict(feed))))


class Golden:
    """Golden outputs, in files like those of held-out data: an array for each output, axis 0 the samples.

    The samples that the held-out data's options take are taken here, too.

    Args:
        job: With the inputs `golden` and `holdout`.
        outputs: The model's; those that no file holds are not compared.

    Raises:
        StageError: No output is there, or there are not as many samples as held-out ones.
    """

    def __init__(self, job: Job[Any], outputs: Sequence[str]) -> None:
        wanted = self._wanted(job, [Input(name, None, None) for name in outputs])
        options = reading.options_of(job.facts["holdout"])
        options.batch_size = options.batch_size or 32  # read in pieces, however large the file is
        source = Arrays(job.inputs["golden"], wanted)
        self._batches = iter(reading.Batches(source, wanted, options))
        self._rest: Batch = {}
        self.samples = source.count()

    @staticmethod
    def _wanted(job: Job[Any], outputs: Sequence[Input]) -> list[Input]:
        there = [set(headers(path, outputs)) for path in job.inputs["golden"]]
        if len(outputs) == 1:  # a .npy has no names
            return list(outputs)
        common = set.intersection(*there)
        wanted = [each for each in outputs if each.name in common]
        if not wanted:
            raise StageError(
                f"golden outputs: the files hold {', '.join(sorted(set.union(*there))) or 'nothing'}, and the model's "
                f"outputs are {', '.join(each.name for each in outputs)}",
                "store arrays under the names of the outputs: numpy.savez(path, OUTPUT=…)",
            )
        return wanted

    def take(self, count: int) -> Batch:
        """The next `count` samples.

        Raises:
            StageError: There are not so many.
        """
        import numpy as np

        while not self._rest or batches.size(self._rest) < count:
            more = next(self._batches, None)
            if more is None:
                raise StageError(
                    f"golden outputs: there are {self.samples} samples, fewer than held-out ones",
                    GOLDEN_FOR_EACH,
                )
            joined: Mapping[str, Array] = {
                name: np.concatenate([self._rest[name], array]) if self._rest else array for name, array in more.items()
            }
            self._rest = dict(joined)
        taken = batches.cut(self._rest, 0, count)
        self._rest = batches.cut(self._rest, count, batches.size(self._rest))
        return taken
