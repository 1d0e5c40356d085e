"""A batch killed again and again at random moments, in every part, ends with every run done once and the numbers of one never disturbed."""
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

from medgan_nb.core import read_json
from medgan_nb.study.claim import latest

HERE = Path(__file__).resolve().parent
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE), "PYTHONWARNINGS": "ignore",
                            "DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "20"}
pytestmark = pytest.mark.xdist_group("kills")


def begin(*words: str) -> subprocess.Popen:
    "A Python process of the test, in a session of its own."
    return subprocess.Popen([sys.executable, *words], env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)


def batch(outputs: Path, scheduler: str = "") -> subprocess.Popen:
    "A sweep of the toy grid."
    return begin(str(HERE / "toy_study.py"), str(outputs), *([f"scheduler={scheduler}"] if scheduler else []))


def numbers(outputs: Path) -> dict:
    "metrics.json of every run, without the seconds."
    found = {path.parent.name: read_json(path) for path in sorted(outputs.glob("toy/*/metrics.json"))}
    return {name: {key: value for key, value in metrics.items() if key != "seconds"} for name, metrics in found.items()}


def family(roots: list[psutil.Process], word: str) -> list[psutil.Process]:
    "Descendants of some processes whose command line holds a word."
    found = []
    for root in roots:
        try:
            found += [p for p in root.children(recursive=True) if word in " ".join(p.cmdline())]
        except psutil.Error:
            pass
    return found


def kill(process: psutil.Process | None) -> int:
    "SIGKILL; 1 if it was alive."
    try:
        process.kill()
        return 1
    except (psutil.Error, AttributeError):
        return 0


def check(outputs: Path, undisturbed: dict, seen: dict) -> None:
    "Every run is done, once, and says what it says undisturbed; nothing is left over."
    assert numbers(outputs) == undisturbed
    assert all(cell.done for cell in grid(outputs))
    assert {path: path.stat().st_ino for path in seen} == seen, "a metrics.json was written again"
    for cell in grid(outputs):
        outcomes = [read_json(path).get("outcome") for path in (cell.folder / "claims").glob("*.json")]
        assert outcomes.count("done") <= 1 and latest(cell.folder)[0] == len(outcomes)
        assert not list(cell.folder.glob("running.ipynb")) and not list(cell.folder.glob("failed.ipynb"))
        assert str(outputs.parent) not in (cell.folder / "executed.ipynb").read_text()


def note_metrics(outputs: Path, seen: dict) -> None:
    "Remember which file each metrics.json is, at first sight."
    for path in outputs.glob("toy/*/metrics.json"):
        seen.setdefault(path, path.stat().st_ino)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    "The numbers of a sweep that nobody disturbs."
    outputs = tmp_path_factory.mktemp("undisturbed") / "outputs"
    assert batch(outputs).wait() == 0
    return numbers(outputs)


def parts_of(batches: list[subprocess.Popen]) -> dict[str, list[psutil.Process]]:
    "The living processes of some batches: themselves, those of their runs, and kernels."
    roots = [psutil.Process(one.pid) for one in batches if one.poll() is None]
    return {"kernel": family(roots, "ipykernel_launcher"), "run": family(roots, "study.runner"), "sweep": roots}


def test_killed_at_random_moments(tmp_path, undisturbed):
    "Two sweeps share a grid; kernels, the processes of runs and the sweeps themselves are killed while runs are at work. If it gets done, once more."
    chance, kills, rounds = random.Random(0), Counter(), 0
    while kills.total() < 24:
        rounds += 1
        outputs, seen, batches = tmp_path / str(rounds) / "outputs", {}, []
        outputs.parent.mkdir()
        while kills.total() < 24:
            batches = [one for one in batches if one.poll() is None]
            if not batches and complete(outputs, undisturbed):
                break
            batches += [batch(outputs) for _ in range(2 - len(batches)) if not batches or chance.random() < 0.2]
            wait_for(lambda: parts_of(batches)["kernel"] or not any(one.poll() is None for one in batches), 300)
            time.sleep(chance.uniform(0.0, 1.5))
            victims = parts_of(batches)
            kind = chance.choices(("kernel", "run", "sweep"), (3, 3, 2))[0]
            kills[kind] += bool(victims["kernel"] and victims[kind]) and kill(chance.choice(victims[kind]))
            note_metrics(outputs, seen)
        for one in batches:
            one.wait()
        assert complete(outputs, undisturbed) or batch(outputs).wait() == 0
        check(outputs, undisturbed, seen)
    print(f"{dict(kills)} in {rounds} rounds")
    assert min(kills.values()) >= 3


def complete(outputs: Path, undisturbed: dict) -> bool:
    "Whether every run is done."
    return numbers(outputs) == undisturbed and all(cell.done for cell in grid(outputs))


@pytest.fixture
def cluster(tmp_path):
    "A Dask scheduler and two workers, each a process with a nurse of its own that starts it again; the address and the nurses."
    pytest.importorskip("distributed")
    file = tmp_path / "scheduler.json"
    common = ["--scheduler-file", str(file), "--no-dashboard"]
    processes = [begin("-m", "dask", "scheduler", "--port", "0", "--host", "127.0.0.1", *common)]
    processes += [begin("-m", "dask", "worker", "--nthreads", "1", "--memory-limit", "0", "--local-directory", str(tmp_path / f"worker-{k}"),
                        *common) for k in range(2)]
    wait_for(lambda: file.exists(), 60)
    yield read_json(file)["address"], processes[1:]
    for process in processes:
        for child in psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []:
            kill(child)
        process.kill()
        process.wait()


def wait_for(ready, seconds: float) -> None:
    "Wait until something is so."
    begun = time.monotonic()
    while not ready():
        assert time.monotonic() - begun < seconds
        time.sleep(0.1)


def workers(nurses: list[subprocess.Popen]) -> list[psutil.Process]:
    "The worker processes under their nurses."
    return [p for p in family([psutil.Process(nurse.pid) for nurse in nurses], "spawn_main")]


def test_dask_workers_are_killed(tmp_path, undisturbed, cluster):
    "The same grid on a cluster of two workers: they, the processes of runs, kernels and the client are killed."
    address, nurses = cluster
    outputs, chance, kills, seen = tmp_path / "outputs", random.Random(1), Counter(), {}
    wait_for(lambda: len(workers(nurses)) == 2, 60)
    client = batch(outputs, address)
    for kind in ("worker", "kernel", "worker", "run", "client", "worker"):
        wait_for(lambda: family(workers(nurses), "ipykernel_launcher") or client.poll() is not None, 300)
        if client.poll() is not None:
            client = batch(outputs, address)
            wait_for(lambda: family(workers(nurses), "ipykernel_launcher") or client.poll() is not None, 300)
        time.sleep(chance.uniform(0.0, 1.5))
        victims = {"worker": [p for p in workers(nurses) if family([p], "ipykernel_launcher")], "kernel": family(workers(nurses), "ipykernel_launcher"),
                   "run": family(workers(nurses), "study.runner"), "client": [psutil.Process(client.pid)] if client.poll() is None else []}[kind]
        kills[kind] += bool(victims) and kill(chance.choice(victims))
        note_metrics(outputs, seen)
    client.wait()
    print(dict(kills))
    assert kills["worker"] >= 2 and kills.total() >= 4
    assert batch(outputs, address).wait() == 0
    check(outputs, undisturbed, seen)
