"""Time the metrics against public implementations, in one process, in alternating order.

    python benchmarks/metrics.py                     all parts, about five minutes on two idle cores
    python benchmarks/metrics.py --parts ssim,kid --json metrics.json
    OMP_NUM_THREADS=1 python benchmarks/metrics.py --threads 1 --cpu       on a busy machine

Prints a row for each comparison: seconds of the peer and of ours (medians), the ratio (median,
smallest and largest over the rounds) and the largest difference between the two results, which must
stay below a bound. Peers that are not installed are skipped: torch-fidelity (kid), prdc (prdc).
"""

import argparse
import contextlib
import copy
import hashlib
import importlib.util
import json
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from heap import heap

from medgan_nb.metrics.features import build_inception, load_inception
from medgan_nb.metrics.fid import frechet_distance, frechet_from_moments
from medgan_nb.metrics.kid import kid_subsets
from medgan_nb.metrics.prdc import prdc
from medgan_nb.metrics.similarity import mean_pairwise_ssim, random_pairs, ssim


@dataclass(frozen=True)
class Timer:
    "How each comparison is timed: rounds, the clock, and whether the peer retains its heap."

    rounds: int
    clock: Callable[[], float]
    retain_heap: bool

    def compare(self, name: str, peer, ours, difference, bound: float) -> dict:
        "Run peer and ours alternately; return and print the row of the table."
        seconds = {"peer": [], "ours": []}
        for number in range(self.rounds):
            calls = [("peer", peer), ("ours", ours)]
            results = {}
            for key, call in calls if number % 2 == 0 else calls[::-1]:
                start = self.clock()
                results[key] = call()
                seconds[key].append(self.clock() - start)
            error = float(difference(results["peer"], results["ours"]))
            assert error <= bound, f"{name}: results differ by {error:.2g}; expected {bound:.2g}"
        ratios = [a / b for a, b in zip(seconds["peer"], seconds["ours"])]
        row = {
            "name": name,
            "peer_s": statistics.median(seconds["peer"]),
            "ours_s": statistics.median(seconds["ours"]),
            "ratio": statistics.median(ratios),
            "lowest": min(ratios),
            "highest": max(ratios),
            "difference": error,
        }
        print(
            f"{name:44}{row['peer_s']:10.4f}{row['ours_s']:10.4f}{row['ratio']:9.1f}   "
            f"{row['lowest']:.1f}-{row['highest']:.1f}   {error:.1g}",
            flush=True,
        )
        return row


def relative(a, b):
    "Difference relative to the first."
    return abs(a - b) / abs(a)


def largest(a, b):
    "Largest absolute difference."
    return np.abs(a - b).max()


def simulate_features(count: int, seed: int, dim: int = 2048) -> np.ndarray:
    "Features like pooled activations: a decaying spectrum, cut off at zero."
    mixing = np.random.default_rng(7).standard_normal((dim, dim))
    mixing *= np.exp(-np.arange(dim) / 200) / 8
    noise = np.random.default_rng(seed).standard_normal((count, dim))
    return np.maximum(noise @ mixing.T + 0.4 + 0.02 * seed, 0)


# Fréchet distance


def frechet_by_sqrtm(mean_x, cov_x, mean_y, cov_y) -> float:
    "The distance by the square root of the product of covariances, as in pytorch-fid."
    from scipy.linalg import sqrtm

    mean_term = np.square(mean_x - mean_y).sum()
    trace_sqrt = np.trace(sqrtm(cov_x @ cov_y).real)
    return mean_term + np.trace(cov_x) + np.trace(cov_y) - 2 * trace_sqrt


def moments(x) -> tuple[np.ndarray, np.ndarray]:
    "Mean and covariance of features."
    return x.mean(0), np.cov(x, rowvar=False)


def frechet_by_sqrtm_of_features(x, y) -> float:
    "The same from features."
    return frechet_by_sqrtm(*moments(x), *moments(y))


