"""A batch in bad weather: many processes in one folder, a full disk, folders that go away, files cut short, clocks that jump, a planted error."""

import multiprocessing
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import pytest
from toy_study import grid

from medgan_nb.core.errors import DataError
from medgan_nb.core.files import atomic_write, read_json, read_jsonl, write_json
from medgan_nb.experiments import lease as claim
from medgan_nb.experiments.estimate import plan
from medgan_nb.experiments.executor import DONE, Cell
from medgan_nb.experiments.grid import sweep
from medgan_nb.experiments.run import config_hash, run_id
from medgan_nb.experiments.status import run_statuses

HERE = Path(__file__).resolve().parent
ENVIRONMENT = os.environ | {
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": str(HERE),
    "PYTHONWARNINGS": "ignore",
}


def quiet(line):
    return None


def tiny(outputs: Path, count: int) -> list[Cell]:
    "A grid of runs that need no notebook."
    configs = [
        {
            "paper": "p0",
            "params": {"dataset_size": k, "model": "m", "seed": 0, "preset": "smoke"},
            "settings": {},
            "data": {"fingerprint": "0"},
        }
        for k in range(count)
    ]
    return [
        Cell("p0", Path("p0.ipynb"), {}, config, outputs / "p0" / run_id(config))
        for config in configs
    ]


def do(cell: Cell, threads, keep, stop) -> str:
    "The work of a tiny run: a line in a journal, and the files that make it done."
    with open(cell.folder.parent.parent / "journal", "a") as file:
        file.write(f"{cell.folder.name} {os.getpid()}\n")
    write_json(cell.folder / "config.json", cell.config)
    write_json(cell.folder / "metrics.json", {"hash": config_hash(cell.config), "seconds": 0})
    atomic_write(cell.folder / "executed.ipynb", '{"cells": [{}], "metadata": {}}')
    return DONE


def share(outputs: Path, gate) -> None:
    "One of eight processes."
    gate.wait()
    outcome = sweep(tiny(outputs, 200), jobs=2, work=do).wait(quiet)
    sys.exit(0 if set(outcome.values()) == {DONE} and len(outcome) == 200 else 1)


def test_eight_processes_share_two_hundred_runs(tmp_path):
    context = multiprocessing.get_context("fork")
    gate = context.Event()
    processes = [context.Process(target=share, args=(tmp_path, gate)) for _ in range(8)]
    for process in processes:
        process.start()
    gate.set()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 8
    journal = [line.split() for line in (tmp_path / "journal").read_text().splitlines()]
    assert sorted(run for run, _ in journal) == sorted(
        cell.folder.name for cell in tiny(tmp_path, 200)
    ), "lost or doubled"
    assert len({process for _, process in journal}) == 8, "some process did nothing"


