"""Sweeps whose processes are killed at random end with each run done once, numbers undisturbed."""

import multiprocessing
import os
import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest
from toy_study import grid

import medgan_nb.experiments.process
from medgan_nb.core.files import read_json
from medgan_nb.experiments.executor import DONE
from medgan_nb.experiments.lease import Lease
from medgan_nb.experiments.sweep import start_sweep

HERE = Path(__file__).resolve().parent
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": str(HERE),
    "PYTHONWARNINGS": "ignore",
    "DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "20",
}
RUNS, KILLS = 3, 14


def start_process(outputs: Path, jobs: int = 1, scheduler: str = ""):
    "A sweep of the toy grid in a process of its own; forked, which saves the imports."
    process = multiprocessing.get_context("fork").Process(
        target=sweep_and_exit, args=(outputs, jobs, scheduler), daemon=True
    )
    process.start()
    return process


def sweep_and_exit(outputs: Path, jobs: int, scheduler: str) -> None:
    "What that process does; 0 if every run is done."
    os.setsid()
    os.environ.update(ENVIRONMENT)
    outcomes = start_sweep(grid(outputs, RUNS), jobs, scheduler).wait(lambda line: None)
    sys.exit(0 if set(outcomes.values()) == {DONE} else 1)


def exit_status(process) -> int:
    "The exit status of a sweep's process, waited for."
    process.join()
    return process.exitcode


def numbers(outputs: Path) -> dict:
    "metrics.json of every run, without the seconds."
    metrics_of_run = {
        path.parent.name: read_json(path) for path in sorted(outputs.glob("toy/*/metrics.json"))
    }
    return {
        name: {key: value for key, value in metrics.items() if key != "seconds"}
        for name, metrics in metrics_of_run.items()
    }


def complete(outputs: Path, undisturbed: dict) -> bool:
    "Whether every run is done."
    return numbers(outputs) == undisturbed and all(spec.done for spec in grid(outputs, RUNS))


def family(roots: list[psutil.Process], word: str) -> list[psutil.Process]:
    "Descendants of some processes whose command line holds a word."
    processes = []
    for root in roots:
        try:
            processes += [p for p in root.children(recursive=True) if word in " ".join(p.cmdline())]
        except psutil.Error:
            pass
    return processes


def kill(process: psutil.Process) -> int:
    "SIGKILL; 1 if it was alive."
    try:
        process.kill()
        return 1
    except psutil.Error:
        return 0


def check(outputs: Path, undisturbed: dict, seen: dict) -> None:
    "Every run is done once, with undisturbed numbers, and leaves no temporary files."
    assert numbers(outputs) == undisturbed
    assert {path: path.stat().st_ino for path in seen} == seen, "a metrics.json was written again"
    for spec in grid(outputs, RUNS):
        assert spec.done
        outcomes = [
            read_json(path).get("outcome") for path in (spec.folder / "leases").glob("*.json")
        ]
        assert outcomes.count(DONE) <= 1 and Lease.latest(spec.folder).number == len(outcomes)
        assert not list(spec.folder.glob("running.ipynb")) and not list(
            spec.folder.glob("failed.ipynb")
        )
        assert str(outputs.parent) not in (spec.folder / "executed.ipynb").read_text()


def note_metrics(outputs: Path, seen: dict) -> None:
    "Remember which file each metrics.json is, at first sight."
    for path in outputs.glob("toy/*/metrics.json"):
        seen.setdefault(path, path.stat().st_ino)


def wait_for(ready, seconds: float = 300.0) -> None:
    "Wait until a condition holds."
    begun = time.monotonic()
    while not ready():
        assert time.monotonic() - begun < seconds
        time.sleep(0.05)


def progress(outputs: Path) -> int:
    "Bytes of logs and stages; grows while any run makes progress."
    return sum(
        path.stat().st_size
        for name in ("log.jsonl", "stages/*.json")
        for path in outputs.glob(f"toy/*/{name}")
    )


def moment(outputs: Path, chance: random.Random, kernels, ended) -> bool:
    """Wait for a random moment while a kernel runs, or until all have ended.

    True if it is soon after a run logged a tick or finished a stage.
    """
    wait_for(lambda: kernels() or ended())
    late, before = chance.random() < 0.6, progress(outputs)
    if late:
        wait_for(lambda: progress(outputs) > before or not kernels())
    time.sleep(chance.uniform(0.0, 0.4 if late else 1.0))
    return late


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    "The numbers of a sweep that nobody disturbs."
    outputs = tmp_path_factory.mktemp("undisturbed") / "outputs"
    assert exit_status(start_process(outputs, jobs=2)) == 0
    return numbers(outputs)


