"""Time DCGAN training at 64 px, batch size 64, against PyTorch's own example, steps taken in turn.

    git clone --depth 1 https://github.com/pytorch/examples ELSEWHERE
    python benchmarks/dcgan.py ELSEWHERE/dcgan/main.py --rounds 2 --json dcgan.json

The peer's script runs unchanged, on one-channel images in memory: it prints a line after each of
its steps, and there one step of ours is taken and timed. The first half of a process runs with the
system's malloc, the second with the retained heap (`core.memory.retain_heap`); each round is a new
process. Images a second are medians over steps.
"""

import argparse
import builtins
import json
import os
import runpy
import statistics
import subprocess
import sys
import tempfile
import time
from unittest.mock import patch

import torch
import torchvision.datasets

from medgan_nb.core.memory import retain_heap
from medgan_nb.data.dataset import ImageSet, to_pixels
from medgan_nb.training.loop import train_step
from medgan_nb.training.registry import model_recipe
from medgan_nb.training.step import init_state

BATCH_SIZE, WARM_UP_STEPS = 64, 3
HEAPS, SIDES, PRECISIONS = ("system", "retained"), ("peer", "fp32", "bf16"), ("fp32", "bf16")


class StepTimer:
    """Stands in for `print` while the peer trains: a line that begins with [ ends a step of it.

    The peer's step is timed, then one step of each of our states is taken and timed.
    """

    def __init__(self, states: dict, data: ImageSet, steps: int):
        self.states, self.data, self.steps = states, data, steps
        self.seconds = {heap: {side: [] for side in SIDES} for heap in HEAPS}
        self.count, self.since = 0, time.perf_counter()

    def __call__(self, *words, **_):
        if not (words and str(words[0]).startswith("[")):
            return
        seconds = self.seconds[HEAPS[self.count >= self.steps]]
        seconds["peer"].append(time.perf_counter() - self.since)
        for precision, state in self.states.items():
            start = time.perf_counter()
            train_step(state, self.data, 0)
            seconds[precision].append(time.perf_counter() - start)
        self.count += 1
        if self.count == self.steps:
            retain_heap()
        self.since = time.perf_counter()


def run_peer(script: str, images: torch.Tensor, timer: StepTimer) -> None:
    "One epoch of the peer's script on the images, with `timer` in place of print."

    def dataset(**_):
        return torch.utils.data.TensorDataset(images, torch.zeros(len(images)))

    with tempfile.TemporaryDirectory() as folder:
        options = f"--dataset mnist --dataroot {folder} --outf {folder} --workers 0 --niter 1"
        options += f" --batchSize {BATCH_SIZE} --manualSeed 0"
        with (
            patch.object(torchvision.datasets, "MNIST", dataset),
            patch.object(sys, "argv", [script, *options.split()]),
            patch.object(builtins, "print", timer),
        ):
            runpy.run_path(script, run_name="__main__")


def one_process(script: str, steps: int) -> dict:
    "Median seconds a step of the peer and of ours in fp32 and bf16, for both heaps."
    torch.set_num_threads(2)
    generator = torch.Generator().manual_seed(0)
    n = BATCH_SIZE * (2 * steps + 1)
    images = torch.rand(n, 1, 64, 64, generator=generator) * 2 - 1
    recipe = model_recipe("dcgan", 64)
    states = {precision: init_state(recipe, 0, "cpu", precision) for precision in PRECISIONS}
    data = ImageSet(
        to_pixels(images), [0] * n, ("noise",), range(n), range(n), name="noise", simulated=True
    )
    timer = StepTimer(states, data, steps)
    run_peer(script, images, timer)
    return {
        heap: {side: statistics.median(times[WARM_UP_STEPS:]) for side, times in sides.items()}
        for heap, sides in timer.seconds.items()
    }


def summarize(rounds: list[dict]) -> list[dict]:
    "Images a second and the ratio to the peer as shipped, medians over rounds."
    rows = []
    for heap in HEAPS:
        for side in SIDES:
            seconds = [r[heap][side] for r in rounds]
            ratios = [r["system"]["peer"] / r[heap][side] for r in rounds]
            same_heap = [r[heap]["peer"] / r[heap][side] for r in rounds]
            rows.append(
                {
                    "heap": heap,
                    "who": "peer as shipped" if side == "peer" else f"ours {side}",
                    "images_per_s": BATCH_SIZE / statistics.median(seconds),
                    "ratio_to_shipped": statistics.median(ratios),
                    "ratio_same_heap": statistics.median(same_heap),
                    "lowest": min(ratios),
                    "highest": max(ratios),
                }
            )
    return rows


def new_process(script: str, steps: int) -> dict:
    "`one_process` in a process of its own, without malloc settings from outside."
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")}
    command = [sys.executable, __file__, script, "--child", "--steps", str(steps)]
    output = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return json.loads(output.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("script", help="main.py of PyTorch's DCGAN example")
    parser.add_argument("--steps", type=int, default=15, help="steps of each with each heap")
    parser.add_argument("--rounds", type=int, default=2, help="number of new processes")
    parser.add_argument("--json", help="where to write the rows")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(one_process(args.script, args.steps)))
        return
    rows = summarize([new_process(args.script, args.steps) for _ in range(args.rounds)])
    for row in rows:
        print(
            f"{row['heap']:8} heap  {row['who']:16} {row['images_per_s']:6.0f} images/s   "
            f"{row['ratio_to_shipped']:.2f}x shipped ({row['lowest']:.2f}-{row['highest']:.2f})   "
            f"{row['ratio_same_heap']:.2f}x at the same heap"
        )
    if args.json:
        settings = {
            "threads": 2,
            "torch": torch.__version__,
            "steps": args.steps,
            "rounds": args.rounds,
        }
        with open(args.json, "w", encoding="utf-8") as file:
            json.dump(settings | {"rows": rows}, file, indent=1)


if __name__ == "__main__":
    main()