def time_frechet(timer: Timer) -> list[dict]:
    "Against sqrtm, from features and from moments."
    rows = []
    for count in (100, 256, 1000, 4096):
        x, y = simulate_features(count, 1), simulate_features(count, 2)
        frechet_distance(x[:100], y[:100])
        rows.append(
            timer.compare(
                f"Frechet, d 2048, n {count} / sqrtm",
                partial(frechet_by_sqrtm_of_features, x, y),
                partial(frechet_distance, x, y),
                difference=relative,
                bound=1e-3 if count < 2048 else 1e-6,
            )
        )
    both = *moments(x), *moments(y)
    rows.append(
        timer.compare(
            "Frechet, d 2048, from moments / sqrtm",
            partial(frechet_by_sqrtm, *both),
            partial(frechet_from_moments, *both),
            difference=relative,
            bound=1e-6,
        )
    )
    return rows


# SSIM


def time_ssim(timer: Timer) -> list[dict]:
    "Against scikit-image: pairs of 256 x 256, and random pairs within one set."
    from scipy.ndimage import gaussian_filter
    from skimage.metrics import structural_similarity

    noise = np.random.default_rng(0).random((128, 1, 256, 256))
    x = gaussian_filter(noise, (0, 0, 3, 3)) * 6 - 3
    a = np.clip(x, -1, 1).astype(np.float32)
    b = np.clip(0.7 * np.roll(x, 1, 0) + 0.1, -1, 1).astype(np.float32)
    options = dict(gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=2)
    pairs = random_pairs(128, 256, seed=0).T.tolist()

    def by_scikit_image():
        return np.array([structural_similarity(p[0], q[0], **options) for p, q in zip(a, b)])

    def mean_by_scikit_image():
        return np.mean([structural_similarity(a[i, 0], a[j, 0], **options) for i, j in pairs])

    ssim(a, b)
    return [
        timer.compare(
            "SSIM, 128 pairs of 256 x 256 / scikit-image",
            by_scikit_image,
            partial(ssim, a, b),
            difference=largest,
            bound=1e-6,
        ),
        timer.compare(
            "SSIM, 256 pairs within a set / scikit-image",
            mean_by_scikit_image,
            partial(mean_pairwise_ssim, a, 256, seed=0),
            difference=largest,
            bound=1e-6,
        ),
    ]


# KID and PRDC


def time_kid(timer: Timer) -> list[dict]:
    "Against torch-fidelity: 100 subsets of 1000 out of 2000."
    from torch_fidelity.metric_kid import kid_features_to_metric

    x, y = (torch.from_numpy(simulate_features(2000, seed)).float() for seed in (1, 2))

    def by_torch_fidelity():
        options = dict(kid_subsets=100, kid_subset_size=1000, verbose=False)
        return kid_features_to_metric(x, y, **options)["kernel_inception_distance_mean"]

    return [
        timer.compare(
            "KID, 100 x 1000 of 2000 / torch-fidelity",
            by_torch_fidelity,
            lambda: kid_subsets(x, y)[0],
            difference=relative,
            bound=0.05,
        )
    ]


def time_prdc(timer: Timer) -> list[dict]:
    "Against the authors' package (clovaai/generative-evaluation-prdc): 2000 against 2000, k 5."
    from prdc import compute_prdc

    x, y = (simulate_features(2000, seed).astype(np.float32) for seed in (1, 2))

    def by_authors():
        with open(os.devnull, "w") as devnull, contextlib.redirect_stdout(devnull):
            return compute_prdc(x, y, 5)

    return [
        timer.compare(
            "PRDC, 2000 x 2000 / prdc",
            by_authors,
            partial(prdc, x, y, 5),
            difference=lambda p, q: max(abs(p[key] - q[key]) for key in q),
            bound=2e-3,
        )
    ]


# Inception


