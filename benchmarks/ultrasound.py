"""Time RF to B-mode against SciPy and scikit-image, and for a whole set of 200 frames.

    python benchmarks/ultrasound.py                                one thread, about a minute
    python benchmarks/ultrasound.py --cpu --json results.json     processor time, for a busy machine

The peer is the loop that public loaders have: scipy.signal.hilbert along depth,
skimage.transform.resize_local_mean to the distance of the lines, the logarithm, and again
resize_local_mean to 256 x 256. Frames are timed in turn. The images must agree to 2e-4 of [-1, 1],
which is 1e-4 of full scale. The peak memory is that of the process with one frame in memory at a
time, as frames come from a file.
"""

import argparse
import json
import resource
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from scipy.signal import hilbert
from skimage.transform import resize_local_mean

from medgan_nb.data.ultrasound import DEPTH_STEP_MM, LINE_STEP_MM, bmode
from medgan_nb.data.ultrasound_images import bmode_images, resample_to_square
from medgan_nb.simulation.ultrasound_rf import load as load_simulated

SHAPE, SIZE = (1824, 510), 256


def peer_image(rf: np.ndarray) -> np.ndarray:
    "One frame (D, L) -> (256, 256) in [-1, 1] by SciPy and scikit-image."
    rows = round(len(rf) * DEPTH_STEP_MM / LINE_STEP_MM)
    strength = resize_local_mean(np.abs(hilbert(rf, axis=0)), (rows, rf.shape[1]))
    decibels = np.clip(20 * np.log10(strength / strength.max() + 1e-12), -50, 0)
    return resize_local_mean(decibels / 25 + 1, (SIZE, SIZE))


def our_image(rf: np.ndarray) -> np.ndarray:
    "One frame (D, L) -> (256, 256) in [-1, 1] by this package."
    return resample_to_square(bmode(torch.from_numpy(rf)), SIZE).numpy()


def draw_frames(count: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    "Speckle with a level that falls by 40 dB, int16, and an empty mask."
    rng = np.random.default_rng(0)
    amplitude = 3000 * 10 ** -np.linspace(0, 2, SHAPE[0])[:, None]
    for _ in range(count):
        yield (rng.standard_normal(SHAPE) * amplitude).astype(np.int16), np.zeros(SHAPE, np.uint8)


def time_in_turn(rounds: int, clock: Callable[[], float]) -> dict[str, float]:
    "Milliseconds a frame of both, their ratios, and the largest difference of their images."
    times, largest_difference = {peer_image: [], our_image: []}, 0.0
    for number, (rf, _) in enumerate(draw_frames(rounds)):
        images = {}
        for function in (peer_image, our_image)[:: 1 if number % 2 else -1]:
            start = clock()
            images[function] = function(rf)
            times[function].append(clock() - start)
        difference = np.abs(images[peer_image] - images[our_image]).max()
        largest_difference = max(largest_difference, float(difference))
    assert largest_difference < 2e-4, largest_difference
    ratios = [peer / ours for peer, ours in zip(times[peer_image], times[our_image])]
    return {
        "peer_ms": 1000 * statistics.median(times[peer_image]),
        "ours_ms": 1000 * statistics.median(times[our_image]),
        "ratio": statistics.median(ratios),
        "lowest": min(ratios),
        "highest": max(ratios),
        "difference": largest_difference,
    }


def time_set(clock: Callable[[], float]) -> dict[str, float]:
    "Seconds for a set of 200 frames without drawing them, and the peak memory before and after."
    before = peak_mib()
    start = clock()
    bmode_images(draw_frames(200), SIZE)
    with_drawing = clock() - start
    start = clock()
    for _ in draw_frames(200):
        pass
    drawing = clock() - start
    return {
        "set_of_200_s": with_drawing - drawing,
        "peak_before_mib": before,
        "peak_mib": peak_mib(),
    }


def time_simulation(clock: Callable[[], float]) -> dict[str, float]:
    "Milliseconds for a simulated frame and its image."
    start = clock()
    load_simulated(SIZE, n_lesions=20)
    return {"simulated_frame_ms": 1000 * (clock() - start) / 40}


def peak_mib() -> int:
    "Peak resident memory of this process in MiB."
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def main() -> None:
    "Print the results, and write them if asked."
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--cpu", action="store_true", help="processor time, not elapsed time")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    clock = time.process_time if options.cpu else time.perf_counter
    torch.set_num_threads(1)
    results = time_in_turn(options.rounds, clock) | time_set(clock) | time_simulation(clock)
    for name, value in results.items():
        print(f"{name:20}{value:12.4g}", flush=True)
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
