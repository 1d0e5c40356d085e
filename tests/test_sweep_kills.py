"""A batch killed again and again at random moments, in every part, ends with every run done once and the numbers of one never disturbed."""

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

from medgan_nb.core.files import read_json
from medgan_nb.experiments.executor import DONE
from medgan_nb.experiments.grid import sweep
from medgan_nb.experiments.lease import latest

HERE = Path(__file__).resolve().parent
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": str(HERE),
    "PYTHONWARNINGS": "ignore",
    "DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "20",
}
RUNS, KILLS = 3, 28

pytestmark = pytest.mark.xdist_group("kills")


def batch(outputs: Path, jobs: int = 1, scheduler: str = ""):
    "A sweep of the toy grid in a process of its own: forked, so that it need not import everything anew."
    process = multiprocessing.get_context("fork").Process(
        target=sweep_and_exit, args=(outputs, jobs, scheduler), daemon=True
    )
    process.start()
    return process


def sweep_and_exit(outputs: Path, jobs: int, scheduler: str) -> None:
    "What that process does; 0 if every run is done."
    os.setsid()
    os.environ.update(ENVIRONMENT)
    outcome = sweep(grid(outputs, RUNS), jobs, scheduler).wait(lambda line: None)
    sys.exit(0 if set(outcome.values()) == {DONE} else 1)


def ended(process) -> int:
    "The exit status of a batch, waited for."
    process.join()
    return process.exitcode


def numbers(outputs: Path) -> dict:
    "metrics.json of every run, without the seconds."
    found = {
        path.parent.name: read_json(path) for path in sorted(outputs.glob("toy/*/metrics.json"))
    }
    return {
        name: {key: value for key, value in metrics.items() if key != "seconds"}
        for name, metrics in found.items()
    }


def complete(outputs: Path, undisturbed: dict) -> bool:
    "Whether every run is done."
    return numbers(outputs) == undisturbed and all(cell.done for cell in grid(outputs, RUNS))


def family(roots: list[psutil.Process], word: str) -> list[psutil.Process]:
    "Descendants of some processes whose command line holds a word."
    found = []
    for root in roots:
        try:
            found += [p for p in root.children(recursive=True) if word in " ".join(p.cmdline())]
        except psutil.Error:
            pass
    return found


def kill(process: psutil.Process) -> int:
    "SIGKILL; 1 if it was alive."
    try:
        process.kill()
        return 1
    except psutil.Error:
        return 0


def check(outputs: Path, undisturbed: dict, seen: dict) -> None:
    "Every run is done, once, and says what it says undisturbed; nothing is left over."
    assert numbers(outputs) == undisturbed
    assert {path: path.stat().st_ino for path in seen} == seen, "a metrics.json was written again"
    for cell in grid(outputs, RUNS):
        assert cell.done
        outcomes = [
            read_json(path).get("outcome") for path in (cell.folder / "claims").glob("*.json")
        ]
        assert outcomes.count(DONE) <= 1 and latest(cell.folder)[0] == len(outcomes)
        assert not list(cell.folder.glob("running.ipynb")) and not list(
            cell.folder.glob("failed.ipynb")
        )
        assert str(outputs.parent) not in (cell.folder / "executed.ipynb").read_text()


def note_metrics(outputs: Path, seen: dict) -> None:
    "Remember which file each metrics.json is, at first sight."
    for path in outputs.glob("toy/*/metrics.json"):
        seen.setdefault(path, path.stat().st_ino)


def wait_for(ready, seconds: float = 300.0) -> None:
    "Wait until something is so."
    begun = time.monotonic()
    while not ready():
        assert time.monotonic() - begun < seconds
        time.sleep(0.05)


def progress(outputs: Path) -> int:
    "Bytes that the runs have logged, and their stages: grows while any of them gets on."
    return sum(
        path.stat().st_size
        for name in ("log.jsonl", "stages/*.json")
        for path in outputs.glob(f"toy/*/{name}")
    )


def moment(outputs: Path, chance: random.Random, kernels, ended) -> bool:
    "Wait for a random moment: soon after there is a kernel, or (True) soon after one has logged a tick or ended a stage; or until all has ended."
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
    assert ended(batch(outputs, jobs=2)) == 0
    return numbers(outputs)


def parts_of(batches: list) -> dict[str, list[psutil.Process]]:
    "The living processes of some batches: themselves, those of their runs, and kernels."
    roots = [psutil.Process(one.pid) for one in batches if one.is_alive()]
    return {
        "kernel": family(roots, "ipykernel_launcher"),
        "run": family(roots, "study.runner"),
        "sweep": roots,
    }


def test_killed_at_random_moments(tmp_path, undisturbed):
    "Two sweeps share a grid; kernels, the processes of runs and the sweeps themselves are killed while runs are at work. If it gets done, once more."
    chance, kills, late, rounds = random.Random(0), Counter(), 0, 0
    while kills.total() < KILLS:
        rounds += 1
        outputs, seen, batches = tmp_path / str(rounds) / "outputs", {}, []
        outputs.parent.mkdir()
        while kills.total() < KILLS:
            batches = [one for one in batches if one.is_alive()]
            if not batches and complete(outputs, undisturbed):
                break
            batches += [
                batch(outputs)
                for _ in range(2 - len(batches))
                if not complete(outputs, undisturbed)
            ]
            on = moment(
                outputs,
                chance,
                lambda: parts_of(batches)["kernel"],
                lambda: not any(one.is_alive() for one in batches),
            )
            victims = parts_of(batches)
            for kind in (
                chance.sample(["kernel", "run", "sweep"], chance.choice((1, 2)))
                if victims["kernel"]
                else []
            ):
                killed = kill(chance.choice(victims[kind])) if victims[kind] else 0
                kills[kind], late = kills[kind] + killed, late + killed * on
            note_metrics(outputs, seen)
        for one in batches:
            one.join()
        assert complete(outputs, undisturbed) or ended(batch(outputs, jobs=2)) == 0
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
    "A Dask scheduler and two workers, processes that their nurse starts again; the address and the nurse."
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


def workers(nurse: subprocess.Popen) -> list[psutil.Process]:
    "The worker processes under their nurse."
    return family([psutil.Process(nurse.pid)], "spawn_main")


def test_dask_workers_are_killed(tmp_path, undisturbed, cluster):
    "The same grid on a cluster of two workers: one of them, a kernel and the client are killed."
    address, nurse = cluster
    outputs, chance, kills, seen = tmp_path / "outputs", random.Random(1), Counter(), {}
    client = batch(outputs, scheduler=address)

    def kernels():
        return family(workers(nurse), "ipykernel_launcher")

    for kind in ("worker", "kernel", "client"):
        if not client.is_alive() and not complete(outputs, undisturbed):
            client = batch(outputs, scheduler=address)
        moment(outputs, chance, kernels, lambda: not client.is_alive())
        victims = {
            "worker": [p for p in workers(nurse) if family([p], "ipykernel_launcher")],
            "kernel": kernels(),
            "client": [psutil.Process(client.pid)] if client.is_alive() else [],
        }[kind]
        kills[kind] += kill(chance.choice(victims)) if victims else 0
        client.join(1.0 if kind == "client" else 0.0)
        note_metrics(outputs, seen)
    client.join()
    print(dict(kills))
    assert kills["worker"] == 1 and kills.total() >= 2
    assert ended(batch(outputs, scheduler=address)) == 0
    check(outputs, undisturbed, seen)
