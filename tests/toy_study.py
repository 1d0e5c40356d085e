"""A study as small as can be, for tests of the batch: its notebook trains a toy GAN with checkpoints, then does some stages."""

import json
import sys
import time
from functools import partial
from pathlib import Path

from medgan_nb.core.errors import MedganError
from medgan_nb.core.files import atomic_write, digest
from medgan_nb.experiments.study import Study, resolve

HERE = Path(__file__).resolve().parent
PARAMETERS = {
    "preset": "smoke",
    "dataset": "auto",
    "data_dir": "",
    "dataset_size": 0,
    "model": "toy",
    "seed": 0,
    "outputs": "",
    "device": "cpu",
    "precision": "fp32",
    "fault": "",
}
NOTEBOOK = [
    "from toy_study import STUDY, parts, train_toy\nfrom medgan_nb.experiments.study import parameters_in\nfrom medgan_nb.experiments.run import start",
    "\n".join(f"{name} = {value!r}" for name, value in PARAMETERS.items()),
    "run = start(STUDY, parameters_in(globals()))",
    "print(run.folder)\nweights = train_toy(run)",
    "results = parts(run, weights)",
    "run.finish(results)",
]


def configure(given: dict) -> tuple[dict, dict]:
    "The configuration of a toy run."
    params, settings = resolve(STUDY, given)
    params["dataset_size"] = params["dataset_size"] or 40
    return {
        "paper": "toy",
        "variant": {},
        "settings": settings,
        "params": {k: params[k] for k in ("preset", "dataset", "dataset_size", "model", "seed")},
        "data": {
            "name": "noise",
            "simulated": True,
            "fingerprint": "0" * 64,
            "n_train": 40,
            "n_test": 0,
        },
    }, {}


def train_toy(run) -> str:
    "Train for forty steps, a checkpoint at each tick; a hash of the weights. Told to be slow, the second tick takes four seconds and each later one a quarter."
    import torch

    from medgan_nb.data.dataset import ImageSet
    from medgan_nb.models.dcgan import Discriminator, Generator
    from medgan_nb.training.loop import train
    from medgan_nb.training.losses import discriminator_bce_loss, generator_nonsaturating_loss
    from medgan_nb.training.recipe import Recipe

    torch.set_num_threads(1)
    pixels = torch.randint(
        0, 256, (40, 1, 16, 16), generator=torch.Generator().manual_seed(0), dtype=torch.uint8
    )
    images = ImageSet(pixels, [0] * 40, ("a",), range(40), range(40), name="noise", simulated=True)
    recipe = Recipe(
        "toy",
        partial(Generator, 16, base=8),
        partial(Discriminator, 16, base=8),
        d_nonsaturating,
        g_nonsaturating,
        batch_size=8,
    )
    run.write_progress("training the GAN", kimg=0.32)
    slow = run.settings["fault"] == "slow"

    def pause(state, log):
        return time.sleep(0.02 if not slow or len(log) < 2 else 4.0 if len(log) == 2 else 0.25)

    made = train(
        recipe,
        images,
        kimg=0.32,
        seed=run.config["params"]["seed"],
        folder=run.folder,
        precision="fp32",
        ticks=20,
        save_seconds=0.0,
        bar=False,
        hooks=[pause],
    )
    return digest([value.tolist() for value in made.G.state_dict().values()])


def parts(run, weights: str) -> list[dict]:
    "Four stages, of which one may be told to fail; a result of each."
    fault = run.settings["fault"]
    return [
        dict(
            table="parts",
            row=str(k),
            column=weights[:12],
            value=run.cached(f"part-{k}", lambda: part(run, weights, k, fault)),
        )
        for k in range(4)
    ]


def part(run, weights: str, k: int, fault: str) -> float:
    "One stage."
    time.sleep(0.1)
    if fault == "error" and k == 2:
        raise ValueError(f"planted in {run.folder}")
    if fault == "big" and k == 2:
        atomic_write(run.folder / "big", bytes(3 << 20))
    return int(digest([weights, k])[:8], 16) / 2**32


def write_notebook(path: Path) -> Path:
    "The toy study's notebook."
    code = [
        {
            "cell_type": "code",
            "execution_count": None,
            "id": f"cell-{k}",
            "metadata": {},
            "outputs": [],
            "source": source,
        }
        for k, source in enumerate(NOTEBOOK)
    ]
    code[1]["metadata"] = {"tags": ["parameters"]}
    kernel = {"display_name": "python3", "language": "python", "name": "python3"}
    return atomic_write(
        path,
        json.dumps(
            {"cells": code, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}
        ),
    )


def study(notebook: str) -> Study:
    "The toy study with its notebook at a path (without the ending)."
    return Study(
        "toy",
        "Toy",
        notebook,
        "A toy.",
        PARAMETERS,
        {"smoke": {"fault": ""}},
        ("toy",),
        "none",
        "noise",
        lambda preset: [{"seed": seed} for seed in range(4)],
        configure,
        *[None] * 4,
    )


STUDY = study("toy")


def grid(outputs: Path | str, seeds: int | str = 4, **also) -> list:
    "Some runs under an outputs folder, whose parent holds the notebook."
    from medgan_nb.experiments.grid import cells

    outputs = Path(outputs).resolve()
    notebook = outputs.parent / "toy.ipynb"
    if not notebook.exists():
        write_notebook(notebook)
    made = study(str(notebook.with_suffix("")))
    return cells(made, made.grid("smoke")[: int(seeds)], {"outputs": str(outputs)} | also)


if __name__ == "__main__":
    from medgan_nb.experiments.grid import sweep

    also = dict(
        word.split("=", 1) for word in sys.argv[2:]
    )  # parameters that all runs share, and the scheduler
    address = also.pop("scheduler", "")
    try:
        outcome = sweep(grid(sys.argv[1], **also), jobs=2, scheduler=address).wait(
            lambda line: print(line, flush=True)
        )
    except MedganError as error:
        sys.exit(str(error))
    sys.exit(0 if set(outcome.values()) == {"done"} else 1)
