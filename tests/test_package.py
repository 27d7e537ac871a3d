"""The package as users get it: a wheel, outside the checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A wheel built from the files that git knows, without the network."""
    place = tmp_path_factory.mktemp("wheel")
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout.split(b"\0")
    for name in filter(None, map(bytes.decode, names)):
        (place / "source" / name).parent.mkdir(parents=True, exist_ok=True)
        (place / "source" / name).write_bytes((ROOT / name).read_bytes())
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(place)]
    subprocess.run([*command, str(place / "source")], check=True, capture_output=True)
    return next(place.glob("*.whl"))


def test_the_wheel_holds_code_configs_and_the_default_model_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.partition("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"conf", "pipelines", "stages", "artifacts"}
    for needed in ("conf/config.yaml", "conf/flow/int8.yaml", "conf/targets/l4.yaml", "conf/data/digits/digits.onnx"):
        assert needed in names


def test_the_wheel_builds_the_default_model_outside_the_checkout(wheel, tmp_path):
    site = tmp_path / "site"
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(site)]
    subprocess.run([*command, str(wheel)], check=True)
    code = "import conf; print(conf.__file__); from pipelines.cli import main; main()"
    ran = subprocess.run(
        [sys.executable, "-c", code, "build", "runner=local", "targets=[l4]"],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(site)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.startswith(str(site))
    assert "model.plan (validated)" in ran.stdout


def test_the_lock_file_names_no_host():
    lock = (ROOT / "requirements.lock").read_text()
    assert "://" not in lock
    assert "index" not in lock.lower().replace("import-index", "")
    assert lock.count("--hash=sha256:") > 100
