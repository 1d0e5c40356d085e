"""A batch in bad weather: many processes in one folder, a full disk, folders that go away, files cut short, clocks that jump, a planted error."""
import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from unittest.mock import patch

import pytest
from toy_study import grid

from medgan_nb.core import DataError, atomic_write, read_json, read_lines, write_json
from medgan_nb.study import claim
from medgan_nb.study.estimate import plan
from medgan_nb.study.execute import DONE, Cell
from medgan_nb.study.run import config_hash, run_id
from medgan_nb.study.status import states
from medgan_nb.study.sweep import sweep

HERE = Path(__file__).resolve().parent
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE), "PYTHONWARNINGS": "ignore"}
quiet = lambda line: None


def tiny(outputs: Path, count: int) -> list[Cell]:
    "A grid of runs that need no notebook."
    configs = [{"paper": "p0", "params": {"dataset_size": k, "model": "m", "seed": 0, "preset": "smoke"}, "settings": {}, "data": {"fingerprint": "0"}}
               for k in range(count)]
    return [Cell("p0", Path("p0.ipynb"), {}, config, outputs / "p0" / run_id(config)) for config in configs]


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
    assert sorted(run for run, _ in journal) == sorted(cell.folder.name for cell in tiny(tmp_path, 200)), "lost or doubled"
    assert len({process for _, process in journal}) == 8, "some process did nothing"


def driver(outputs: Path, *words: str, **also) -> subprocess.Popen:
    "A sweep of the toy study in a process of its own."
    return subprocess.Popen([sys.executable, str(HERE / "toy_study.py"), str(outputs), *words], env=ENVIRONMENT | also.pop("env", {}),
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **also)


def snapshot(folder: Path) -> dict:
    "Every file that is a result, with its content and when it was written."
    names = ("metrics.json", "executed.ipynb", "weights.safetensors", "config.json")
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for name in names for path in folder.rglob(name)}


@pytest.fixture(scope="module")
def weather(tmp_path_factory):
    "A grid of four toy runs: all done but one, in which an error is planted; what the batch said."
    outputs = tmp_path_factory.mktemp("toy") / "outputs"
    first = driver(outputs)
    said = first.communicate()[0]
    assert first.returncode == 0, said
    return outputs


@pytest.mark.xdist_group("weather")
def test_an_error_is_named_and_only_the_failed_is_repeated(weather):
    done = snapshot(weather)
    second = driver(weather, "fault=error", "dataset_size=20")
    said = second.communicate()[0]
    assert second.returncode == 1
    assert said.count("cell In [5] `results = parts(run, weights)`: ValueError: planted in outputs/toy/n20-toy-s0") >= 1
    assert said.count("ValueError: planted") == 4 and "4 failed" in said
    bad = sorted(weather.glob("toy/n20-*"))
    for folder in bad:
        assert "raise ValueError" in (folder / "failed.ipynb").read_text() and "raise ValueError" in (folder / "failure.txt").read_text()
        for name in ("failed.ipynb", "failure.txt"):
            assert str(weather.parent) not in (folder / name).read_text() and str(HERE) not in (folder / name).read_text()
        assert not (folder / "metrics.json").exists() and not (folder / "running.ipynb").exists()
    rows = states(weather, ["toy"])
    assert [row["state"].split(":")[0] for row in rows] == ["failed"] * 4 + ["done"] * 4
    assert snapshot(weather) == done | snapshot(bad[0]) | snapshot(bad[1]) | snapshot(bad[2]) | snapshot(bad[3])
    stages = {path: path.stat().st_mtime_ns for path in weather.glob("toy/n20-*/stages/part-0.json")}
    cells = grid(weather, fault="error", dataset_size=20)
    assert sweep(cells[:1]).wait(quiet)[cells[0].folder.name].startswith("cell In [5]")
    assert {path: path.stat().st_mtime_ns for path in stages} == stages, "a stage that was done was done again"


@pytest.mark.xdist_group("weather")
def test_a_notebook_cut_short_is_not_counted_as_done(weather):
    cell = grid(weather)[0]
    path, numbers = cell.folder / "executed.ipynb", (cell.folder / "metrics.json").read_bytes()
    path.write_bytes(path.read_bytes()[:-200])
    others = snapshot(weather / "toy") | {}
    batch = sweep(grid(weather))
    assert set(batch.wait(quiet).values()) == {DONE} and batch.lines[0].startswith("3 of 4 runs found done")
    assert read_json(path)["cells"] and (cell.folder / "metrics.json").read_bytes() == numbers
    assert all(now == others[file] for file, now in snapshot(weather).items() if file != path)


