"""How far steps are, for who looks now and then."""

from __future__ import annotations

from pipelines.execute import Outcome
from pipelines.graph import Node
from pipelines.progress import Progress
from pipelines.reporting import Reporter
from stages import STAGES


class Told(Reporter):
    """Keeps all that it hears."""

    def __init__(self):
        self.heard = []

    def started(self, name):
        self.heard.append(("started", name))

    def progressed(self, name, phase, fraction):
        self.heard.append(("progressed", name, phase, fraction))

    def finished(self, outcome):
        self.heard.append(("finished", outcome.node.id))

    def note(self, text):
        self.heard.append(("note", text))

    def close(self):
        self.heard.append(("close",))


def ended(name):
    stage = STAGES["export"]
    return Outcome(Node(name, stage, stage.config()), "failed")


def test_the_last_word_of_each_step_is_kept_and_all_are_passed_on():
    told = Told()
    progress = Progress(told)
    progress.started("calibrate")
    progress.progressed("calibrate", "calibrating", 0.25)
    progress.progressed("calibrate", "calibrating", 0.5)
    progress.note("a word")
    (step,) = progress.steps().values()
    assert (step.at, step.outcome) == (("calibrating", 0.5), None)
    progress.finished(ended("calibrate"))
    assert progress.steps()["calibrate"].outcome == ended("calibrate")
    progress.close()
    assert told.heard == [
        ("started", "calibrate"),
        ("progressed", "calibrate", "calibrating", 0.25),
        ("progressed", "calibrate", "calibrating", 0.5),
        ("note", "a word"),
        ("finished", "calibrate"),
        ("close",),
    ]


def test_what_never_began_is_no_step():
    progress = Progress(Told())
    progress.progressed("signature", "read", None)
    progress.finished(ended("export"))
    assert progress.steps() == {}
