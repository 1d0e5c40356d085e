"""Widgets where people use them: JupyterLab in a real browser runs study 4, shows the widgets, and
a slider changes the picture.
"""

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from browser import Browser, needs_chromium, wait

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.xdist_group("app")


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    "A JupyterLab of its own over an empty folder: the folder, and its address."
    home = tmp_path_factory.mktemp("lab home")
    root, port = tmp_path_factory.mktemp("notebooks"), free_port()
    own = {
        f"JUPYTER_{name}_DIR": str(home / name.lower()) for name in ("CONFIG", "DATA", "RUNTIME")
    } | {
        "JUPYTERLAB_SETTINGS_DIR": str(home / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(home / "workspaces"),
        "HOME": str(home),
        "OMP_NUM_THREADS": "1",
    }
    settings = (
        home
        / "settings"
        / "@jupyterlab"
        / "apputils-extension"
        / "notification.jupyterlab-settings"
    )
    settings.parent.mkdir(parents=True)
    settings.write_text('{"fetchNews": "false"}')  # no question about news over the page
    words = [
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
    log = open(home / "log.txt", "w")
    process = subprocess.Popen(
        words,
        stdout=log,
        stderr=log,
        env={**os.environ, **own, "MPLBACKEND": "module://matplotlib_inline.backend_inline"},
        cwd=root,
    )
    try:
        wait(
            lambda: process.poll() is not None or "is running at" in (home / "log.txt").read_text(),
            120,
            "JupyterLab to start",
        )
        assert process.poll() is None, (home / "log.txt").read_text()[-2000:]
        yield root, f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        try:
            process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        log.close()


def notebook(path: Path, cells: list[str]) -> None:
    "Write a notebook of code cells."
    made = [
        {
            "cell_type": "code",
            "execution_count": None,
            "id": f"c{k}",
            "metadata": {},
            "outputs": [],
            "source": text,
        }
        for k, text in enumerate(cells)
    ]
    kernel = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    path.write_text(
        json.dumps({"cells": made, "metadata": kernel, "nbformat": 4, "nbformat_minor": 5})
    )


def run_all(browser: Browser, address: str, name: str, ready: str, seconds: float) -> None:
    """Open a notebook, run its cells, wait for what must appear; a traceback in an output ends the
    wait.
    """
    browser.open(
        f"{address}/lab/tree/{name}?reset",
        "window.jupyterapp && document.querySelector('.jp-Notebook .jp-Cell')",
        180,
    )
    browser.until(
        "jupyterapp.shell.currentWidget.sessionContext.session?.kernel?.connectionStatus === "
        "'connected'",
        120,
    )
    browser.js("jupyterapp.commands.execute('notebook:run-all-cells').then(() => 1, () => 1), 1")
    failed = (
        '[...document.querySelectorAll(\'[data-mime-type="application/vnd.jupyter.error"], '
        '[data-mime-type="application/vnd.jupyter.stderr"]\')].map(e => e.innerText)'
        ".filter(t => t.includes('Error')).join()"
    )
    browser.until(f"{failed} || ({ready})", seconds)
    assert not browser.js(failed)


@needs_chromium
def test_study_4_in_jupyterlab_and_its_widgets(lab, tmp_path_factory):
    root, address = lab
    book = json.loads((ROOT / "papers" / "p4_dcgan_chest_xray.ipynb").read_text())
    cells = ["".join(c["source"]) for c in book["cells"] if c["cell_type"] == "code"]
    cells = [
        re.sub(r'^preset: str = "quick"', 'preset: str = "smoke"', c, flags=re.MULTILINE)
        for c in cells
    ]
    cells = [
        re.sub(r'^outputs: str = ""', f'outputs: str = "{root / "outputs"}"', c, flags=re.MULTILINE)
        for c in cells
    ]
    last = "from medgan_nb.app.browse import browse, explore\nrun.lock.release()\n"
    notebook(root / "p4.ipynb", [*cells, last + "browse(run.folder)", "explore(run.folder)"])
    with Browser(tmp_path_factory.mktemp("profile"), 1400, 1000) as browser:
        run_all(
            browser,
            address,
            "p4.ipynb",
            "document.querySelectorAll('.noUi-handle').length > 0 && "
            "document.querySelectorAll('[class*=medgan-tile]').length >= 24",
            400,
        )
        assert len(list((root / "outputs" / "p4").glob("*/metrics.json"))) == 1
        handle, tiles = (
            "document.querySelector('.noUi-handle')",
            "document.querySelector('[class*=medgan-tile]')",
        )
        walked, large = (
            f"{handle}.closest('.widget-hbox').querySelector('img').src",
            f"{tiles}.closest('.widget-vbox').querySelector(':scope > img').src",
        )
        before = browser.until(walked)
        browser.js(f"{handle}.scrollIntoView({{block: 'center'}}), {handle}.focus()")
        for _ in range(10):
            browser.press("ArrowRight")
        assert browser.until(
            f"{handle}.closest('.widget-slider').innerText.includes('0.20') && {walked} !== "
            f"{json.dumps(before)}"
        )
        before = browser.until(large)
        browser.click("[class*=medgan-tile][class*='-7 '], [class*=medgan-tile][class$='-7']")
        assert browser.until(f"{large} !== {json.dumps(before)}")
        look(browser, "lab.png")
        pictures = (
            "[...jupyterapp.shell.currentWidget.content.model.cells].find(c => "
            "c.sharedModel.getSource().includes('live_curve()')).outputs.toJSON()"
        )
        assert (
            browser.js(f"{pictures}.filter(o => o.data?.['image/png']).length") == 2
        )  # the samples at its end, and the curve


@needs_chromium
def test_launcher_starts_a_run_shows_its_training_stops_it_and_goes_on(lab, tmp_path_factory):
    "Paper 2's smoke preset, whose training has twenty ticks."
    root, address = lab
    outputs = root / "launched"
    notebook(
        root / "start.ipynb",
        [
            "from medgan_nb.app.launch import launcher\n"
            f"launcher({str(outputs)!r}, poll_seconds=0.3)"
        ],
    )
    text, image = (
        "document.querySelector('.jp-OutputArea').innerText",
        "[...document.querySelectorAll('.jp-OutputArea img')].filter(e => e.offsetWidth && "
        "e.naturalWidth)",
    )

    def button(name):
        return (
            "[...document.querySelectorAll('.jupyter-button')].find(e => e.innerText.trim() "
            f"=== '{name}')"
        )

    with Browser(tmp_path_factory.mktemp("profile"), 1400, 1000) as browser:
        run_all(
            browser,
            address,
            "start.ipynb",
            "document.querySelectorAll('.widget-dropdown select').length >= 2",
            180,
        )
        assert "No runs yet" in browser.js(text)
        browser.js(
            "(() => { const [study, preset] ="
            " document.querySelectorAll('.widget-dropdown select');"
            " for (const [box, word] of [[study, 'p2'], [preset, 'smoke']]) {"
            " box.value = [...box.options].find(o => o.text.startsWith(word)).value;"
            " box.dispatchEvent(new Event('change', {bubbles: true})); } })()"
        )
        browser.click(".jupyter-button.mod-primary")
        browser.until(
            f"{text}.includes('training the GAN') && document.querySelector('.jp-OutputArea "
            f"progress') && {image}.length",
            300,
        )
        look(browser, "launcher_training.png")
        browser.js(f"{button('Stop')}.click(), 1")
        browser.until(f"!{button('Start')}.disabled", 180)
        assert "What was done is kept" in browser.js(text) and "interrupted" in browser.js(
            "document.querySelector('.jp-OutputArea table').innerText"
        )
        (run,) = outputs.glob("p2/n*")
        left = {path.name for path in run.iterdir()}
        assert (
            "log.jsonl" in left
            and left & {"checkpoint.safetensors", "weights.safetensors"}
            and "metrics.json" not in left
        )
        browser.click(".jupyter-button.mod-primary")
        browser.until(f"{button('Start')}.disabled", 30)
        browser.until(f"!{button('Start')}.disabled", 300)
        assert "1 of 1 runs done in" in browser.js(text) and run.name in browser.js(text)
        assert (
            "checkpoint.safetensors" not in left or browser.js(f"{image}.length") == 2
        )  # losses and samples
        look(browser, "launcher.png")
    steps = [json.loads(line)["step"] for line in (run / "log.jsonl").read_text().splitlines()]
    assert (
        (run / "metrics.json").exists()
        and steps == list(range(1, 21))
        and not (run / "live.png").exists()
    )


def look(browser: Browser, name: str) -> None:
    "Keep a screenshot where MEDGAN_SCREENSHOTS names a folder."
    if os.environ.get("MEDGAN_SCREENSHOTS"):
        browser.screenshot(Path(os.environ["MEDGAN_SCREENSHOTS"]) / name)


def test_index_notebook_runs_without_any_run(tmp_path):
    words = [
        sys.executable,
        "-m",
        "papermill",
        str(ROOT / "papers" / "index.ipynb"),
        str(tmp_path / "out.ipynb"),
        "--no-progress-bar",
    ]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    book = json.loads((ROOT / "papers" / "index.ipynb").read_text())
    assert (
        not any(cell.get("outputs") for cell in book["cells"])
        and book["metadata"]["kernelspec"]["language"] == "python"
    )
    for link in re.findall(
        r"\]\((p\w+\.ipynb)\)", json.dumps(json.loads((tmp_path / "out.ipynb").read_text()))
    ):
        assert (ROOT / "papers" / link).exists()
