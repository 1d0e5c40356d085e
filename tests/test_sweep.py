"""Sweeps under faults: many processes, a full disk, vanishing folders, jumping clocks."""

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
from medgan_nb.experiments import lease
from medgan_nb.experiments.estimate import dry_run_report
from medgan_nb.experiments.executor import DONE, RunSpec
from medgan_nb.experiments.grid import expand_grid, run_specs
from medgan_nb.experiments.lease import Lease
from medgan_nb.experiments.run import config_hash, run_id
from medgan_nb.experiments.status import run_statuses
from medgan_nb.experiments.sweep import start_sweep
from medgan_nb.studies.registry import STUDIES

HERE = Path(__file__).resolve().parent
ENVIRONMENT = os.environ | {
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": str(HERE),
    "PYTHONWARNINGS": "ignore",
}


def quiet(line):
    return None


def toy_specs(outputs: Path, count: int) -> list[RunSpec]:
    "Runs that need no notebook."
    configs = [
        {
            "paper": "p0",
            "params": {
                "dataset": "toy",
                "dataset_size": k,
                "model": "m",
                "seed": 0,
                "preset": "smoke",
            },
            "settings": {},
            "variant": {},
            "data": {
                "name": "toy",
                "simulated": True,
                "fingerprint": "0",
                "n_train": 1,
                "n_test": 1,
            },
        }
        for k in range(count)
    ]
    return [
        RunSpec("p0", Path("p0.ipynb"), {}, config, outputs / "p0" / run_id(config))
        for config in configs
    ]


def write_files(spec: RunSpec, threads, heartbeat, should_stop) -> str:
    "The work of a toy run: a line in a journal, and the files that make it done."
    with open(spec.folder.parent.parent / "journal", "a") as file:
        file.write(f"{spec.folder.name} {os.getpid()}\n")
    write_json(spec.folder / "config.json", spec.config)
    metrics = {"paper": "p0", "results": [], "versions": {}, "seconds": 0.0}
    write_json(spec.folder / "metrics.json", metrics | {"hash": config_hash(spec.config)})
    atomic_write(spec.folder / "executed.ipynb", '{"cells": [{}], "metadata": {}}')
    return DONE


def sweep_and_exit(outputs: Path, start) -> None:
    "One of eight processes: 200 runs, exit status 0 if all are done."
    start.wait()
    outcomes = start_sweep(toy_specs(outputs, 200), jobs=2, execute=write_files).wait(quiet)
    sys.exit(0 if set(outcomes.values()) == {DONE} and len(outcomes) == 200 else 1)


def test_eight_processes_share_two_hundred_runs(tmp_path):
    context = multiprocessing.get_context("fork")
    start = context.Event()
    processes = [context.Process(target=sweep_and_exit, args=(tmp_path, start)) for _ in range(8)]
    for process in processes:
        process.start()
    start.set()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 8
    journal = [line.split() for line in (tmp_path / "journal").read_text().splitlines()]
    assert sorted(run for run, _ in journal) == sorted(
        spec.folder.name for spec in toy_specs(tmp_path, 200)
    ), "a run was lost or done twice"
    assert len({process for _, process in journal}) == 8, "a process did nothing"


