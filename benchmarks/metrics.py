"""Time the metrics against public implementations, in one run, call by call in turn.

    python benchmarks/metrics.py                              all parts, about five minutes on two quiet cores
    python benchmarks/metrics.py --parts ssim,kid --json metrics.json
    OMP_NUM_THREADS=1 python benchmarks/metrics.py --threads 1 --cpu      on a machine that does other things too

A row is printed for each comparison: seconds of the peer and of ours (medians), the ratio (median, smallest and
largest over the rounds) and the largest difference between the two results, which must stay below a stated bound. Peers
that are not installed are named and skipped: torch-fidelity (kid), prdc and the scikit-learn it needs (prdc).
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

CLOCK = time.perf_counter
KEPT = False  # whether the peer's heap keeps freed memory


def compare(name, peer, ours, difference, bound, rounds):
    "Run peer and ours alternately; return and print the row of the table."
    times = {"peer": [], "ours": []}
    for number in range(rounds):
        order = [("peer", peer), ("ours", ours)]
        results = {}
        for key, call in order if number % 2 == 0 else order[::-1]:
            start = CLOCK()
            results[key] = call()
            times[key].append(CLOCK() - start)
        apart = float(difference(results["peer"], results["ours"]))
        assert apart <= bound, (
            f"{name}: results differ by {apart:.2g}; expected at most {bound:.2g}"
        )
    ratios = [a / b for a, b in zip(times["peer"], times["ours"])]
    row = {
        "name": name,
        "peer_s": statistics.median(times["peer"]),
        "ours_s": statistics.median(times["ours"]),
        "ratio": statistics.median(ratios),
        "lowest": min(ratios),
        "highest": max(ratios),
        "difference": apart,
    }
    print(
        f"{name:44}{row['peer_s']:10.4f}{row['ours_s']:10.4f}{row['ratio']:9.1f}   "
        f"{row['lowest']:.1f}-{row['highest']:.1f}   {apart:.1g}",
        flush=True,
    )
    return row


def relative(a, b):
    "Difference relative to the first."
    return abs(a - b) / abs(a)


def simulated_features(count, seed, dim=2048):
    "Features that look like pooled activations: a decaying spectrum, cut off at zero."
    base = np.random.default_rng(7).standard_normal((dim, dim)) * np.exp(-np.arange(dim) / 200) / 8
    return np.maximum(
        np.random.default_rng(seed).standard_normal((count, dim)) @ base.T + 0.4 + 0.02 * seed, 0
    )


def frechet(rounds):
    "Against the square root of the product of covariances, as in pytorch-fid: from features, and from moments."
    from scipy.linalg import sqrtm

    def moments(x):
        return x.mean(0), np.cov(x, rowvar=False)

    def by_sqrtm(m, s, n, t):
        return np.square(m - n).sum() + np.trace(s) + np.trace(t) - 2 * np.trace(sqrtm(s @ t).real)

    rows = []
    for count in (100, 256, 1000, 4096):
        x, y = simulated_features(count, 1), simulated_features(count, 2)
        frechet_distance(x[:100], y[:100])
        rows.append(
            compare(
                f"Frechet, d 2048, n {count} / sqrtm",
                lambda: by_sqrtm(*moments(x), *moments(y)),
                lambda: frechet_distance(x, y),
                relative,
                1e-3 if count < 2048 else 1e-6,
                rounds,
            )
        )
    given = *moments(x), *moments(y)
    rows.append(
        compare(
            "Frechet, d 2048, from moments / sqrtm",
            lambda: by_sqrtm(*given),
            lambda: frechet_from_moments(*given),
            relative,
            1e-6,
            rounds,
        )
    )
    return rows


def similarity(rounds):
    "Against scikit-image, pairs of 256 x 256, one value a pair; and random pairs within one set."
    from scipy.ndimage import gaussian_filter
    from skimage.metrics import structural_similarity

    x = gaussian_filter(np.random.default_rng(0).random((128, 1, 256, 256)), (0, 0, 3, 3)) * 6 - 3
    a = np.clip(x, -1, 1).astype(np.float32)
    b = np.clip(0.7 * np.roll(x, 1, 0) + 0.1, -1, 1).astype(np.float32)
    options = dict(gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=2)

    def one(p, q):
        return structural_similarity(p[0], q[0], **options)

    def apart(p, q):
        return np.abs(p - q).max()

    ssim(a, b)
    rows = [
        compare(
            "SSIM, 128 pairs of 256 x 256 / scikit-image",
            lambda: np.array([one(p, q) for p, q in zip(a, b)]),
            lambda: ssim(a, b),
            apart,
            1e-6,
            rounds,
        )
    ]
    chosen = random_pairs(128, 256, seed=0).T.tolist()

    def peer():
        return np.mean([one(a[i], a[j]) for i, j in chosen])

    return rows + [
        compare(
            "SSIM, 256 pairs within a set / scikit-image",
            peer,
            lambda: mean_pairwise_ssim(a, 256, seed=0),
            apart,
            1e-6,
            rounds,
        )
    ]


def time_kid(rounds):
    "Against torch-fidelity, 100 subsets of 1000 out of 2000."
    from torch_fidelity.metric_kid import kid_features_to_metric

    x, y = (torch.from_numpy(simulated_features(2000, seed)).float() for seed in (1, 2))

    def peer():
        return kid_features_to_metric(x, y, kid_subsets=100, kid_subset_size=1000, verbose=False)

    mean = "kernel_inception_distance_mean"
    return [
        compare(
            "KID, 100 x 1000 of 2000 / torch-fidelity",
            lambda: peer()[mean],
            lambda: kid_subsets(x, y)[0],
            relative,
            0.05,
            rounds,
        )
    ]


def coverage(rounds):
    "Against the authors' package (clovaai/generative-evaluation-prdc), 2000 against 2000, k 5."
    from prdc import compute_prdc

    x, y = (simulated_features(2000, seed).astype(np.float32) for seed in (1, 2))

    def peer():
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
            return compute_prdc(x, y, 5)

    return [
        compare(
            "PRDC, 2000 x 2000 / prdc",
            peer,
            lambda: prdc(x, y, 5),
            lambda p, q: max(abs(p[key] - q[key]) for key in q),
            2e-3,
            rounds,
        )
    ]


def features(rounds):
    "Inception at 299 x 299 from 256 x 256, batch 16, against pytorch-fid, both with the same random weights."
    import pytorch_fid.inception
    from safetensors.torch import save

    torch.manual_seed(0)
    state = build_inception().state_dict()
    pytorch_fid.inception.load_state_dict_from_url = lambda *args, **options: (
        state | {"fc.weight": torch.zeros(1008, 2048), "fc.bias": torch.zeros(1008)}
    )
    peer = pytorch_fid.inception.InceptionV3([3]).eval()
    content = save(state)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "weights.safetensors"
        path.write_bytes(content)
        network = load_inception(path, hashlib.sha256(content).hexdigest())
    x = torch.rand(16, 3, 256, 256)
    theirs = torch.no_grad()(lambda: peer(x)[0].flatten(1))
    short = copy.deepcopy(network).bfloat16()

    @torch.inference_mode()
    def ours(network=network, dtype=torch.float32):
        resized = torch.nn.functional.interpolate(
            2 * x - 1, size=(299, 299), mode="bilinear", align_corners=False
        )
        return (
            network(resized.to(dtype).contiguous(memory_format=torch.channels_last))
            .float()
            .flatten(1)
        )

    def with_heap(kept, call):
        def run():
            heap(kept)
            return call()

        return run

    rows = []
    for name, call, bound in (
        ("", ours, 1e-4),
        (" in bf16", partial(ours, short, torch.bfloat16), 0.02),
    ):
        sides = with_heap(KEPT, theirs), with_heap(True, call)
        sides[0](), sides[1]()
        rows.append(
            compare(
                f"Inception, 16 images{name} / pytorch-fid",
                *sides,
                lambda p, q: (p - q).norm() / p.norm(),
                bound,
                rounds,
            )
        )
    return rows


PARTS = {
    "frechet": (frechet, None),
    "ssim": (similarity, None),
    "inception": (features, None),
    "kid": (time_kid, "torch_fidelity"),
    "prdc": (coverage, "prdc"),
}


def main():
    "Run the parts asked for and print or write the table."
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--parts",
        default=",".join(PARTS),
        help=f"which, separated by commas, of: {', '.join(PARTS)}",
    )
    parser.add_argument("--rounds", type=int, default=3, help="how often each side runs")
    parser.add_argument(
        "--threads", type=int, default=2, help="threads of torch; numpy's follow OMP_NUM_THREADS"
    )
    parser.add_argument(
        "--keep-heap",
        action="store_true",
        help="keep freed memory in the process, for both sides (ours always does for Inception)",
    )
    parser.add_argument(
        "--cpu",
        action="store_true",
        help="count processor seconds, for one thread on a busy machine",
    )
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    options = parser.parse_args()
    global CLOCK, KEPT
    CLOCK = time.process_time if options.cpu else time.perf_counter
    warnings.filterwarnings("ignore")
    torch.set_num_threads(options.threads)
    KEPT = options.keep_heap
    heap(KEPT)
    print(f"{'':44}{'peer s':>10}{'ours s':>10}{'ratio':>9}   range   difference")
    rows = []
    for part in options.parts.split(","):
        measure, package = PARTS[part]
        if package and importlib.util.find_spec(package) is None:
            print(f"{part}: skipped, {package} is not installed")
            continue
        rows += measure(options.rounds)
    if options.json:
        settings = {
            "torch": torch.__version__,
            "numpy": np.__version__,
            "threads": options.threads,
            "cpu": options.cpu,
            "keep_heap": options.keep_heap,
        }
        options.json.write_text(json.dumps(settings | {"rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
