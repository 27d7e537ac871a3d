"""Accuracy, layers, ranges and origin of the default build, as the report has them, against the records."""

from __future__ import annotations

import json

import pytest

from pipelines.report import accuracy, calibration, inside, origin
from pipelines.report.blocks import Chart, Sentence, Table
from stages import histogram_file


def tables(section):
    return [block for block in section.blocks if isinstance(block, Table)]


def rows(table):
    return [[cell.text for cell in row] for row in table.rows]


def charts(section):
    return [block for block in section.blocks if isinstance(block, Chart)]


def test_the_accuracy_is_what_validate_measured(subject):
    record = next(subject.of("validate"))
    section = accuracy.section(subject)
    every, labelled, worst = tables(section)
    assert rows(every)[0][0] == "logits"
    assert rows(every)[0][7] == f"{record.metrics['sqnr_db']:.4g}"
    assert [row[2] for row in rows(labelled)] == ["99.44 %", "99.44 %", "0.00 %"]
    assert "98.00 to 99.85 %" in rows(labelled)[0][3]
    assert len(worst.rows) == 10
    (chart,) = charts(section)
    assert "absolute error" in chart.draw()


def test_the_layers_are_those_that_build_kept(subject):
    kept = json.loads(subject.path(subject.record, "layers").read_text())["profiles"][0]
    precisions, layers = tables(inside.section(subject))
    assert len(layers.rows) == len(kept["layers"])
    assert [row[2] for row in rows(layers)] == [layer["precision"] for layer in kept["layers"]]
    assert {row[0]: int(row[2]) for row in rows(precisions)} == {
        name: count["products"] for name, count in kept["precisions"].items()
    }
    shares, _ = charts(inside.section(subject))
    assert "products: INT8 100.0 %" in shares.description


def test_the_ranges_are_those_of_the_file_and_clip_what_the_histograms_say(subject):
    found = json.loads(subject.path(next(subject.of("ranges")), "ranges").read_text())["tensors"]
    histograms = histogram_file.read(subject.path(next(subject.of("calibrate")), "histograms")).histograms
    section = calibration.section(subject)
    tried, ranges = tables(section)
    assert sum("(chosen)" in row[0] for row in rows(tried)) == 1
    assert {row[0]: row[1] for row in rows(ranges)} == {name: f"{each['amax']:.4g}" for name, each in found.items()}
    for row in rows(ranges):
        values, counts = histograms[row[0]].magnitudes()
        clipped = 100 * counts[values > found[row[0]]["amax"]].sum() / counts.sum()
        assert float(row[3].removesuffix(" %")) == pytest.approx(clipped, abs=0.005)
    (chart,) = charts(section)
    drawn = chart.draw()
    assert all(name in drawn for name in found)


def test_a_plan_that_is_not_quantized_has_no_such_section(subject):
    bare = [each for each in subject.records if each[0] not in ("calibrate", "ranges", "sensitivity")]
    subject = type(subject)(subject.session, subject.target, subject.plan, subject.record)
    subject.__dict__["records"] = bare
    assert calibration.section(subject) is None


def test_every_step_stands_with_its_key_and_what_it_gave(subject):
    steps = tables(origin.steps(subject))[0]
    told = {(row[0].text, row[3].text): (row[5].full, row[6].full) for row in steps.rows}
    for step, record in subject.records:
        for name, blob in record.outputs.items():
            assert told[step, name] == (blob.digest, record.key)


def test_settings_say_where_they_came_from(subject):
    settings = next(table for table in tables(origin.steps(subject)) if table.caption.startswith("Settings"))
    found = {(row[0], row[1]): (row[2], row[3]) for row in rows(settings)}
    assert found["validate", "labels"] == ("labels", "conf/model/digits.yaml")
    assert found["build", "tf32"] == ("true", "default")
    assert found["calibrate", "model.calibration.batch_size"] == ("32", "conf/model/digits.yaml")


def test_a_setting_that_another_key_brought_about_is_not_called_a_default(subject):
    fields = {**subject.record.fields, "config": {"tf32": True, "refit": "any"}}
    record = type(subject.record)(fields, {}, {}, {})
    assert {name: told for name, _, told in origin.settings("build", record)} == {
        "tf32": "default",
        "refit": "set by another key of the config",
    }


def test_times_are_those_of_the_records(subject):
    section = origin.times(subject)
    (table,) = tables(section)
    seconds = {step: record.provenance["seconds"] for step, record in subject.records}
    assert {row[0]: float(row[1]) for row in rows(table)} == pytest.approx(seconds, rel=1e-3)
    (chart,) = charts(section)
    assert "time (s)" in chart.draw()
    assert any("TensorRT itself took: parse" in each.text for each in section.blocks if isinstance(each, Sentence))


def test_the_history_of_its_place_is_a_table(subject):
    (table,) = tables(origin.published(subject))
    place = subject.session.place(subject.target)
    assert table.caption == place
    assert [row[2].full for row in table.rows] == [subject.store.ref(f"published/{place}")]
