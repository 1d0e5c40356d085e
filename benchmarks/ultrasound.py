"""Time RF to B-mode against SciPy and scikit-image, frame by frame in turn, and a whole set of 200
frames.

    python benchmarks/ultrasound.py                                 one thread, about a minute
    python benchmarks/ultrasound.py --cpu --json ultrasound.json    processor time, on a machine
    that does other things too

The peer is the loop that public loaders have: scipy.signal.hilbert along depth,
skimage.transform.resize_local_mean to the
pitch of the lines, the logarithm, and again to 256 x 256. The pictures must agree to 2e-4 of [-1,
1], which is 1e-4 of
full scale. The peak is that of the process with one frame in memory at a time, as they come from a
file.
"""

import argparse
import json
import resource
import statistics
import time
from pathlib import Path

import numpy as np
import torch
from scipy.signal import hilbert
from skimage.transform import resize_local_mean

from medgan_nb.data.ultrasound import (
    DEPTH_STEP_MM,
    LINE_STEP_MM,
    bmode,
    bmode_images,
    resample_to_square,
)
from medgan_nb.simulation.ultrasound_rf import load as load_simulated

SHAPE, SIZE = (1824, 510), 256


def by_peers(rf: np.ndarray) -> np.ndarray:
    "One frame (D, L) -> (256, 256) in [-1, 1]."
    strength = resize_local_mean(
        np.abs(hilbert(rf, axis=0)), (round(len(rf) * DEPTH_STEP_MM / LINE_STEP_MM), rf.shape[1])
    )
    decibels = np.clip(20 * np.log10(strength / strength.max() + 1e-12), -50, 0)
    return resize_local_mean(decibels / 25 + 1, (SIZE, SIZE))


def by_us(rf: np.ndarray) -> np.ndarray:
    "The same."
    return resample_to_square(bmode(torch.from_numpy(rf)), SIZE).numpy()


def frames(count: int):
    "Speckle with a level that falls by 40 dB, int16, and an empty mask."
    draw = np.random.default_rng(0)
    fall = 3000 * 10 ** -np.linspace(0, 2, SHAPE[0])[:, None]
    for _ in range(count):
        yield (draw.standard_normal(SHAPE) * fall).astype(np.int16), np.zeros(SHAPE, np.uint8)


def main() -> None:
    "Print the rows, and write them where asked."
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--rounds", type=int, default=12)
    options.add_argument(
        "--cpu", action="store_true", help="processor time instead of time on the clock"
    )
    options.add_argument("--json", type=Path)
    chosen = options.parse_args()
    clock = time.process_time if chosen.cpu else time.perf_counter
    torch.set_num_threads(1)

    times, apart = {by_peers: [], by_us: []}, 0.0
    for number, (rf, _) in enumerate(frames(chosen.rounds)):
        made = {}
        for call in (by_peers, by_us)[:: 1 if number % 2 else -1]:
            start = clock()
            made[call] = call(rf)
            times[call].append(clock() - start)
        apart = max(apart, float(np.abs(made[by_peers] - made[by_us]).max()))
    assert apart < 2e-4, apart
    ratios = [a / b for a, b in zip(times[by_peers], times[by_us])]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    start = clock()
    pixels, _ = bmode_images(frames(200), SIZE)
    whole = clock() - start
    drawing = clock()
    for _ in frames(200):
        pass
    whole -= clock() - drawing
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    start = clock()
    load_simulated(SIZE, n_lesions=20)
    rows = {
        "peer_ms": 1000 * statistics.median(times[by_peers]),
        "ours_ms": 1000 * statistics.median(times[by_us]),
        "ratio": statistics.median(ratios),
        "lowest": min(ratios),
        "highest": max(ratios),
        "difference": apart,
        "set_of_200_s": whole,
        "peak_before_mib": before,
        "peak_mib": peak,
        "simulated_frame_ms": 1000 * (clock() - start) / 40,
    }
    for name, value in rows.items():
        print(f"{name:20}{value:12.4g}", flush=True)
    if chosen.json:
        chosen.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
