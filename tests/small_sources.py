"A small set of noise, a small generator, and what the cache keeps of both."

import json
from pathlib import Path

import torch

import medgan_nb
from medgan_nb.app.generate import Source
from medgan_nb.data.cache import cached_image_set
from medgan_nb.data.dataset import ImageSet
from medgan_nb.metrics.features import random_network
from medgan_nb.studies.common import calibration
from medgan_nb.studies.common.feature_networks import image_features
from medgan_nb.studies.trial.plan import Plan
from medgan_nb.training.loop import train
from medgan_nb.training.recipe import Recipe
from medgan_nb.training.registry import model_recipe

PLAN = Plan("projected", 64, 3, 5.0, 60.0, 40, 3600.0)


def noise_set(n: int = 8, size: int = 32) -> ImageSet:
    "Noise of two classes."
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (n, 1, size, size), generator=generator, dtype=torch.uint8)
    ids = [f"{k}" for k in range(n)]
    labels = [k % 2 for k in range(n)]
    return ImageSet(pixels, labels, ("a", "b"), ids, ids, name="noise", simulated=True)


def small_recipe() -> Recipe:
    "A conditional StyleGAN2 of a few thousand weights."
    options = {"config": "auto", "batch_size": 4, "channel_base": 128, "channel_max": 4, "z_dim": 4}
    return model_recipe("stylegan2", 32, 2, **options)


def trained_source(folder: Path) -> Source:
    "A small conditional generator without its images."
    words = {"kimg": 0.008, "seed": 0, "precision": "fp32", "bar": False}
    train(small_recipe(), noise_set(), folder=folder, **words)
    return Source(medgan_nb.load(folder), folder / "weights.safetensors", "g", reason="not here")


def cached_features(folder: Path) -> bytes:
    return image_features(random_network(), noise_set()).tobytes()


def cached_card(folder: Path) -> dict:
    "What the calibration keeps for a run, read or made."
    run = type("run", (), {"device": "cpu"})
    images = noise_set(40, 16)
    halves = [images.select(range(k, 40, 2)) for k in (0, 1)]
    card = calibration._make_card(run, random_network(), *halves, 8)
    return json.loads(json.dumps(card | {"seconds": 0}))


def cached_images(folder: Path) -> str:
    source = folder / "source.png"
    if not source.exists():
        source.touch()
    return cached_image_set("noise", [source], {}, noise_set).fingerprint


CACHES = {"features": cached_features, "calibration": cached_card, "prepared": cached_images}