def driver(outputs: Path, *words: str, **options) -> subprocess.Popen:
    "A sweep of the toy study in its own process, with Ctrl-C enabled even in the background."

    def enable_ctrl_c():
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    return subprocess.Popen(
        [sys.executable, str(HERE / "toy_study.py"), str(outputs), *words],
        env=ENVIRONMENT | options.pop("env", {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=enable_ctrl_c,
        **options,
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
def toy_outputs(tmp_path_factory):
    "An outputs folder with two finished toy runs."
    outputs = tmp_path_factory.mktemp("toy") / "outputs"
    with pytest.MonkeyPatch.context() as context:
        context.setenv("PYTHONPATH", str(HERE))  # for the kernels of sweeps started in this process
        assert set(start_sweep(grid(outputs, 2), jobs=2).wait(quiet).values()) == {DONE}
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


@pytest.mark.xdist_group("faults")
def test_an_error_is_named_and_only_the_failed_is_repeated(toy_outputs):
    before = snapshot(toy_outputs)
    sweep = start_sweep(grid(toy_outputs, 2) + grid(toy_outputs, 1, fault="error", dataset_size=20))
    outcomes = sweep.wait(quiet)
    (folder,) = toy_outputs.glob("toy/n20-*")
    assert outcomes.pop(folder.name).startswith(
        "cell In [6] `results = parts(run, weights)`: "
        f"ValueError: planted in outputs/toy/{folder.name}"
    )
    assert (
        set(outcomes.values()) == {DONE}
        and sweep.lines[-1].endswith("2 of 3 done, 1 failed")
        and snapshot(toy_outputs).items() >= before.items()
    )
    for name in ("failed.ipynb", "failure.txt"):
        text = (folder / name).read_text()
        assert "planted in" in text and "part(run, weights, k, fault)" in re.sub(
            r"(\\u001b|\x1b)\[[0-9;]*m", "", text
        )
        assert str(toy_outputs.parent) not in text and str(HERE) not in text
    assert not (folder / "metrics.json").exists() and not (folder / "running.ipynb").exists()
    assert Counter(row["state"].split(":")[0] for row in run_statuses(toy_outputs, ["toy"])) == {
        "failed": 1,
        "done": 2,
    }
    stages = {path: path.stat().st_mtime_ns for path in folder.glob("stages/*.json")}
    assert (
        start_sweep(grid(toy_outputs, 1, fault="error", dataset_size=20))
        .wait(quiet)[folder.name]
        .startswith("cell In [6]")
    )
    assert {path: path.stat().st_mtime_ns for path in stages} == stages and len(stages) == 2, (
        "a finished stage was run again"
    )


@pytest.mark.xdist_group("faults")
def test_a_notebook_cut_short_is_not_counted_as_done(toy_outputs):
    specs = grid(toy_outputs, 2)
    path = specs[0].folder / "executed.ipynb"
    path.write_bytes(path.read_bytes()[:-200])
    before = snapshot(toy_outputs)
    sweep = start_sweep(specs)
    assert set(sweep.wait(quiet).values()) == {DONE} and sweep.lines[0].startswith(
        "1 of 2 runs already done"
    )
    assert read_json(path)["cells"]
    assert all(now == before[file] for file, now in snapshot(toy_outputs).items() if file != path)


@pytest.mark.xdist_group("faults")
def test_a_full_disk_leaves_what_was_there(toy_outputs):
    "Full before the start: the sweep does not start. Full during a run: that run fails."
    before = snapshot(toy_outputs)
    with (
        no_file_larger_than(300_000),
        pytest.raises(DataError, match="outputs: cannot be written .*Free space"),
    ):
        start_sweep(grid(toy_outputs, 2, dataset_size=30))
    assert snapshot(toy_outputs) == before and not list(toy_outputs.glob("toy/n30-*"))
    with no_file_larger_than(2_000_000):
        outcomes = start_sweep(grid(toy_outputs, 1, dataset_size=30, fault="big")).wait(quiet)
    (text,) = outcomes.values()
    assert "outputs/toy/n30-toy-s0" in text and "cannot be written (File too large)" in text
    assert snapshot(toy_outputs).items() >= before.items() and not list(
        toy_outputs.glob("toy/n30-*/metrics.json")
    )


@pytest.mark.xdist_group("faults")
def test_interrupted_with_ctrl_c_and_resumed(toy_outputs):
    """Ctrl-C reaches the training, which writes a checkpoint at the end of its tick.

    However long that takes: here 4 s, more than Jupyter waits. Nothing is left running, and the
    repeated sweep resumes from there.
    """
    process = driver(
        toy_outputs, "seeds=1", "dataset_size=35", "fault=slow", start_new_session=True
    )
    begun = time.monotonic()
    while (
        not any(len(read_jsonl(path)) >= 2 for path in toy_outputs.glob("toy/n35-*/log.jsonl"))
        and time.monotonic() - begun < 300
    ):
        time.sleep(0.1)

    def state():
        return [
            row["state"]
            for row in run_statuses(toy_outputs, ["toy"])
            if row["run"].startswith("n35")
        ]

    while_running = state()
    process.send_signal(signal.SIGINT)
    output = process.communicate(timeout=120)[0]
    assert (
        while_running == ["running"]
        and state() == ["interrupted"]
        and "stopping: each run ends at its next checkpoint" in output
    )
    (spec,) = grid(toy_outputs, 1, dataset_size=35, fault="slow")
    assert (spec.folder / "checkpoint.safetensors").exists() and not (
        spec.folder / "running.ipynb"
    ).exists()
    log = (spec.folder / "log.jsonl").read_text()
    assert start_sweep([spec]).wait(quiet) == {spec.folder.name: DONE}
    assert len(log.splitlines()) == 2 and (spec.folder / "log.jsonl").read_text().startswith(log), (
        "work was lost"
    )


def test_an_outputs_folder_that_vanishes_is_named(tmp_path):
    outputs, other = tmp_path / "outputs", tmp_path / "other"
    assert set(start_sweep(toy_specs(other, 3), execute=write_files).wait(quiet).values()) == {DONE}
    before = snapshot(other)

    def remove_outputs(spec, threads, heartbeat, should_stop):
        shutil.rmtree(outputs)
        while heartbeat() and not should_stop():
            time.sleep(0.02)
        return "its folder vanished"

    with (
        patch.object(lease, "HEARTBEAT_SECONDS", 0.1),
        pytest.raises(DataError, match="outputs: vanished while runs were at work"),
    ):
        start_sweep(toy_specs(outputs, 5), jobs=1, execute=remove_outputs).wait(quiet)
    assert snapshot(other) == before
    assert set(
        start_sweep(toy_specs(outputs, 5), jobs=1, execute=write_files).wait(quiet).values()
    ) == {DONE}


@pytest.mark.skipif(os.geteuid() == 0, reason="the super-user may write everywhere")
def test_an_outputs_folder_without_permission(tmp_path):
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(DataError, match="locked: cannot be written"):
        start_sweep(toy_specs(tmp_path / "locked", 2), execute=write_files)


@pytest.mark.parametrize("place", ["file/outputs", "/proc/outputs"])
def test_an_outputs_folder_that_cannot_be(tmp_path, place):
    (tmp_path / "file").write_text("")
    with pytest.raises(
        DataError, match="cannot be written .*Free space or choose another outputs folder"
    ):
        start_sweep(toy_specs(tmp_path / place, 2), execute=write_files)


def test_a_clock_that_jumps_decides_nothing(tmp_path):
    "Decades forward and back at every reading: a living owner keeps its run, and all get done."
    own_lease = Lease.acquire(toy_specs(tmp_path, 1)[0].folder)
    os.utime(own_lease.path, (1, 1))
    ticks = iter(range(10**9))
    with patch("time.time", side_effect=lambda: 1e9 if next(ticks) % 2 else 4e9):
        assert Lease.acquire(toy_specs(tmp_path, 1)[0].folder) is None
        sweep = start_sweep(toy_specs(tmp_path, 6), jobs=2, execute=write_files)
        while len(sweep.outcomes) < 5:
            time.sleep(0.05)
        assert run_statuses(tmp_path, ["p0"])[0]["state"] == "running"
        os.utime(own_lease.path, (4e9, 4e9))
        own_lease.release("interrupted")
        assert set(sweep.wait(quiet).values()) == {DONE}
        assert "6 runs, 6 done" in "\n".join(dry_run_report(toy_specs(tmp_path, 6), 1))


@pytest.mark.xdist_group("faults")
def test_a_clock_that_jumps_under_a_real_run(toy_outputs, tmp_path):
    "The same in the processes of a run and its kernel: an hour forward and back, repeatedly."
    (tmp_path / "sitecustomize.py").write_text(
        "import time\n_real = time.time\n"
        "time.time = lambda: _real() + 3600 * (int(time.monotonic() / 5) % 2)\n"
    )
    jumping = driver(
        toy_outputs,
        "seeds=1",
        "dataset_size=25",
        env={"PYTHONPATH": f"{tmp_path}{os.pathsep}{HERE}"},
    )
    output = jumping.communicate()[0]
    # Jupyter's client measures its timeout by that clock; a repeat gets through
    timed_out = "Kernel didn't respond" in output and jumping.returncode == 1
    assert jumping.returncode == 0 or timed_out, output
    assert set(start_sweep(grid(toy_outputs, 1, dataset_size=25)).wait(quiet).values()) == {DONE}


# --- seeds of splits and trainings ------------------------------------------------------------


def test_split_seed_and_seed_are_crossed():
    "Two splits of three trainings are six runs, and one condition of a table."
    grid = expand_grid(["preset=smoke", "split_seed=0:2", "seed=0:3"])
    specs = run_specs(STUDIES["p4"], grid, {})
    seeds = [(s.config["params"]["split_seed"], s.config["params"]["seed"]) for s in specs]
    assert seeds == [(split, seed) for split in range(2) for seed in range(3)]
    assert len({spec.folder for spec in specs}) == 6
    assert all(spec.config["variant"] == {} for spec in specs)


@pytest.mark.parametrize("name", STUDIES)
def test_split_and_training_have_seeds_of_their_own(name):
    study = STUDIES[name]
    assert study.parameters["split_seed"] == 0 == study.parameters["seed"]
    specs = run_specs(study, expand_grid(["preset=smoke", "split_seed=0,1"]), {})
    assert len({spec.folder for spec in specs}) == 2
