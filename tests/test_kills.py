"""A training killed at any instant, inside a write too, leaves in the end every file as an
undisturbed one does, measured times apart.

MEDGAN_KILLS=1000 kills so often; a few in each recipe by default.
"""

import json
import os
import random
import signal
import stat
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import psutil
import pytest
import torch
from conftest import NETWORK_LOG, listened_to

from medgan_nb.core import files
from medgan_nb.core.errors import WeightsError
from medgan_nb.data.dataset import ImageSet
from medgan_nb.metrics.features import random_network
from medgan_nb.studies.p2.callbacks import watch
from medgan_nb.training.checkpoint import load_tree
from medgan_nb.training.loop import train
from medgan_nb.training.oasbud_recipes import OASBUD
from medgan_nb.training.registry import MODELS, model_recipe

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
SIZE, STEPS = 32, 8
_STYLEGAN2 = {"config": "auto", "batch_size": 4, "channel_base": 256, "channel_max": 8, "z_dim": 8}
_OPTIONS = {
    "stylegan2": _STYLEGAN2,
    "projected": _STYLEGAN2 | {"input_size": 64, "channels": 8},
    "hybrid": {"generator_width": 16, "critic_width": 8},
    **{network: {"width_divisor": 16, "batch_size": 4} for network in OASBUD},
}
_PRETRAINED = "stylegan2_ada_pretrained"  # trains as stylegan2_ada does, from other first weights
_NAMES = [name for name in MODELS if name != _PRETRAINED]
N_KILLS = max(1, int(os.environ.get("MEDGAN_KILLS", len(_NAMES))) // len(_NAMES))
N_KILLS_OF_A_RUN = 3 if "MEDGAN_KILLS" in os.environ else 1
SEED = int(os.environ.get("MEDGAN_SEED", 0))


def images() -> ImageSet:
    "Noise of two classes with lesion masks, so that every recipe can be trained on it."
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (24, 1, SIZE, SIZE), generator=generator, dtype=torch.uint8)
    masks = torch.zeros(24, 1, SIZE, SIZE, dtype=torch.bool)
    masks[..., 8:20, 8:20] = True
    labels, ids = [k % 2 for k in range(24)], [f"{k}" for k in range(24)]
    return ImageSet(pixels, labels, ("a", "b"), ids, ids, name="noise", simulated=True, masks=masks)


def train_in(folder: Path, name: str) -> None:
    "Train, or resume, with what study 2 watches while its GAN trains."
    torch.set_num_threads(1)
    recipe = model_recipe(name, SIZE, 2, **_OPTIONS.get(name.split("_")[0], {}))
    if name in ("dcgan", "cgan"):
        recipe = replace(recipe, G=partial(recipe.G, base=16), D=partial(recipe.D, base=16))
    data, ticks = images(), 4
    parts = {
        "train": data,
        "validation": data.select(range(12)),
        "held-out": data.select(range(12, 24)),
    }
    train(
        recipe,
        data,
        kimg=STEPS * recipe.batch_size * recipe.n_critic / 1000,
        seed=3,
        folder=folder,
        precision="fp32",
        ticks=ticks,
        save_seconds=0.0,
        hooks=[watch(folder, parts, random_network(), 0, points=ticks, n=12, ticks=ticks)],
        bar=False,
    )


def in_child(work: Callable, *words) -> int:
    "Start a child process that works and exits; returns its id."
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work(*words)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return child