def random_inceptions() -> tuple[torch.nn.Module, torch.nn.Module]:
    "The networks of pytorch-fid and of ours, with the same random weights."
    import pytorch_fid.inception
    from safetensors.torch import save

    torch.manual_seed(0)
    state = build_inception().state_dict()
    classifier = {"fc.weight": torch.zeros(1008, 2048), "fc.bias": torch.zeros(1008)}
    pytorch_fid.inception.load_state_dict_from_url = lambda *args, **options: state | classifier
    peer = pytorch_fid.inception.InceptionV3([3]).eval()
    content = save(state)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "weights.safetensors"
        path.write_bytes(content)
        return peer, load_inception(path, hashlib.sha256(content).hexdigest())


@torch.inference_mode()
def inception_features(network, dtype, x):
    "Features (n, 2048) of our network, from images (n, 3, H, W) in [0, 1]."
    x = torch.nn.functional.interpolate(
        2 * x - 1, size=(299, 299), mode="bilinear", align_corners=False
    )
    x = x.to(dtype).contiguous(memory_format=torch.channels_last)
    return network(x).float().flatten(1)


def time_inception(timer: Timer) -> list[dict]:
    "Against pytorch-fid: Inception at 299 x 299 from 256 x 256, batch 16."
    peer, network = random_inceptions()
    x = torch.rand(16, 3, 256, 256)

    @torch.no_grad()
    def by_pytorch_fid():
        return peer(x)[0].flatten(1)

    def with_heap(retained, call):
        heap(retained)
        return call()

    rows = []
    bf16 = copy.deepcopy(network).bfloat16()
    for name, ours, bound in (
        ("", partial(inception_features, network, torch.float32, x), 1e-4),
        (" in bf16", partial(inception_features, bf16, torch.bfloat16, x), 0.02),
    ):
        calls = (
            partial(with_heap, timer.retain_heap, by_pytorch_fid),
            partial(with_heap, True, ours),
        )
        for call in calls:
            call()
        rows.append(
            timer.compare(
                f"Inception, 16 images{name} / pytorch-fid",
                *calls,
                difference=lambda p, q: (p - q).norm() / p.norm(),
                bound=bound,
            )
        )
    return rows


PARTS = {  # name -> (function, package of the peer if it may be missing)
    "frechet": (time_frechet, None),
    "ssim": (time_ssim, None),
    "inception": (time_inception, None),
    "kid": (time_kid, "torch_fidelity"),
    "prdc": (time_prdc, "prdc"),
}


def parse_options() -> argparse.Namespace:
    "The command line."
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--parts", default=",".join(PARTS), help=f"separated by commas, of: {', '.join(PARTS)}")
    add("--rounds", type=int, default=3, help="how often each side runs")
    add("--threads", type=int, default=2, help="threads of torch; numpy's follow OMP_NUM_THREADS")
    add(
        "--retain-heap",
        action="store_true",
        help="retain the heap for the peer too (ours always does for Inception)",
    )
    add("--cpu", action="store_true", help="count processor seconds: one thread, busy machine")
    add("--json", type=Path, help="also write the rows to this file")
    return parser.parse_args()


def main():
    "Time the selected parts; print the table and write it if asked."
    options = parse_options()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(options.threads)
    heap(options.retain_heap)
    clock = time.process_time if options.cpu else time.perf_counter
    timer = Timer(options.rounds, clock, options.retain_heap)
    print(f"{'':44}{'peer s':>10}{'ours s':>10}{'ratio':>9}   range   difference")
    rows = []
    for part in options.parts.split(","):
        measure, package = PARTS[part]
        if package and importlib.util.find_spec(package) is None:
            print(f"{part}: skipped, {package} is not installed")
            continue
        rows += measure(timer)
    if options.json:
        settings = {
            "torch": torch.__version__,
            "numpy": np.__version__,
            "threads": options.threads,
            "cpu": options.cpu,
            "retain_heap": options.retain_heap,
        }
        options.json.write_text(json.dumps(settings | {"rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
