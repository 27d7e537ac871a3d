"""What the docs say is so."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "CHANGELOG.md",
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "examples/digits/README.md",
]


def test_the_page_of_keys_is_what_the_dataclasses_say():
    ran = subprocess.run(
        [sys.executable, ROOT / "docs/generate.py", "--check"], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page):
    for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
        assert (page.parent / target).exists(), target


def test_every_flow_and_target_is_in_the_readme():
    text = (ROOT / "README.md").read_text()
    for group in ("flow", "targets"):
        for path in (ROOT / "conf" / group).glob("*.yaml"):
            assert path.stem in text, path


def test_both_commands_and_what_they_print_stand_in_the_first_screen():
    first = "\n".join((ROOT / "README.md").read_text().splitlines()[:45])
    for words in ("make demo", "make test", "model.plan (validated)", " passed"):
        assert words in first


def test_the_examples_of_the_docs_compose(tmp_path):
    from conf.compose import compose

    text = "".join((ROOT / f"docs/{page}.md").read_text() for page in ("flows", "data"))
    for block in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL):
        path = tmp_path / re.search(r"DIR/(\S+\.yaml)", block).group(1)
        path.parent.mkdir(exist_ok=True)
        path.write_text(block)
    data = compose(["model=classifier"], [tmp_path]).model
    assert data.holdout.images == data.calibration.images
    config = compose(["model=resnet", "targets=[l4_lab]", "flow=lean"], [tmp_path])
    assert config.model.name == "resnet50"
    assert config.steps["build"].time_limit_s == 600
    assert config.gates.plan_bytes == 50_000_000
    assert config.targets["l4_lab"].compute_capability == "8.9"