def driver(outputs: Path, *words: str, **also) -> subprocess.Popen:
    "A sweep of the toy study in a process of its own, which hears Ctrl-C even where these tests were started in the background, deaf to it."

    def hear():
        return signal.signal(signal.SIGINT, signal.SIG_DFL)

    return subprocess.Popen(
        [sys.executable, str(HERE / "toy_study.py"), str(outputs), *words],
        env=ENVIRONMENT | also.pop("env", {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=hear,
        **also,
    )


def snapshot(folder: Path) -> dict:
    "Every file that is a result, with its content and when it was written."
    names = ("metrics.json", "executed.ipynb", "weights.safetensors", "config.json")
    return {
        path: (path.read_bytes(), path.stat().st_mtime_ns)
        for name in names
        for path in folder.rglob(name)
    }


@pytest.fixture(scope="module")
def weather(tmp_path_factory):
    "An outputs folder with two finished toy runs."
    outputs = tmp_path_factory.mktemp("toy") / "outputs"
    with pytest.MonkeyPatch.context() as context:
        context.setenv("PYTHONPATH", str(HERE))  # for the kernels of batches begun in this process
        assert set(sweep(grid(outputs, 2), jobs=2).wait(quiet).values()) == {DONE}
        yield outputs


@contextmanager
def no_file_larger_than(size: int):
    "A limit on file sizes stands for a full disk, in this process and those it starts."
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.xdist_group("weather")
def test_an_error_is_named_and_only_the_failed_is_repeated(weather):
    before = snapshot(weather)
    batch = sweep(grid(weather, 2) + grid(weather, 1, fault="error", dataset_size=20))
    outcome = batch.wait(quiet)
    (folder,) = weather.glob("toy/n20-*")
    assert outcome.pop(folder.name).startswith(
        f"cell In [6] `results = parts(run, weights)`: ValueError: planted in outputs/toy/{folder.name}"
    )
    assert (
        set(outcome.values()) == {DONE}
        and batch.lines[-1].endswith("2 of 3 done, 1 failed")
        and snapshot(weather).items() >= before.items()
    )
    for name in ("failed.ipynb", "failure.txt"):
        text = (folder / name).read_text()
        assert "planted in" in text and "part(run, weights, k, fault)" in re.sub(
            r"(\\u001b|\x1b)\[[0-9;]*m", "", text
        )
        assert str(weather.parent) not in text and str(HERE) not in text
    assert not (folder / "metrics.json").exists() and not (folder / "running.ipynb").exists()
    assert Counter(row["state"].split(":")[0] for row in run_statuses(weather, ["toy"])) == {
        "failed": 1,
        "done": 2,
    }
    stages = {path: path.stat().st_mtime_ns for path in folder.glob("stages/*.json")}
    assert (
        sweep(grid(weather, 1, fault="error", dataset_size=20))
        .wait(quiet)[folder.name]
        .startswith("cell In [6]")
    )
    assert {path: path.stat().st_mtime_ns for path in stages} == stages and len(stages) == 2, (
        "a stage that was done was done again"
    )


@pytest.mark.xdist_group("weather")
def test_a_notebook_cut_short_is_not_counted_as_done(weather):
    cells = grid(weather, 2)
    path = cells[0].folder / "executed.ipynb"
    path.write_bytes(path.read_bytes()[:-200])
    before = snapshot(weather)
    batch = sweep(cells)
    assert set(batch.wait(quiet).values()) == {DONE} and batch.lines[0].startswith(
        "1 of 2 runs found done"
    )
    assert read_json(path)["cells"]
    assert all(now == before[file] for file, now in snapshot(weather).items() if file != path)


@pytest.mark.xdist_group("weather")
def test_a_full_disk_leaves_what_was_there(weather):
    "Too little room for the probe: the batch does not begin. Met inside a run: that run fails and is named."
    before = snapshot(weather)
    with (
        no_file_larger_than(300_000),
        pytest.raises(DataError, match="outputs: cannot be written .*Free space"),
    ):
        sweep(grid(weather, 2, dataset_size=30))
    assert snapshot(weather) == before and not list(weather.glob("toy/n30-*"))
    with no_file_larger_than(2_000_000):
        outcome = sweep(grid(weather, 1, dataset_size=30, fault="big")).wait(quiet)
    (text,) = outcome.values()
    assert (
        "DataError: outputs/toy/n30-toy-s0" in text and "cannot be written (File too large)" in text
    )
    assert snapshot(weather).items() >= before.items() and not list(
        weather.glob("toy/n30-*/metrics.json")
    )


@pytest.mark.xdist_group("weather")
def test_stopped_with_ctrl_c_and_gone_on_with(weather):
    """Ctrl-C reaches the training, which writes a checkpoint at the end of its tick, however long that takes (here four seconds, more than Jupyter waits);
    nothing is left running; the repeat goes on from there."""
    process = driver(weather, "seeds=1", "dataset_size=35", "fault=slow", start_new_session=True)
    begun = time.monotonic()
    while (
        not any(len(read_jsonl(path)) >= 2 for path in weather.glob("toy/n35-*/log.jsonl"))
        and time.monotonic() - begun < 300
    ):
        time.sleep(0.1)

    def state():
        return [row["state"] for row in run_statuses(weather, ["toy"]) if row["run"].startswith("n35")]

    while_running = state()
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=120)[0]
    assert (
        while_running == ["running"]
        and state() == ["stopped"]
        and "stopping: each run ends at its next checkpoint" in said
    )
    (cell,) = grid(weather, 1, dataset_size=35, fault="slow")
    assert (cell.folder / "checkpoint.safetensors").exists() and not (
        cell.folder / "running.ipynb"
    ).exists()
    log = (cell.folder / "log.jsonl").read_text()
    assert sweep([cell]).wait(quiet) == {cell.folder.name: DONE}
    assert len(log.splitlines()) == 2 and (cell.folder / "log.jsonl").read_text().startswith(log), (
        "work was lost"
    )


def test_an_outputs_folder_that_vanishes_is_named(tmp_path):
    outputs, other = tmp_path / "outputs", tmp_path / "other"
    assert set(sweep(tiny(other, 3), work=do).wait(quiet).values()) == {DONE}
    before = snapshot(other)

    def removed(cell, threads, keep, stop):
        shutil.rmtree(outputs)
        while keep() and not stop():
            time.sleep(0.02)
        return "its folder vanished"

    with (
        patch.object(claim, "BEAT_SECONDS", 0.1),
        pytest.raises(DataError, match="outputs: vanished while runs were at work"),
    ):
        sweep(tiny(outputs, 5), jobs=1, work=removed).wait(quiet)
    assert snapshot(other) == before
    assert set(sweep(tiny(outputs, 5), jobs=1, work=do).wait(quiet).values()) == {DONE}


@pytest.mark.skipif(os.geteuid() == 0, reason="the super-user may write everywhere")
def test_an_outputs_folder_without_permission(tmp_path):
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(DataError, match="locked: cannot be written"):
        sweep(tiny(tmp_path / "locked", 2), work=do)


@pytest.mark.parametrize("place", ["file/outputs", "/proc/outputs"])
def test_an_outputs_folder_that_cannot_be(tmp_path, place):
    (tmp_path / "file").write_text("")
    with pytest.raises(
        DataError, match="cannot be written .*Free space or choose another outputs folder"
    ):
        sweep(tiny(tmp_path / place, 2), work=do)


def test_a_clock_that_jumps_decides_nothing(tmp_path):
    "Years forward and back with every look at the clock, claims that seem from the future: a living owner keeps its run, all get done."
    mine = claim.take(tiny(tmp_path, 1)[0].folder)
    os.utime(mine.path, (1, 1))
    ticks = iter(range(10**9))
    with patch("time.time", side_effect=lambda: 1e9 if next(ticks) % 2 else 4e9):
        assert claim.take(tiny(tmp_path, 1)[0].folder) is None
        batch = sweep(tiny(tmp_path, 6), jobs=2, work=do)
        while len(batch.outcome) < 5:
            time.sleep(0.05)
        assert run_statuses(tmp_path, ["p0"])[0]["state"] == "running"
        os.utime(mine.path, (4e9, 4e9))
        mine.release("stopped")
        assert set(batch.wait(quiet).values()) == {DONE}
        assert "6 runs, 6 done" in "\n".join(plan(tiny(tmp_path, 6), 1))


@pytest.mark.xdist_group("weather")
def test_a_clock_that_jumps_under_a_real_run(weather, tmp_path):
    "The same inside the processes of a run and its kernel: an hour forward, and back, every few seconds."
    (tmp_path / "sitecustomize.py").write_text(
        "import time\n_real = time.time\n"
        "time.time = lambda: _real() + 3600 * (int(time.monotonic() / 5) % 2)\n"
    )
    jumping = driver(
        weather, "seeds=1", "dataset_size=25", env={"PYTHONPATH": f"{tmp_path}{os.pathsep}{HERE}"}
    )
    said = jumping.communicate()[0]
    clear = (
        "Kernel didn't respond" in said and jumping.returncode == 1
    )  # its client measures patience by that clock; a repeat gets through
    assert jumping.returncode == 0 or clear, said
    assert set(sweep(grid(weather, 1, dataset_size=25)).wait(quiet).values()) == {DONE}
