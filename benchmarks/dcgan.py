"""Time DCGAN training at 64 px, batch 64, against PyTorch's own example, step by step in turn in one process.

    git clone --depth 1 https://github.com/pytorch/examples ELSEWHERE
    python benchmarks/dcgan.py ELSEWHERE/dcgan/main.py --rounds 2 --json dcgan.json

The peer's script runs unchanged, on one-channel images that lie in memory: it prints a line after each of its steps, and there one
step of ours is taken and timed. The first half of a process has the heap as the system gives it, the second keeps freed memory
(`core.keep_heap`); each round is a fresh process. Images a second are medians over steps.
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

import torch
import torchvision.datasets

from medgan_nb.core.device import retain_heap
from medgan_nb.data.dataset import ImageSet, to_pixels
from medgan_nb.training.loop import step
from medgan_nb.training.registry import recipe
from medgan_nb.training.step import start

BATCH, WARM = 64, 3


def one_process(script: str, steps: int) -> dict:
    "Median seconds a step: peer and ours in fp32 and bf16, first with the system's heap and then with a kept one."
    torch.set_num_threads(2)
    images = (
        torch.rand(BATCH * (2 * steps + 1), 1, 64, 64, generator=torch.Generator().manual_seed(0))
        * 2
        - 1
    )
    ours = {
        precision: start(recipe("dcgan", 64), 0, "cpu", precision) for precision in ("fp32", "bf16")
    }
    n = len(images)
    data = ImageSet(
        to_pixels(images), [0] * n, ("noise",), range(n), range(n), name="noise", simulated=True
    )
    times = {heap: {"peer": [], "fp32": [], "bf16": []} for heap in ("system", "kept")}
    count, since, say = [0], [time.perf_counter()], builtins.print

    def between(*words, **_):
        "Called where the peer prints: the peer's step has just ended, one of ours follows."
        if not (words and str(words[0]).startswith("[")):
            return
        ended = time.perf_counter()
        heap = times["system" if count[0] < steps else "kept"]
        heap["peer"].append(ended - since[0])
        for precision, state in ours.items():
            begun = time.perf_counter()
            step(state, data, 0)
            heap[precision].append(time.perf_counter() - begun)
        count[0] += 1
        if count[0] == steps:
            retain_heap()
        since[0] = time.perf_counter()

    torchvision.datasets.MNIST = lambda **_: torch.utils.data.TensorDataset(images, torch.zeros(n))
    with tempfile.TemporaryDirectory() as folder:
        sys.argv = [
            script,
            "--dataset",
            "mnist",
            "--dataroot",
            folder,
            "--outf",
            folder,
            "--workers",
            "0",
            "--niter",
            "1",
            "--batchSize",
            str(BATCH),
            "--manualSeed",
            "0",
        ]
        builtins.print = between
        try:
            runpy.run_path(script, run_name="__main__")
        finally:
            builtins.print = say
    return {
        heap: {who: statistics.median(values[WARM:]) for who, values in found.items()}
        for heap, found in times.items()
    }


def summary(rounds: list[dict]) -> list[dict]:
    "Images a second and the ratio to the peer as shipped, medians over rounds."
    rows = []
    for heap in ("system", "kept"):
        for who in ("peer", "fp32", "bf16"):
            seconds = [r[heap][who] for r in rounds]
            ratios = [r["system"]["peer"] / r[heap][who] for r in rounds]
            same = [r[heap]["peer"] / r[heap][who] for r in rounds]
            rows.append(
                {
                    "heap": heap,
                    "who": "peer as shipped" if who == "peer" else f"ours {who}",
                    "images_per_s": BATCH / statistics.median(seconds),
                    "ratio_to_shipped": statistics.median(ratios),
                    "ratio_same_heap": statistics.median(same),
                    "lowest": min(ratios),
                    "highest": max(ratios),
                }
            )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("script", help="main.py of PyTorch's DCGAN example")
    parser.add_argument("--steps", type=int, default=15, help="steps of each with each heap")
    parser.add_argument("--rounds", type=int, default=2, help="fresh processes")
    parser.add_argument("--json", help="where to write the rows")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(one_process(args.script, args.steps)))
        return
    clean = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")}
    words = [sys.executable, __file__, args.script, "--child", "--steps", str(args.steps)]
    rounds = [
        json.loads(
            subprocess.run(
                words, capture_output=True, text=True, check=True, env=clean
            ).stdout.splitlines()[-1]
        )
        for _ in range(args.rounds)
    ]
    rows = summary(rounds)
    for row in rows:
        print(
            f"{row['heap']:7} heap  {row['who']:16} {row['images_per_s']:6.0f} images/s   {row['ratio_to_shipped']:.2f}x shipped "
            f"({row['lowest']:.2f}-{row['highest']:.2f})   {row['ratio_same_heap']:.2f}x at the same heap"
        )
    if args.json:
        with open(args.json, "w", encoding="utf-8") as file:
            json.dump(
                {
                    "threads": 2,
                    "torch": torch.__version__,
                    "steps": args.steps,
                    "rounds": args.rounds,
                    "rows": rows,
                },
                file,
                indent=1,
            )


if __name__ == "__main__":
    main()