def exit_code(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def die_in_a_write(count: int, how: str) -> None:
    "Let this process die at its count-th flush or rename, the file half-written if so wanted."
    name = "replace" if how == "before-rename" else "fsync"
    function, calls = getattr(os, name), [0]

    def dying(*words):
        calls[0] += 1
        if calls[0] == count:
            if how == "half-written" and stat.S_ISREG(os.fstat(words[0]).st_mode):
                os.ftruncate(words[0], os.fstat(words[0]).st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*words)

    setattr(files.os, name, dying)


def killed_once(folder: Path, name: str, moments: random.Random, seconds: float) -> bool:
    "Train until a kill at a random instant, or inside a write; False if it ended before."
    how = moments.choice(["anywhere", "anywhere", "before-sync", "half-written", "before-rename"])
    count = moments.randint(1, 20)

    def work():
        if how != "anywhere":
            die_in_a_write(count, how)
        train_in(folder, name)

    child = in_child(work)
    if how == "anywhere":
        time.sleep(moments.uniform(0.0, seconds))
        os.kill(child, signal.SIGKILL)
    code = exit_code(child)
    assert code in (0, -signal.SIGKILL)
    return code != 0


def without_times(value):
    "Plain data without measured times."
    if isinstance(value, dict):
        return {key: without_times(item) for key, item in value.items() if key != "seconds"}
    return [without_times(item) for item in value] if isinstance(value, list) else value


def content(path: Path):
    "What a file holds, without measured times; tensors as bytes, so that every bit counts."
    if path.suffix == ".safetensors":
        return without_times(_tensors_as_bytes(load_tree(path)))
    if path.suffix == ".json":
        return without_times(json.loads(path.read_text()))
    if path.suffix == ".jsonl":
        return [without_times(json.loads(line)) for line in path.read_text().splitlines()]
    return path.read_bytes()


def _tensors_as_bytes(value):
    if isinstance(value, torch.Tensor):
        return tuple(value.shape), value.numpy().tobytes()
    if isinstance(value, dict):
        return {key: _tensors_as_bytes(item) for key, item in value.items()}
    return [_tensors_as_bytes(item) for item in value] if isinstance(value, list) else value


def contents(folder: Path) -> dict:
    "The content of every file; temporary files of a killed write have a leading dot."
    paths = [path for path in folder.rglob("*") if path.is_file() and path.name[0] != "."]
    return {path.relative_to(folder).as_posix(): content(path) for path in paths}


@cache
def undisturbed(name: str, folder: Path) -> tuple[dict, float]:
    "All files of a training that was never killed, and how long it takes."
    train_in(folder.with_name("first"), name)  # what a first training loads, its children have
    started = time.monotonic()
    train_in(folder, name)
    return contents(folder), time.monotonic() - started


@pytest.mark.parametrize("name", _NAMES)
def test_a_killed_training_leaves_every_file_as_an_undisturbed_one(tmp_path, name):
    expected, seconds = undisturbed(name, tmp_path / "undisturbed")
    assert {"weights.safetensors", "log.jsonl", "trajectory.jsonl"} <= set(expected)
    moments, kills = random.Random(f"{name}-{SEED}"), 0
    for trial in range(4 * N_KILLS):
        folder = tmp_path / str(trial)
        kills += sum(
            killed_once(folder, name, moments, seconds) for _ in range(moments.randint(1, 2))
        )
        assert exit_code(in_child(train_in, folder, name)) == 0
        found = contents(folder)
        assert set(found) == set(expected)
        assert [path for path in expected if found[path] != expected[path]] == [], trial
        if kills >= N_KILLS:
            break
    assert kills >= N_KILLS


@pytest.fixture(scope="module")
def dcgan(tmp_path_factory) -> dict:
    "All files of a training of the smallest GAN that was never killed."
    return undisturbed("dcgan", tmp_path_factory.mktemp("dcgan"))[0]


def killed_in_a_write(folder: Path, count: int, how: str) -> None:
    "Train until the count-th write, and die inside it."

    def work():
        die_in_a_write(count, how)
        train_in(folder, "dcgan")

    assert exit_code(in_child(work)) == -signal.SIGKILL


@pytest.mark.parametrize(
    "count, how", [(8, "before-sync"), (3, "half-written"), (3, "before-rename")]
)
def test_killed_while_writing_a_checkpoint(tmp_path, dcgan, count, how):
    killed_in_a_write(tmp_path, count, how)
    train_in(tmp_path, "dcgan")
    assert contents(tmp_path) == dcgan


def test_killed_between_the_weights_and_the_end_of_the_checkpoint(tmp_path, dcgan):
    "A kill of a recipe found it once: the last checkpoint stayed for ever."
    train_in(tmp_path, "dcgan")
    (tmp_path / "checkpoint.safetensors").write_bytes(
        (tmp_path / "weights.safetensors").read_bytes()
    )
    train_in(tmp_path, "dcgan")
    assert contents(tmp_path) == dcgan


def test_a_damaged_checkpoint_is_named_and_not_overwritten(tmp_path):
    killed_in_a_write(tmp_path, 6, "before-rename")
    path = tmp_path / "checkpoint.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(WeightsError, match="checkpoint.safetensors.*delete the file to start over"):
        train_in(tmp_path, "dcgan")
    assert not (tmp_path / "weights.safetensors").exists()


COMMAND = str(Path(sys.executable).parent / "medgan-nb")
STARTUP_SECONDS = 5  # of a run's process and kernel
_PROCESS_FILES = ("leases/*", "progress.json", "run.log", "executed.ipynb")


def reproduce(paper: str, outputs: Path) -> subprocess.Popen:
    "The smoke run of a study, started or resumed in the background."
    words = [COMMAND, "reproduce", paper, "--preset", "smoke", "--jobs", "1"]
    outputs.mkdir(exist_ok=True)
    environment = listened_to(outputs) | {"OMP_NUM_THREADS": "1"}
    log = open(outputs.with_suffix(".log"), "a")
    return subprocess.Popen(
        [*words, "--outputs", str(outputs)], stdout=log, stderr=log, env=environment
    )


def kill_tree(process: subprocess.Popen) -> None:
    "Kill a process and all that it started, as a machine that loses its power does."
    with suppress(psutil.NoSuchProcess):
        for child in psutil.Process(process.pid).children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                child.kill()
    process.kill()
    process.wait()


def run_contents(outputs: Path) -> dict:
    "All files of the one run in an outputs folder but those that say who ran it and when."
    (folder,) = outputs.glob("p*/n*")
    return {
        name: value
        for name, value in contents(folder).items()
        if not any(Path(name).match(pattern) for pattern in _PROCESS_FILES)
    }


@pytest.mark.xdist_group("p2")
@pytest.mark.parametrize("paper", os.environ.get("MEDGAN_KILL_RUNS", "p2").split())
def test_a_killed_run_leaves_every_file_as_an_undisturbed_one(tmp_path, smoke_outputs, paper):
    undisturbed, moments = smoke_outputs(paper), random.Random(SEED)
    (metrics,) = undisturbed.glob("p*/n*/metrics.json")
    seconds = json.loads(metrics.read_text())["seconds"]
    for _ in range(N_KILLS_OF_A_RUN):
        process = reproduce(paper, tmp_path / "killed")
        with suppress(subprocess.TimeoutExpired):
            process.wait(STARTUP_SECONDS + moments.uniform(0.1, 0.7) * seconds)
        kill_tree(process)
    assert reproduce(paper, tmp_path / "killed").wait() == 0
    expected, found = run_contents(undisturbed), run_contents(tmp_path / "killed")
    assert set(found) == set(expected)
    assert [name for name in expected if found[name] != expected[name]] == []
    assert (undisturbed / NETWORK_LOG).read_text() == ""
