"""What helps StyleGAN2-ADA on few ultrasound images, at equal time on one core:

    python benchmarks/search_ultrasound.py DATA_DIR FOLDER [--minutes 8] [--seeds 2]

DATA_DIR holds Dataset_BUSI_with_GT. Each variant changes one setting of study 2's `short`; how many
images it is shown follows from its own pace. Interrupted, it goes on from its last checkpoint in
FOLDER; results are lines of FOLDER/search.csv. A judge that no variant has seen measures 280
samples against 280 held-out images, once its calibration card has passed.
"""

import argparse
import csv
import sys
import time
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path

import torch
from gpu import NETWORK, admitted_network

from medgan_nb.core.files import atomic_write, read_json, write_json
from medgan_nb.core.memory import retain_heap
from medgan_nb.data.dataset import ImageSet
from medgan_nb.metrics.features import FeatureNetwork
from medgan_nb.metrics.fid import frechet_distance
from medgan_nb.metrics.memorization import authenticity
from medgan_nb.metrics.prdc import prdc
from medgan_nb.studies.common.generated import class_labels
from medgan_nb.studies.p2.study import STUDY, build_recipe
from medgan_nb.training.loop import train
from medgan_nb.training.recipe import Recipe, declared

N_SAMPLES = 280


@dataclass(frozen=True)
class Variant:
    "One change to study 2's settings or to its recipe."

    settings: dict = field(default_factory=dict)
    r1_factor: float = 1.0
    ema_kimg: float | None = None
    mirrored: bool = False


VARIANTS = {
    "as in short": Variant(),
    "mirrored images": Variant(mirrored=True),
    "ADA without upright turns": Variant({"augpipe": "bg_us"}),
    "batch 16": Variant({"batch_size": 16}),
    "twice as wide": Variant({"channel_base": 2048, "channel_max": 256}),
    "R1 x 4": Variant(r1_factor=4.0),
    "R1 / 4": Variant(r1_factor=0.25),
    "EMA over 2 kimg": Variant(ema_kimg=2.0),
}


@declared("mirror")
def mirror(x: torch.Tensor, masks: torch.Tensor | None):
    "Each real image mirrored or not, as likely."
    flips = (torch.rand(len(x)) < 0.5).to(x.device)[:, None, None, None]
    return torch.where(flips, x.flip(3), x), masks


def recipe_of(variant: Variant, settings: dict, n_classes: int) -> Recipe:
    "The recipe of a variant."
    recipe = build_recipe("stylegan2_ada", settings | variant.settings, n_classes)
    regularizers = tuple(
        replace(term, weight=term.weight * variant.r1_factor) if term.name == "r1" else term
        for term in recipe.regularizers
    )
    ema = {} if variant.ema_kimg is None else {"ema_kimg": variant.ema_kimg}
    augmentation = mirror if variant.mirrored else None
    return replace(recipe, regularizers=regularizers, real_augmentation=augmentation, **ema)


def kimg_for(recipe: Recipe, images: ImageSet, seconds: float, folder: Path) -> float:
    "Thousands of images that may be shown in this time, measured once and kept."
    path = folder / "pace.json"
    if not path.exists():
        train(recipe, images, kimg=0.1, bar=False)  # to warm up
        started = time.process_time()
        train(recipe, images, kimg=0.4, bar=False)
        write_json(path, {"kimg": round(0.4 * seconds / (time.process_time() - started), 1)})
    return read_json(path, dict)["kimg"]


def configured(data_dir: str, n: int, seed: int) -> tuple[dict, dict[str, ImageSet]]:
    "Study 2's configuration and images."
    given = {"dataset": "busi", "data_dir": data_dir, "preset": "short", "split_seed": 0}
    return STUDY.configure(given | {"dataset_size": n, "seed": seed})


def measure(name: str, n: int, seed: int, judge: FeatureNetwork, args: argparse.Namespace) -> dict:
    "Train one variant and measure its samples."
    config, parts = configured(args.data_dir, n, seed)
    images = parts["train"]
    recipe = recipe_of(VARIANTS[name], config["settings"], len(images.classes))
    folder = args.folder / f"{name.replace(' ', '_').replace('/', 'over')}-n{n}-s{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    kimg = kimg_for(recipe, images, 60 * args.minutes, folder)
    trained = train(recipe, images, kimg=kimg, seed=seed, folder=folder)
    labels = torch.as_tensor(class_labels(parts["train"], N_SAMPLES, seed))
    fake = judge(trained.sample(N_SAMPLES, seed, labels))
    train_features, held_out = (judge(parts[part].batch().cpu()) for part in ("train", "test"))
    return {
        "variant": name,
        "n_train": n,
        "seed": seed,
        "kimg": kimg,
        f"FD({NETWORK})": round(frechet_distance(held_out, fake), 2),
        "recall": round(prdc(held_out, fake, 5)["recall"], 4),
        "authentic": round(authenticity(train_features, fake), 2),
        "ada_p": round(trained.log[-1]["ada_p"], 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data_dir")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--sizes", type=int, nargs="+", default=[100, 500])
    args = parser.parse_args()
    retain_heap()
    judge, refusal = admitted_network(configured(args.data_dir, 100, 0)[1], "cpu", 1)
    if judge is None:
        sys.exit(f"{NETWORK} may not measure on these images: {refusal}")
    path, rows = args.folder / "search.csv", []
    if path.exists():
        rows = list(csv.DictReader(path.read_text().splitlines()))
    done = {(row["variant"], int(row["n_train"]), int(row["seed"])) for row in rows}
    for seed, n, name in product(range(args.seeds), args.sizes, VARIANTS):
        if (name, n, seed) in done:
            continue
        rows.append(measure(name, n, seed, judge, args))
        lines = [",".join(rows[-1]), *(",".join(map(str, row.values())) for row in rows)]
        atomic_write(path, "\n".join(lines) + "\n")
        print(lines[-1], flush=True)


if __name__ == "__main__":
    main()
