"""Does training in bf16 cost quality? The same data and seeds in bf16 and in fp32, and the Frechet
distance of each.

    python benchmarks/bf16_quality.py                                       simulated ultrasound,
    about five minutes on one core
    python benchmarks/bf16_quality.py --data busi --data-dir DATASETS       the real images
    python benchmarks/bf16_quality.py --kimg 20 --seeds 5 --channel-base 2048 --json quality.json

StyleGAN2 with adaptive augmentation at 32 px, narrow. A seed fixes initial weights, latents, noise
and the order of images, and the
two precisions share it. Distances are taken between the training images and as many samples of the
averaged generator, in the
features of a fixed random network. The claim holds if bf16's mean differs from fp32's by less than
fp32's seeds differ among
themselves; one pair of seeds, or one run each, cannot say.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import torch

from medgan_nb.core.device import retain_heap
from medgan_nb.datasets.registry import load
from medgan_nb.metrics.features import extract_features, random_network
from medgan_nb.metrics.fid import frechet_distance
from medgan_nb.training.loop import train
from medgan_nb.training.registry import model_recipe


def one_run(images, real, options, seed, precision):
    "Frechet distance after a training, and its seconds."
    model = model_recipe(
        "stylegan2_ada",
        32,
        len(images.classes),
        config="auto",
        batch_size=8,
        channel_base=options.channel_base,
        channel_max=options.channel_max,
        latent_dim=64,
        augpipe="bg_us",
    )
    begun = time.perf_counter()
    trained = train(model, images, kimg=options.kimg, seed=seed, precision=precision, bar=False)
    taken = time.perf_counter() - begun
    samples = trained.sample(len(images), seed=seed)
    return {
        "seed": seed,
        "precision": precision,
        "fd": frechet_distance(real, extract_features(random_network(), samples.clamp(-1, 1))),
        "seconds": taken,
        "ada_p": trained.log[-1].get("ada_p"),
    }


def main():
    "Train in both precisions from every seed; print each distance and the verdict."
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
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    retain_heap()
    images = load(options.data, options.data_dir, size=32)
    real = extract_features(random_network(), images.batch(torch.arange(len(images))))
    rows = []
    for seed in range(options.seeds):
        for precision in ("fp32", "bf16"):
            rows.append(one_run(images, real, options, seed, precision))
            print(
                "seed {seed}  {precision}  FD {fd:.4f}  {seconds:.0f} s  ada_p {ada_p}".format(
                    **rows[-1]
                ),
                flush=True,
            )
    found = {p: [row["fd"] for row in rows if row["precision"] == p] for p in ("fp32", "bf16")}
    gap = statistics.mean(found["bf16"]) - statistics.mean(found["fp32"])
    spread = statistics.stdev(found["fp32"])
    paired = [b - a for a, b in zip(found["fp32"], found["bf16"])]
    print(
        f"mean FD fp32 {statistics.mean(found['fp32']):.4f}, bf16 "
        f"{statistics.mean(found['bf16']):.4f}; bf16 - fp32 {gap:+.4f} "
        f"(by seed: {', '.join(f'{d:+.4f}' for d in paired)}); spread of fp32 over seeds "
        f"{spread:.4f}: " + ("within it" if abs(gap) <= spread else "beyond it")
    )
    if options.json:
        settings = {key: str(value) for key, value in vars(options).items()} | {
            "torch": torch.__version__,
            "images": len(images),
        }
        options.json.write_text(
            json.dumps(settings | {"rows": rows, "gap": gap, "spread": spread}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
