"""A training killed at any moment, also while it writes a checkpoint, ends with the weights of one
that never was.
"""

import os
import random
import signal
import subprocess
import sys
import time

import pytest
from safetensors.torch import load_file

CHILD = """
import os, signal, stat, sys
from functools import partial
import torch
torch.set_num_threads(1)
from medgan_nb.core import files as core
from medgan_nb.data.dataset import ImageSet
from medgan_nb.training.losses import discriminator_bce_loss, generator_nonsaturating_loss
from medgan_nb.models.dcgan import Discriminator, Generator
from medgan_nb.training.loop import train
from medgan_nb.training.recipe import Recipe

folder, where, count = sys.argv[1], sys.argv[2], int(sys.argv[3])

def killer(function):
    calls = [0]
    def wrapped(*args, **kwargs):
        calls[0] += 1
        if calls[0] == count:
            if where == "half-written" and stat.S_ISREG(os.fstat(args[0]).st_mode):
                os.ftruncate(args[0], os.fstat(args[0]).st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)
    return wrapped

if where in ("before-sync", "half-written"):
    core.os.fsync = killer(os.fsync)
if where == "before-rename":
    core.os.replace = killer(os.replace)

generator = torch.Generator().manual_seed(0)
pixels = torch.randint(0, 256, (40, 1, 16, 16), generator=generator, dtype=torch.uint8)
labels = [k % 2 for k in range(40)]
images = ImageSet(
    pixels, labels, ("a", "b"), range(40), range(40), name="noise", simulated=True
)
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
train(recipe, images, kimg=1.6, seed=3, folder=folder, precision="fp32", ticks=50,
      save_seconds=0.0, bar=False)
"""


def child(folder, where="nowhere", count=0) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, str(folder), where, str(count)],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def finish(folder) -> dict:
    "Run to the end whatever is left, and return the weights."
    process = child(folder)
    error = process.communicate()[1]
    assert process.returncode == 0, error
    assert not (folder / "checkpoint.safetensors").exists()
    return load_file(folder / "weights.safetensors")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    return finish(folder), [
        line.split('"seconds"')[0] for line in (folder / "log.jsonl").read_text().splitlines()
    ]


def same(weights: dict, others: dict) -> bool:
    return set(weights) == set(others) and all((weights[k] == others[k]).all() for k in weights)


@pytest.mark.xdist_group("resume")
@pytest.mark.parametrize("where", ["before-sync", "half-written", "before-rename"])
@pytest.mark.parametrize("count", [3, 8])
def test_killed_while_writing_a_checkpoint(tmp_path, undisturbed, where, count):
    process = child(tmp_path, where, count)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert same(finish(tmp_path), undisturbed[0])


@pytest.mark.xdist_group("resume")
def test_killed_at_random_moments(tmp_path, undisturbed):
    """One training killed again and again, at moments drawn from a fixed seed, until it has ended
    by itself.
    """
    moments, kills = random.Random(0), 0
    for _ in range(12):
        process = child(tmp_path)
        begun = time.monotonic()
        while (
            not (tmp_path / "log.jsonl").exists()
            and process.poll() is None
            and time.monotonic() - begun < 60
        ):
            time.sleep(0.02)
        time.sleep(moments.uniform(0.0, 1.0))
        process.kill()
        process.communicate()
        kills += process.returncode == -signal.SIGKILL
        if kills >= 4:
            break
    assert kills >= 2
    assert same(finish(tmp_path), undisturbed[0])
    assert [
        line.split('"seconds"')[0] for line in (tmp_path / "log.jsonl").read_text().splitlines()
    ] == undisturbed[1]


def test_a_damaged_checkpoint_is_named_and_not_trained_over(tmp_path):
    process = child(tmp_path, "before-rename", 6)
    process.communicate()
    path = tmp_path / "checkpoint.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    process = child(tmp_path)
    error = process.communicate()[1]
    assert (
        process.returncode == 1
        and "checkpoint.safetensors" in error
        and "delete the file to start over" in error
    )
    assert not (tmp_path / "weights.safetensors").exists()
