"""Widgets where people use them: JupyterLab in a real browser runs study 4, shows the widgets, and
a slider changes the picture.
"""

import json
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from browser import needs_chromium, open_page, screenshot, until
from playwright.sync_api import Page, expect

from medgan_nb.studies.registry import STUDIES

ROOT = Path(__file__).resolve().parent.parent
in_lab = pytest.mark.xdist_group("app")  # these share one Jupyter server
SETTINGS = "settings/@jupyterlab/apputils-extension/notification.jupyterlab-settings"


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    "A JupyterLab of its own over an empty folder: the folder, and its address."
    home = tmp_path_factory.mktemp("lab home")
    root, port = tmp_path_factory.mktemp("notebooks"), free_port()
    own = {f"JUPYTER_{key}_DIR": str(home / key.lower()) for key in ("CONFIG", "DATA", "RUNTIME")}
    own |= {
        "JUPYTERLAB_SETTINGS_DIR": str(home / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(home / "workspaces"),
        "HOME": str(home),
        "OMP_NUM_THREADS": "1",
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
    }
    (home / SETTINGS).parent.mkdir(parents=True)
    (home / SETTINGS).write_text('{"fetchNews": "false"}')  # no question about news over the page
    command = [
        sys.executable,
        "-m",
        "jupyterlab",
        "--no-browser",
        f"--port={port}",
        "--ServerApp.port_retries=0",
        "--IdentityProvider.token=",
        "--allow-root",
        f"--ServerApp.root_dir={root}",
        "--LabApp.expose_app_in_browser=True",
        "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
    ]
    log_path = home / "log.txt"
    with open(log_path, "w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | own, cwd=root)
        try:
            wait_for_server(process, log_path)
            yield root, f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            try:
                process.wait(timeout=60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def wait_for_server(process: subprocess.Popen, log: Path, seconds: float = 120) -> None:
    "Wait until JupyterLab says that it is running."
    end = time.monotonic() + seconds
    while "is running at" not in log.read_text():
        assert process.poll() is None and time.monotonic() < end, log.read_text()[-2000:]
        time.sleep(0.1)


def write_notebook(path: Path, sources: list[str]) -> None:
    "Write a notebook of code cells."
    empty = {"cell_type": "code", "execution_count": None, "metadata": {}, "outputs": []}
    cells = [empty | {"id": f"c{k}", "source": source} for k, source in enumerate(sources)]
    kernel = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    notebook = {"cells": cells, "metadata": kernel, "nbformat": 4, "nbformat_minor": 5}
    path.write_text(json.dumps(notebook))


def run_all(page: Page, url: str, ready: str, seconds: float) -> None:
    "Open a notebook, run its cells, wait until `ready` is true or an output holds a traceback."
    page.goto(f"{url}?reset")
    until(
        page, "window.jupyterapp && document.querySelector('.jp-Notebook .jp-Cell') !== null", 180
    )
    kernel = "jupyterapp.shell.currentWidget?.sessionContext.session?.kernel"
    until(page, f"{kernel}?.connectionStatus === 'connected'", 120)
    page.evaluate("jupyterapp.commands.execute('notebook:run-all-cells').then(() => 1, () => 1), 1")
    errors = (
        "[...document.querySelectorAll("
        '\'[data-mime-type$=".jupyter.error"], [data-mime-type$=".jupyter.stderr"]\')]'
        ".map(e => e.innerText).filter(t => t.includes('Error')).join()"
    )
    until(page, f"{errors} || ({ready})", seconds)
    assert not page.evaluate(errors)


@in_lab
@needs_chromium
def test_study_4_in_jupyterlab_and_its_widgets(lab):
    root, url = lab
    book = json.loads((ROOT / "papers" / "p4_dcgan_chest_xray.ipynb").read_text())
    cells = ["".join(c["source"]) for c in book["cells"] if c["cell_type"] == "code"]
    for old, new in (
        (r'^preset: str = "quick"', 'preset: str = "smoke"'),
        (r'^outputs: str = ""', f'outputs: str = "{root / "outputs"}"'),
    ):
        cells = [re.sub(old, new, cell, flags=re.MULTILINE) for cell in cells]
    cells.append("from medgan_nb.app.browse import browse, explore\nrun.lock.release()")
    cells[-1] += "\nbrowse(run.folder)"
    write_notebook(root / "p4.ipynb", [*cells, "explore(run.folder)"])
    with open_page(1400, 1000) as (page, _):
        ready = (
            "document.querySelectorAll('.noUi-handle').length > 0 && "
            "document.querySelectorAll('[class*=medgan-tile]').length >= 24"
        )
        run_all(page, f"{url}/lab/tree/p4.ipynb", ready, 400)
        assert len(list((root / "outputs" / "p4").glob("*/metrics.json"))) == 1
        moving_the_slider_changes_the_image(page)
        clicking_a_tile_changes_the_large_image(page)
        screenshot(page, "lab.png")
        outputs = (
            "[...jupyterapp.shell.currentWidget.content.model.cells].find(c => "
            "c.sharedModel.getSource().includes('live_curve()')).outputs.toJSON()"
        )
        n_pictures = page.evaluate(f"{outputs}.filter(o => o.data?.['image/png']).length")
        assert n_pictures == 2  # the samples at its end, and the curve


def moving_the_slider_changes_the_image(page: Page) -> None:
    handle = "document.querySelector('.noUi-handle')"
    image = f"{handle}.closest('.widget-hbox').querySelector('img').src"
    before = until(page, image)
    page.evaluate(f"{handle}.scrollIntoView({{block: 'center'}}), {handle}.focus()")
    for _ in range(10):
        page.keyboard.press("ArrowRight")
    until(page, f"{handle}.closest('.widget-slider').innerText.includes('0.20')")
    until(page, f"{image} !== {json.dumps(before)}")


def clicking_a_tile_changes_the_large_image(page: Page) -> None:
    tile = "document.querySelector('[class*=medgan-tile]')"
    image = f"{tile}.closest('.widget-vbox').querySelector(':scope > img').src"
    before = until(page, image)
    page.click("[class*=medgan-tile][class*='-7 '], [class*=medgan-tile][class$='-7']")
    until(page, f"{image} !== {json.dumps(before)}")


@in_lab
@needs_chromium
def test_launcher_starts_a_run_shows_its_training_stops_it_and_resumes_it(lab):
    "Paper 2's smoke preset, whose training has twenty ticks."
    root, url = lab
    outputs = root / "launched"
    source = "from medgan_nb.app.launch import launcher\n"
    source += f"launcher({str(outputs)!r}, poll_seconds=0.3)"
    write_notebook(root / "start.ipynb", [source])
    with open_page(1400, 1000) as (page, _):
        ready = "document.querySelectorAll('.widget-dropdown select').length >= 2"
        run_all(page, f"{url}/lab/tree/start.ipynb", ready, 180)
        output, buttons = page.locator(".jp-OutputArea").first, page.locator(".jupyter-button")
        start, stop = (buttons.filter(has_text=re.compile(f"^{t}$")) for t in ("Start", "Stop"))
        images = (
            "[...document.querySelectorAll('.jp-OutputArea img')]"
            ".filter(e => e.offsetWidth && e.naturalWidth && !e.closest('.mg-card')).length"
        )
        expect(output).to_contain_text("No runs yet")
        study, preset = page.locator(".widget-dropdown select").all()[:2]
        study.select_option(label=f"p2: {STUDIES['p2'].title}")
        preset.select_option(label="smoke")
        start.click()
        expect(output).to_contain_text("training the GAN", timeout=300_000)
        until(page, f"document.querySelector('.jp-OutputArea progress') && {images}", 300)
        screenshot(page, "launcher_training.png")
        stop.click()
        expect(start).to_be_enabled(timeout=180_000)
        expect(output).to_contain_text("What was done is kept")
        expect(output.locator("table").first).to_contain_text("interrupted")
        (run,) = outputs.glob("p2/n*")
        files = {path.name for path in run.iterdir()}
        assert "log.jsonl" in files and "metrics.json" not in files
        assert files & {"checkpoint.safetensors", "weights.safetensors"}
        start.click()
        expect(start).to_be_disabled(timeout=30_000)
        expect(start).to_be_enabled(timeout=300_000)
        expect(output).to_contain_text("1 of 1 runs done in")
        expect(output).to_contain_text(run.name)
        if "checkpoint.safetensors" in files:  # training went on: losses and samples are shown
            assert page.evaluate(images) == 2
        screenshot(page, "launcher.png")
    steps = [json.loads(line)["step"] for line in (run / "log.jsonl").read_text().splitlines()]
    assert steps == list(range(1, 21))
    assert (run / "metrics.json").exists() and not (run / "live.png").exists()


def test_index_notebook_runs_without_any_run(tmp_path):
    index, out = ROOT / "papers" / "index.ipynb", tmp_path / "out.ipynb"
    command = [sys.executable, "-m", "papermill", str(index), str(out), "--no-progress-bar"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    book = json.loads(index.read_text())
    assert not any(cell.get("outputs") for cell in book["cells"])
    assert book["metadata"]["kernelspec"]["language"] == "python"
    links = re.findall(r"\]\((p\w+\.ipynb)\)", out.read_text())
    assert links and all((ROOT / "papers" / link).exists() for link in links)