@pytest.mark.xdist_group("weather")
def test_a_full_disk_leaves_what_was_there(weather):
    "A limit on file sizes stands for the disk: too small for the probe, the batch does not begin; met inside a run, that run fails and is named."
    before = snapshot(weather)
    limit = lambda size: lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    refused = driver(weather, "dataset_size=30", preexec_fn=limit(300_000))
    said = refused.communicate()[0]
    assert refused.returncode == 1 and "cannot be written" in said and "Free space" in said and "Traceback" not in said
    failed = driver(weather, "dataset_size=30", "fault=big", preexec_fn=limit(2_000_000))
    said = failed.communicate()[0]
    assert failed.returncode == 1 and said.count("DataError") == 4 and "cannot be written" in said
    assert snapshot(weather) == before | {path: what for path, what in snapshot(weather).items() if "/n30-" in str(path)}
    assert not list(weather.glob("toy/n30-*/metrics.json"))


@pytest.mark.xdist_group("weather")
def test_stopped_with_ctrl_c_and_gone_on_with(weather):
    "Ctrl-C reaches the training, which writes a checkpoint; nothing is left running; the repeat goes on from there."
    process = driver(weather, "dataset_size=35", "fault=slow", start_new_session=True)
    begun = time.monotonic()
    while len([path for path in weather.glob("toy/n35-*/log.jsonl") if len(read_lines(path)) >= 2]) < 2 and time.monotonic() - begun < 120:
        time.sleep(0.1)
    running = [row["state"] for row in states(weather, ["toy"]) if row["run"].startswith("n35")]
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=60)[0]
    assert running == ["running"] * 2 and "stopping: each run ends at its next checkpoint" in said
    stopped = sorted(weather.glob("toy/n35-*"))
    assert [path.name for folder in stopped for path in folder.glob("checkpoint*")] == ["checkpoint.safetensors"] * 2
    assert [row["state"] for row in states(weather, ["toy"]) if row["run"].startswith("n35")] == ["stopped"] * 2
    steps = {folder: len(read_lines(folder / "log.jsonl")) for folder in stopped}
    cell = next(cell for cell in grid(weather, dataset_size=35, fault="slow") if cell.folder == stopped[0])
    log = (cell.folder / "log.jsonl").read_text()
    assert sweep([cell]).wait(quiet) == {cell.folder.name: DONE}
    assert (cell.folder / "log.jsonl").read_text().startswith("".join(log.splitlines(True)[:steps[cell.folder] - 1]))


def test_an_outputs_folder_that_vanishes_is_named(tmp_path):
    outputs, other = tmp_path / "outputs", tmp_path / "other"
    assert set(sweep(tiny(other, 3), work=do).wait(quiet).values()) == {DONE}
    before = snapshot(other)

    def removed(cell, threads, keep, stop):
        shutil.rmtree(outputs)
        while keep() and not stop():
            time.sleep(0.02)
        return "its folder vanished"

    with patch.object(claim, "BEAT_SECONDS", 0.1), pytest.raises(DataError, match="outputs: vanished while runs were at work"):
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
    with pytest.raises(DataError, match="cannot be written .*Free space or choose another outputs folder"):
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
        assert states(tmp_path, ["p0"])[0]["state"] == "running"
        os.utime(mine.path, (4e9, 4e9))
        mine.release("stopped")
        assert set(batch.wait(quiet).values()) == {DONE}
        assert "6 runs, 6 done" in "\n".join(plan(tiny(tmp_path, 6), 1))


@pytest.mark.xdist_group("weather")
def test_a_clock_that_jumps_under_real_runs(weather, tmp_path):
    "The same inside the processes of runs and their kernels: an hour back or forward every other second."
    (tmp_path / "sitecustomize.py").write_text("import time\n_real = time.time\n"
                                               "time.time = lambda: _real() + 3600 * (-1) ** int(time.monotonic() / 2)\n")
    jumping = driver(weather, "dataset_size=25", env={"PYTHONPATH": f"{tmp_path}{os.pathsep}{HERE}"})
    said = jumping.communicate()[0]
    assert jumping.returncode == 0, said
    assert all(cell.done for cell in grid(weather, dataset_size=25))
