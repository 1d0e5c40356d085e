"""The command line answers at once, in one line, and asks the network only where it is told to."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import NETWORK_LOG

from medgan_nb.core.errors import WeightsError
from medgan_nb.core.weights import INCEPTION, load_published_weights
from medgan_nb.experiments.parameters import BOUNDS
from medgan_nb.studies.registry import STUDIES

COMMAND = str(Path(sys.executable).parent / "medgan-nb")
LIGHT = [
    ["--help"],
    ["status"],
    ["reproduce", "--help"],
    ["sweep", "--help"],
    ["data", "list"],
    ["reproduce", "p9"],
    ["reproduce", "--preset", "fast"],
    ["status", "--watch", "-1"],
    ["sweep", "p1", "-p", "seed=3:3"],
    ["sweep", "p1", "-p", "gan_epochs=-1"],
    ["trial", "--help"],
    ["generate", "--help"],
    ["share", "--help"],
    ["generate", "run", "--out", "images", "--n", "0"],
]
CODE = """
import sys
from medgan_nb.cli import main
try:
    main()
finally:
    loaded = {"torch", "numpy", "matplotlib", "IPython"} & set(sys.modules)
    print("loaded:", *sorted(loaded), file=sys.stderr)
"""


def medgan_nb(*words, **options) -> subprocess.CompletedProcess:
    return subprocess.run(
        [COMMAND, *map(str, words)], capture_output=True, text=True, timeout=60, **options
    )


@pytest.mark.parametrize("words", LIGHT, ids=" ".join)
def test_help_status_and_refusals_import_neither_torch_nor_numpy(tmp_path, words):
    done = subprocess.run(
        [sys.executable, "-c", CODE, *words], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.stderr.splitlines()[-1].strip() == "loaded:", done.stderr
    assert "Traceback" not in done.stderr


def cpu_seconds(*command: str) -> float:
    "Processor time of a command: the least of three, as other processes disturb it."
    times = []
    for _ in range(3):
        before = os.times()
        subprocess.run(command, capture_output=True, check=True)
        after = os.times()
        times.append(sum(after[2:4]) - sum(before[2:4]))
    return min(times)


def test_help_takes_less_than_a_third_of_importing_torch():
    assert cpu_seconds(COMMAND, "--help") < cpu_seconds(sys.executable, "-c", "import torch") / 3


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["status", "--watch", "nan"], "--watch"),
        (["status", "--watch", "inf"], "--watch"),
        (["sweep", "p1", "-p", "seed=0:3000000000"], "3000000000 values; expected 1 to 10000"),
        (["sweep", "p1", "-p", "seed=1", "-p", "seed=2"], "-p seed is there twice"),
        (["sweep", "p1", "-p", "seed=3:3"], "0 values"),
        (["sweep", "p1", "-p", "gan_epochs=-1"], "gan_epochs is -1; expected 0 to 1 000 000"),
        (["sweep", "p1", "-p", "size=1e99"], "size is 1e+99; expected 0 to 1 024"),
        (["reproduce", "p1", "--jobs", "-1"], "--jobs"),
        (["trial", "--hours", "nan"], "--hours"),
        (["trial", "--hours", "1e9"], "--hours"),
        (["trial", "--seed", "-1"], "--seed"),
        (["generate", "run", "--out", "images", "--n", "0"], "--n"),
        (["generate", "run", "--out", "images", "--n", str(10**12)], "--n"),
        (["generate", "run", "--out", "images", "--psi", "nan"], "--psi"),
    ],
)
def test_numbers_that_cannot_be_meant_are_refused(words, expected):
    done = medgan_nb(*words)
    assert done.returncode == 2 and expected in done.stderr and "Traceback" not in done.stderr


def test_help_names_the_bounds_of_every_number():
    text = " ".join(medgan_nb("sweep", "--help").stdout.split())
    for study in STUDIES.values():
        for name, value in study.parameters.items():
            if type(value) in (int, float):
                assert name in BOUNDS, f"{study.name}: no bounds for {name}"
                low, high = (f"{bound:,}".replace(",", " ") for bound in BOUNDS[name][:2])
                assert f"{name}: {low} to {high} (" in text


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
@pytest.mark.parametrize("words", [["data", "list"], ["--help"], ["status"]])
def test_a_full_disk_behind_standard_output_is_one_line(tmp_path, words):
    folder = tmp_path / "p4" / "n1-m-s0-smoke"
    (folder / "leases").mkdir(parents=True)
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [COMMAND, *words, *(["--outputs", tmp_path] if words == ["status"] else [])],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert done.returncode == 1
    assert done.stderr == "medgan-nb: the output cannot be written (No space left on device)\n"


@pytest.mark.parametrize("seconds", [0.1, 0.4, 1.5])
def test_an_interrupt_at_the_start_leaves_no_traceback(tmp_path, seconds):
    "The installed command does what this code does; it says when Python itself has started."
    code = "print('up', flush=True); from medgan_nb.entry import main; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", code, "report", "--outputs", tmp_path],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "up\n"
    time.sleep(seconds)
    process.send_signal(signal.SIGINT)
    assert "Traceback" not in process.communicate(timeout=120)[1]
    assert process.returncode in (0, 130)


def test_the_installed_command_is_the_light_one():
    text = (Path(__file__).parent.parent / "settings.ini").read_text()
    assert "console_scripts = medgan-nb=medgan_nb.entry:main" in text


def test_a_folder_of_answers_is_not_called_an_image(tmp_path):
    done = medgan_nb("reader-study", "score", tmp_path)
    assert done.returncode == 2 and "expected a file of answers" in done.stderr


def test_offline_nothing_is_asked(tmp_path, monkeypatch):
    def no_network(*words):
        raise AssertionError(f"asked the network: {words}")

    monkeypatch.setattr("socket.getaddrinfo", no_network)
    monkeypatch.setenv("MEDGAN_OFFLINE", "1")
    with pytest.raises(WeightsError, match="MEDGAN_OFFLINE is set"):
        load_published_weights(INCEPTION, {}, tmp_path)


def test_a_smoke_run_asks_no_network(smoke_run):
    """No name is looked up and nothing outside this machine is connected to, in the command, in the
    process of the run, and in its kernel.
    """
    log = smoke_run.parent.parent / NETWORK_LOG
    if os.environ.get("MEDGAN_SMOKE_RUN"):
        pytest.skip("a run made before: nobody listened")
    assert log.read_text().splitlines() == []


@pytest.mark.skipif(shutil.which("unshare") is None, reason="no unshare here")
def test_without_loopback_a_run_says_so_at_once(tmp_path):
    isolated = ["unshare", "--user", "--map-root-user", "--net"]
    if subprocess.run([*isolated, "true"], capture_output=True).returncode:
        pytest.skip("no network namespace may be made here")
    words = ["reproduce", "p4", "--preset", "smoke", "--outputs", tmp_path]
    started = time.monotonic()
    done = subprocess.run([*isolated, COMMAND, *words], capture_output=True, text=True)
    assert done.returncode == 1 and "no connection to 127.0.0.1" in done.stderr
    assert time.monotonic() - started < 60


BREAKS_LATE = 'case "$*" in *download-only*|update*) exit 0;; *) exit 100;; esac'


@pytest.mark.parametrize(
    ("user", "apt_get", "status"),
    [(1000, "exit 0", 1), (0, None, 1), (0, "exit 100", 1), (0, BREAKS_LATE, 2), (0, "exit 0", 2)],
)
def test_chromium_is_installed_where_it_may_be(tmp_path, user, apt_get, status):
    "The status tells CI whether browser tests may be skipped; an apt-get of our own stands in."
    programs = {"id": f"echo {user}", "apt-get": apt_get}
    for name, body in programs.items():
        if body:
            (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
            (tmp_path / name).chmod(0o755)
    script = Path(__file__).parent / "chromium.sh"
    shell = shutil.which("sh")
    done = subprocess.run([shell, script], env={"PATH": str(tmp_path)}, capture_output=True)
    assert done.returncode == status
    (tmp_path / "chromium").write_text("#!/bin/sh\n")
    (tmp_path / "chromium").chmod(0o755)
    assert subprocess.run([shell, script], env={"PATH": str(tmp_path)}).returncode == 0
