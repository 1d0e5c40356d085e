"""Train StyleGAN2-ADA on simulated breast ultrasound, the start of `stylegan2_ada_pretrained`:

    python benchmarks/pretrain_ultrasound.py FOLDER [--images 4000] [--kimg 60]

No patient is in it. Interrupted, it goes on from its last checkpoint in FOLDER; at the end it
writes the shipped weights (fp16) and names their sha256.
"""

import argparse
from pathlib import Path

from medgan_nb.core.memory import retain_heap
from medgan_nb.simulation.ultrasound_bmode import load
from medgan_nb.studies.p2.study import PRESETS, build_recipe
from medgan_nb.training.loop import train
from medgan_nb.training.pretrained import save_start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=4000)
    parser.add_argument("--kimg", type=float, default=60.0)
    args = parser.parse_args()
    retain_heap()
    settings = PRESETS["short"]
    images = load(settings["size"], args.images)
    recipe = build_recipe("stylegan2_ada", settings, len(images.classes))
    trained = train(recipe, images, kimg=args.kimg, folder=args.folder)
    path = args.folder / f"simulated_ultrasound_{settings['size']}.safetensors"
    print(f"{path}: sha256 {save_start(trained.G, trained.D, path)}")


if __name__ == "__main__":
    main()