def parts_of(sweeps: list) -> dict[str, list[psutil.Process]]:
    "The living processes of some sweeps: kernels, run processes, and the sweeps themselves."
    roots = [psutil.Process(one.pid) for one in sweeps if one.is_alive()]
    return {
        "kernel": family(roots, "ipykernel_launcher"),
        "run": family(roots, medgan_nb.experiments.process.__name__),
        "sweep": roots,
    }


@pytest.mark.xdist_group("kills")
def test_killed_at_random_moments(tmp_path, undisturbed):
    "Two sweeps share a grid; kernels, run processes and sweeps are killed. Repeated if it is done."
    chance, kills, late, rounds = random.Random(0), Counter(), 0, 0
    while kills.total() < KILLS:
        rounds += 1
        outputs, seen, sweeps = tmp_path / str(rounds) / "outputs", {}, []
        outputs.parent.mkdir()
        while kills.total() < KILLS:
            sweeps = [one for one in sweeps if one.is_alive()]
            if not sweeps and complete(outputs, undisturbed):
                break
            sweeps += [
                start_process(outputs)
                for _ in range(2 - len(sweeps))
                if not complete(outputs, undisturbed)
            ]
            on = moment(
                outputs,
                chance,
                kernels=lambda sweeps=sweeps: parts_of(sweeps)["kernel"],
                ended=lambda sweeps=sweeps: not any(one.is_alive() for one in sweeps),
            )
            victims = parts_of(sweeps)
            for kind in (
                chance.sample(["kernel", "run", "sweep"], chance.choice((1, 2)))
                if victims["kernel"]
                else []
            ):
                killed = kill(chance.choice(victims[kind])) if victims[kind] else 0
                kills[kind], late = kills[kind] + killed, late + killed * on
            note_metrics(outputs, seen)
        for one in sweeps:
            one.join()
        assert complete(outputs, undisturbed) or exit_status(start_process(outputs, jobs=2)) == 0
        check(outputs, undisturbed, seen)
    print(f"{dict(kills)}, {late} of them after a tick or a stage, in {rounds} rounds")
    assert min(kills[kind] for kind in ("kernel", "run", "sweep")) >= 3


def begin(*words: str) -> subprocess.Popen:
    "A Dask process, in a session of its own."
    return subprocess.Popen(
        [sys.executable, "-m", "dask", *words],
        env=os.environ | ENVIRONMENT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


@pytest.fixture
def cluster(tmp_path):
    "A Dask scheduler and two workers restarted by their nanny; the address and the nanny."
    pytest.importorskip("distributed")
    file = tmp_path / "scheduler.json"
    common = ["--scheduler-file", str(file), "--no-dashboard"]
    processes = [
        begin("scheduler", "--port", "0", "--host", "127.0.0.1", *common),
        begin(
            "worker",
            "--nworkers",
            "2",
            "--nthreads",
            "1",
            "--memory-limit",
            "0",
            "--local-directory",
            str(tmp_path / "workers"),
            *common,
        ),
    ]
    try:
        wait_for(file.exists)
        wait_for(lambda: len(workers(processes[1])) == 2)
        yield read_json(file)["address"], processes[1]
    finally:
        for process in processes:
            for child in (
                psutil.Process(process.pid).children(recursive=True)
                if process.poll() is None
                else []
            ):
                kill(child)
            process.kill()
            process.wait()


def workers(nanny: subprocess.Popen) -> list[psutil.Process]:
    "The worker processes under their nanny."
    return family([psutil.Process(nanny.pid)], "spawn_main")


@pytest.mark.xdist_group("kills of Dask")
def test_dask_workers_are_killed(tmp_path, undisturbed, cluster):
    "The same grid on a cluster of two workers: one of them, a kernel and the client are killed."
    address, nanny = cluster
    outputs, chance, kills, seen = tmp_path / "outputs", random.Random(1), Counter(), {}
    client = start_process(outputs, scheduler=address)

    def kernels():
        return family(workers(nanny), "ipykernel_launcher")

    for kind in ("worker", "kernel", "client"):
        if not client.is_alive() and not complete(outputs, undisturbed):
            client = start_process(outputs, scheduler=address)
        moment(outputs, chance, kernels, lambda client=client: not client.is_alive())
        victims = {
            "worker": [p for p in workers(nanny) if family([p], "ipykernel_launcher")],
            "kernel": kernels(),
            "client": [psutil.Process(client.pid)] if client.is_alive() else [],
        }[kind]
        kills[kind] += kill(chance.choice(victims)) if victims else 0
        client.join(1.0 if kind == "client" else 0.0)
        note_metrics(outputs, seen)
    client.join()
    print(dict(kills))
    assert kills["worker"] == 1 and kills.total() >= 2
    assert exit_status(start_process(outputs, scheduler=address)) == 0
    check(outputs, undisturbed, seen)
