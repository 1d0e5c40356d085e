"""A minimal study for tests of sweeps: its notebook trains a toy GAN, then runs four stages."""

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
    "from toy_study import STUDY, parts, train_toy\n"
    "from medgan_nb.experiments.study import parameters_in\n"
    "from medgan_nb.experiments.run import start_run",
    "\n".join(f"{name} = {value!r}" for name, value in PARAMETERS.items()),
    "run = start_run(STUDY, parameters_in(globals()))",
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
    """Train for forty steps with a checkpoint at each tick, and return a hash of the weights.

    With fault "slow" the second tick takes 4 s and each later one 0.25 s.
    """
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
        discriminator_bce_loss,
        generator_nonsaturating_loss,
        batch_size=8,
    )
    run.write_progress("training the GAN", kimg=0.32)
    slow = run.settings["fault"] == "slow"

    def pause(state, log):
        if not slow or len(log) < 2:
            time.sleep(0.02)
        else:
            time.sleep(4.0 if len(log) == 2 else 0.25)

    trained = train(
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
    return digest([value.tolist() for value in trained.G.state_dict().values()])


def parts(run, weights: str) -> list[dict]:
    "Four cached stages, one of which may fail; a result of each."
    fault = run.settings["fault"]
    results = []
    for k in range(4):
        value = run.cached(f"part-{k}", partial(part, run, weights, k, fault))
        results.append({"table": "parts", "metric": weights[:12], "part": k, "value": value})
    return results


def part(run, weights: str, k: int, fault: str) -> float:
    "A stage: a number that depends on the weights and `k`."
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
        name="toy",
        title="Toy",
        notebook=notebook,
        claim="A toy.",
        parameters=PARAMETERS,
        presets={"smoke": {"fault": ""}},
        models=("toy",),
        published_set="none",
        simulated_set="noise",
        grid=seed_grid,
        configure=configure,
        tables=None,
        figures=None,
        markdown_table=None,
        narrative=None,
        card=None,
        paper_tables=None,
    )


def seed_grid(preset: str) -> list[dict]:
    return [{"seed": seed} for seed in range(4)]


STUDY = study("toy")


def grid(outputs: Path | str, seeds: int | str = 4, **common) -> list:
    "Specifications of the first runs, under an outputs folder whose parent holds the notebook."
    from medgan_nb.experiments.grid import run_specs

    outputs = Path(outputs).resolve()
    notebook = outputs.parent / "toy.ipynb"
    if not notebook.exists():
        write_notebook(notebook)
    toy = study(str(notebook.with_suffix("")))
    return run_specs(toy, toy.grid("smoke")[: int(seeds)], {"outputs": str(outputs)} | common)


def main() -> int:
    "Sweep the toy grid in the folder given; further words are parameters, and the scheduler."
    from medgan_nb.experiments.sweep import start_sweep

    outputs, *words = sys.argv[1:]
    options = dict(word.split("=", 1) for word in words)
    scheduler = options.pop("scheduler", "")
    try:
        sweep = start_sweep(grid(outputs, **options), jobs=2, scheduler=scheduler)
        outcomes = sweep.wait(lambda line: print(line, flush=True))
    except MedganError as error:
        sys.exit(str(error))
    return 0 if set(outcomes.values()) == {"done"} else 1


if __name__ == "__main__":
    sys.exit(main())
