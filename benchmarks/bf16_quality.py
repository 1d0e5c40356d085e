"""Does training in bf16 cost quality? The Frechet distance after trainings in bf16 and in fp32.

    python benchmarks/bf16_quality.py
        simulated ultrasound, about five minutes on one core
    python benchmarks/bf16_quality.py --data busi --data-dir DATASETS
        real images
    python benchmarks/bf16_quality.py --kimg 20 --seeds 5 --channel-base 2048 --json quality.json
        longer and wider

StyleGAN2 with adaptive augmentation at 32 px, narrow. A seed fixes initial weights, latents, noise
and the order of images, and both precisions use the same seeds. The distance is between the
training images and as many samples of the averaged generator, in the features of a fixed random
network. bf16 costs no quality if its mean distance differs from that of fp32 by less than the
standard deviation of fp32 over seeds; a single pair of trainings cannot tell.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import torch

from medgan_nb.core.memory import retain_heap
from medgan_nb.datasets.registry import load
from medgan_nb.metrics.features import extract_features, random_network
from medgan_nb.metrics.fid import frechet_distance
from medgan_nb.training.loop import train
from medgan_nb.training.registry import model_recipe

PRECISIONS = ("fp32", "bf16")


def parse_arguments() -> argparse.Namespace:
    "The command line."
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default="simulated_ultrasound")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--kimg", type=float, default=4.0)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--channel-base", type=int, default=512)
    parser.add_argument("--channel-max", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def train_and_measure(images, real_features, options, seed, precision) -> dict:
    "Frechet distance after a training, and its seconds."
    recipe = model_recipe(
        "stylegan2_ada",
        32,
        len(images.classes),
        config="auto",
        batch_size=8,
        channel_base=options.channel_base,
        channel_max=options.channel_max,
        z_dim=64,
        augpipe="bg_us",
    )
    started = time.perf_counter()
    trained = train(recipe, images, kimg=options.kimg, seed=seed, precision=precision, bar=False)
    seconds = time.perf_counter() - started
    features = extract_features(random_network(), trained.sample(len(images), seed=seed))
    return {
        "seed": seed,
        "precision": precision,
        "fd": frechet_distance(real_features, features),
        "seconds": seconds,
        "ada_p": trained.log[-1]["ada_p"],
    }


def compare(rows: list[dict]) -> dict:
    "Mean distance of each precision, their difference, and the standard deviation over seeds."
    fd = {p: [row["fd"] for row in rows if row["precision"] == p] for p in PRECISIONS}
    means = {p: statistics.mean(values) for p, values in fd.items()}
    return {
        "means": means,
        "gap": means["bf16"] - means["fp32"],
        "gap_by_seed": [bf16 - fp32 for fp32, bf16 in zip(fd["fp32"], fd["bf16"])],
        "spread": statistics.stdev(fd["fp32"]),
    }


def main() -> None:
    "Train in both precisions from every seed; print each distance and the comparison."
    options = parse_arguments()
    torch.set_num_threads(options.threads)
    retain_heap()
    images = load(options.data, options.data_dir, size=32)
    real_features = extract_features(random_network(), images.batch(torch.arange(len(images))))
    rows = []
    for seed in range(options.seeds):
        for precision in PRECISIONS:
            row = train_and_measure(images, real_features, options, seed, precision)
            print(
                f"seed {seed}  {precision}  FD {row['fd']:.4f}  {row['seconds']:.0f} s  "
                f"ADA p {row['ada_p']:.3f}",
                flush=True,
            )
            rows.append(row)
    result = compare(rows)
    by_seed = ", ".join(f"{gap:+.4f}" for gap in result["gap_by_seed"])
    verdict = "less" if abs(result["gap"]) <= result["spread"] else "more"
    print(
        f"mean FD: fp32 {result['means']['fp32']:.4f}, bf16 {result['means']['bf16']:.4f}\n"
        f"bf16 - fp32: {result['gap']:+.4f} (by seed: {by_seed}), {verdict} than the standard "
        f"deviation of fp32 over seeds, {result['spread']:.4f}"
    )
    if options.json:
        settings = {key: str(value) for key, value in vars(options).items()}
        settings |= {"torch": torch.__version__, "images": len(images)}
        options.json.write_text(json.dumps(settings | {"rows": rows} | result, indent=1) + "\n")


if __name__ == "__main__":
    main()
