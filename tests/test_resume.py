"""A training killed at any moment, even while it writes a checkpoint, ends with the weights of one
that was never killed.
"""

import os
import random
import signal
import subprocess
import sys
import time

import pytest
from safetensors.torch import load_file

TRAIN = """
import os, signal, stat, sys
from functools import partial
import torch
torch.set_num_threads(1)
from medgan_nb.core import files
from medgan_nb.data.dataset import ImageSet
from medgan_nb.training.losses import discriminator_bce_loss, generator_nonsaturating_loss
from medgan_nb.models.dcgan import Discriminator, Generator
from medgan_nb.training.loop import train
from medgan_nb.training.recipe import Recipe

folder, kill_at, count = sys.argv[1], sys.argv[2], int(sys.argv[3])

def killing(function):
    "The function, which kills the process at its `count`-th call."
    calls = [0]
    def wrapped(*args, **kwargs):
        calls[0] += 1
        if calls[0] == count:
            if kill_at == "half-written" and stat.S_ISREG(os.fstat(args[0]).st_mode):
                os.ftruncate(args[0], os.fstat(args[0]).st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)
    return wrapped

if kill_at in ("before-sync", "half-written"):
    files.os.fsync = killing(os.fsync)
if kill_at == "before-rename":
    files.os.replace = killing(os.replace)

generator = torch.Generator().manual_seed(0)
pixels = torch.randint(0, 256, (40, 1, 16, 16), generator=generator, dtype=torch.uint8)
labels, ids = [k % 2 for k in range(40)], range(40)
images = ImageSet(pixels, labels, ("a", "b"), ids, ids, name="noise", simulated=True)
recipe = Recipe(
    "cgan",
    partial(Generator, 16, n_classes=2, base=16),
    partial(Discriminator, 16, n_classes=2, base=16),
    discriminator_bce_loss,
    generator_nonsaturating_loss,
    n_classes=2,
    batch_size=8,
    ema_kimg=0.1,
    n_critic=2,
)
train(
    recipe, images, kimg=1.6, seed=3, folder=folder, precision="fp32",
    ticks=50, save_seconds=0.0, bar=False,
)
"""


def start_training(folder, kill_at="never", count=0) -> subprocess.Popen:
    "A process that trains, or resumes, in a folder."
    return subprocess.Popen(
        [sys.executable, "-c", TRAIN, str(folder), kill_at, str(count)],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def finish_training(folder) -> dict:
    "Resume to the end; returns the weights."
    process = start_training(folder)
    error = process.communicate()[1]
    assert process.returncode == 0, error
    assert not (folder / "checkpoint.safetensors").exists()
    return load_file(folder / "weights.safetensors")


def read_log(folder) -> list[str]:
    "The lines of the log up to the training time, which differs."
    lines = (folder / "log.jsonl").read_text().splitlines()
    return [line.split('"seconds"')[0] for line in lines]


def are_equal(weights: dict, others: dict) -> bool:
    return set(weights) == set(others) and all((weights[k] == others[k]).all() for k in weights)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    "Weights and log of a training that was never killed."
    folder = tmp_path_factory.mktemp("uninterrupted")
    return finish_training(folder), read_log(folder)


@pytest.mark.xdist_group("resume")
@pytest.mark.parametrize(
    "count, kill_at", [(8, "before-sync"), (3, "half-written"), (3, "before-rename")]
)
def test_killed_while_writing_a_checkpoint(tmp_path, uninterrupted, count, kill_at):
    process = start_training(tmp_path, kill_at, count)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert are_equal(finish_training(tmp_path), uninterrupted[0])


def wait_for(path, process) -> None:
    "Wait until a file exists, or the process has ended."
    started = time.monotonic()
    while not path.exists() and process.poll() is None and time.monotonic() - started < 60:
        time.sleep(0.02)


@pytest.mark.xdist_group("resume")
def test_killed_at_random_moments(tmp_path, uninterrupted):
    "Up to four kills, at moments drawn from a fixed seed."
    moments, kills = random.Random(0), 0
    for _ in range(12):
        process = start_training(tmp_path)
        wait_for(tmp_path / "log.jsonl", process)
        time.sleep(moments.uniform(0.0, 1.0))
        process.kill()
        process.communicate()
        kills += process.returncode == -signal.SIGKILL
        if kills >= 4:
            break
    assert kills >= 2
    weights, log = uninterrupted
    assert are_equal(finish_training(tmp_path), weights)
    assert read_log(tmp_path) == log


def test_a_damaged_checkpoint_is_named_and_not_overwritten(tmp_path):
    process = start_training(tmp_path, "before-rename", 6)
    process.communicate()
    path = tmp_path / "checkpoint.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    process = start_training(tmp_path)
    error = process.communicate()[1]
    assert process.returncode == 1
    assert "checkpoint.safetensors" in error and "delete the file to start over" in error
    assert not (tmp_path / "weights.safetensors").exists()
