"""Whether a plan may be used, as its report says it."""

from __future__ import annotations

from artifacts.store import Store
from pipelines.report import summary
from pipelines.report.blocks import Table
from tests.pipelines.report.conftest import keep_times, opened, subject_of, timed


def words(sentences):
    return " ".join(sentence.text for sentence in sentences)


def test_what_did_not_run_on_a_gpu_is_said_to_have_not(subject):
    told = words(summary.verdict(subject))
    assert "was not executed on a GPU by validate: no GPU of 8.9 here." in told
    assert "ONNX Runtime, on the CPU" in told


def test_a_plan_that_was_timed_on_a_gpu_is_said_to_have_run_there(root, subject):
    record = keep_times(Store(root), subject, "2026-01-01T00:00:00+00:00")
    told = words(summary.verdict(timed(subject, [record])))
    assert "was executed on a GPU by bench, but not by validate: no GPU of 8.9 here." in told
    assert "Its accuracy is that of ONNX Runtime" in told


def test_a_gate_stands_with_its_limit_what_was_measured_and_whether_it_holds(root):
    session = opened(root, "gates.min_cosine=0.9999999", "gates.accuracy_drop=0.02", "gates.plan_bytes=5000000")
    subject = subject_of(session)
    (table,) = summary.judged(subject).blocks
    assert isinstance(table, Table)
    rows = {row[0].text: [cell.text for cell in row[1:]] for row in table.rows}
    assert rows["accuracy_drop"][:2] == ["2.00 %", "0.00 %"]
    assert rows["accuracy_drop"][3] == rows["plan_bytes"][3] == "holds"
    (refusal,) = session.reservations(subject.target)
    assert rows["min_cosine"][3] == refusal
    assert words(summary.verdict(subject)).startswith(f"Refused by its gates: {refusal}")


def test_without_gates_a_validated_plan_is_not_said_to_have_passed_any(subject):
    assert words(summary.verdict(subject)).startswith("Validated; the flow asks no gate.")


def test_what_stands_published_is_told_from_what_does_not(root, subject):
    assert "Published as digits/sm_89/" in words(summary.published(subject))
    other = subject_of(opened(root), "a10")
    place = other.session.place(other.target)
    store = Store(root)
    key = store.ref(f"published/{place}")
    store.delete_ref(f"published/{place}")
    try:
        assert "Nothing is published" in words(summary.published(other))
    finally:
        store.set_ref(f"published/{place}", key)


def test_the_plan_is_named_by_its_whole_digest_and_key(subject):
    (facts,) = summary.about(subject).blocks
    assert facts.values["sha256"].text == subject.record.outputs["plan"].digest
    assert facts.values["record"].text == subject.record.key
    assert "compute capability 8.9" in facts.values["target"].text
