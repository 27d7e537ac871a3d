"""What Prefect's pages show of builds, in Chromium; `make test-browser`. Pictures are kept in `build/screenshots`."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import pytest

from tests.pipelines.chromium import SIZE, Page, page
from tests.pipelines.conftest import Forge, prefect_server
from tests.pipelines.report.test_browser import CHROMIUM, SCREENSHOTS
from tests.pipelines.test_flows import ask
from tests.pipelines.test_rebuild import DIGITS, write_catalog
from tests.pipelines.test_shown import SLOW, SOON

pytestmark = [
    pytest.mark.browser,
    pytest.mark.xdist_group("prefect"),
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt-get install chromium"),
]

LATE = ("steps.surgery.time_limit_s=0.01", "steps.surgery.config.compare_max_bytes=0")


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """A server that shows pages, with its files beside its database."""
    home = tmp_path_factory.mktemp("server")
    quiet = {"PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false"}
    with prefect_server(home, {"PREFECT_SERVER_UI_STATIC_DIRECTORY": str(home / "ui"), **quiet}) as found:
        yield found


@pytest.fixture(scope="module")
def forge(address, tmp_path_factory):
    """A build for two targets, one that finds most of it cached, one that fails, and a rebuild of four models."""
    home = tmp_path_factory.mktemp("project")
    forge = Forge(home, {"PREFECT_API_URL": f"{address}/api"})
    gate = "gates.max_abs_error=0.001"
    assert forge("build", "-q", "flow=fp32", "targets=[l4,a10]", gate).code == 0
    assert forge("build", "-q", "flow=fp32", "targets=[l4,a10,rtx5090]").code == 0
    assert forge("build", "-q", "flow=fp32", "targets=[a10]", *LATE).code == 1
    (home / "broken.onnx").write_bytes(b"no model")
    catalog = write_catalog(home, net_a=DIGITS, net_b="nowhere.onnx", net_c="broken.onnx", net_d=DIGITS)
    given = ("--config-dir", str(catalog), "flow=fp32", "targets=[l4,rtx5090]", gate)
    assert forge("rebuild", "-q", *given).code == 2
    return forge


@pytest.fixture(scope="module")
def browser(tmp_path_factory) -> Iterator[Page]:
    with page(tmp_path_factory.mktemp("profile")) as found:
        yield found


@pytest.fixture
def keep(browser) -> Callable[[str], None]:
    """Keeps a picture of what the browser shows, and holds it against a blank one."""

    def picture(name: str) -> None:
        path = SCREENSHOTS / f"prefect-{name}.png"
        path.unlink(missing_ok=True)
        browser.picture(path)
        from PIL import Image

        with Image.open(path) as seen:
            assert seen.size == SIZE
            assert len(seen.convert("RGB").getcolors(1 << 24)) > 50  # text, lines and the colours of states

    return picture


def runs(address, name):
    """The flow runs of this name, the oldest first."""
    return ask(f"{address}/api", "flow_runs/filter", sort="START_TIME_ASC", flow_runs={"name": {"any_": [name]}})


def artifact(address, run, key):
    wanted = {"flow_runs": {"id": {"any_": [run["id"]]}}}
    return next(each for each in ask(f"{address}/api", "artifacts/filter", **wanted) if each["key"] == key)


def test_the_list_of_runs_says_what_each_is_about(address, forge, browser, keep):
    seen = browser.open(f"{address}/runs", until="rebuild of 4 models")
    keep("runs")
    for text in ("digits-fp32", "net_a-fp32", "Failed", "Completed", "model:digits", "target:rtx5090", "sm_89"):
        assert text in seen, text


def test_runs_are_found_by_a_tag(address, forge, browser, keep):
    browser.open(f"{address}/runs?tag=target:a10", until="digits-fp32")
    seen = browser.wait("3 runs\n")
    keep("runs-by-tag")
    assert "net_a-fp32" not in seen


def test_a_run_shows_its_steps_side_by_side_and_what_was_cached_as_one(address, forge, browser, keep):
    first, second, _ = runs(address, "digits-fp32")
    browser.open(f"{address}/runs/flow-run/{first['id']}", until="publish[a10]")
    keep("run")
    seen = browser.open(f"{address}/runs/flow-run/{second['id']}", until="cached: 8 steps")
    keep("run-cached")
    assert "4 Task runs" in seen
    assert "build[rtx5090]" in seen
    assert "cached: 8 steps: export, surgery, build[l4]" in browser.wait("all plans are up to date")  # its log


def test_a_run_that_fails_says_what_failed(address, forge, browser, keep):
    *_, failed = runs(address, "digits-fp32")
    seen = browser.open(f"{address}/runs/flow-run/{failed['id']}", until="surgery")
    keep("run-failed")
    assert "surgery: stopped after its time limit of 0.01 s" in seen


def test_the_artifacts_of_a_run_are_its_plans(address, forge, browser, keep):
    run = runs(address, "digits-fp32")[0]
    browser.open(f"{address}/runs/flow-run/{run['id']}", until="Artifacts")
    browser.click("Artifacts")
    seen = browser.wait("Validated, and every gate holds.")  # which is drawn after the names
    keep("artifacts")
    assert "plan-digits-l4-fp32" in seen
    assert "plan-digits-a10-fp32" in seen


def test_the_artifact_of_a_plan_holds_its_tables(address, forge, browser, keep):
    found = artifact(address, runs(address, "digits-fp32")[0], "plan-digits-l4-fp32")
    seen = browser.open(f"{address}/artifacts/artifact/{found['id']}", until="Build time by step")
    keep("plan")
    for text in ("digits on l4, flow fp32", "sha256: ", "record: ", "trtforge report", str(forge.store), "max_abs_er"):
        assert text in seen, text
    assert "**" not in seen and "| ---" not in seen  # it is drawn, not quoted
    assert browser.run("document.querySelectorAll('table').length") >= 5


def test_a_rebuild_is_a_table_of_models_and_targets(address, forge, browser, keep):
    (run,) = runs(address, "rebuild of 4 models")
    found = artifact(address, run, "trtforge-rebuild")
    seen = browser.open(f"{address}/artifacts/artifact/{found['id']}", until="net_d")
    keep("rebuild")
    for text in ("architecture", "sm_120", "nowhere.onnx", "wrong", "built", "hold"):
        assert text in seen, text
    assert browser.run("document.querySelectorAll('tbody tr').length") == 6


def test_a_step_that_runs_long_shows_how_far_it_is(address, forge, browser, keep):
    (forge.home / "load.py").write_text(SLOW.replace("sleep(0.2)", "sleep(1.0)"))
    data = ("callable=load.py", "path=null", "max_samples=8", "batch_size=1")
    code = SOON + "from pipelines.__main__ import main\nmain()"
    given = ["build", "-q", "flow=int8", "targets=[l4]", *(f"model.calibration.{each}" for each in data)]
    build = subprocess.Popen([sys.executable, "-c", code, *given], env=forge.variables, cwd=forge.home)
    try:
        while not (found := progress(address, "calibrate: ")):
            assert build.poll() is None, "it has ended and shown nothing"
            time.sleep(0.2)
        seen = browser.open(f"{address}/artifacts/artifact/{found[0]['id']}", until="digits-int8")
        keep("progress")
        assert "calibrate: calibrating\n" in seen
        assert "Progress: " in seen
    finally:
        build.terminate()
        build.wait(30)


def progress(address, told):
    """The progress artifacts whose description begins with `told`."""
    found = ask(f"{address}/api", "artifacts/filter", artifacts={"type": {"any_": ["progress"]}})
    return [each for each in found if each["description"].startswith(told)]
