"""The metrics against scipy, scikit-image and loops over pairs, over many shapes; and what all of them refuse."""

import ast
import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import sqrtm
from scipy.ndimage import gaussian_filter
from scipy.spatial.distance import cdist
from skimage.metrics import structural_similarity

import medgan_nb
from medgan_nb.core.errors import MedganError
from medgan_nb.metrics.baselines import real_and_copy_baselines
from medgan_nb.metrics.features import extract_features, random_network
from medgan_nb.metrics.fid import (
    frechet_distance,
    frechet_from_moments,
    frechet_ci,
    influence_values,
)
from medgan_nb.metrics.kid import subset_indicators, kid, kid_ci, kid_subsets
from medgan_nb.metrics.memorization import authenticity, flag_memorized, nearest_neighbors
from medgan_nb.metrics.prdc import prdc
from medgan_nb.metrics.similarity import mse, mean_pairwise_ssim, pearson, psnr, ssim

WANG = dict(gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=2)
quickly = settings(max_examples=20, deadline=None, derandomize=True)
seeds = st.integers(0, 2**32 - 1)


def sample(rows, dim, seed, shift=0.0):
    "Correlated simulated features."
    rng = np.random.default_rng(seed)
    return rng.normal(size=(rows, dim)) @ np.random.default_rng(dim).normal(size=(dim, dim)) + shift


def pictures(count, height, width, seed):
    "Simulated images in [-1, 1]."
    x = gaussian_filter(
        np.random.default_rng(seed).normal(size=(count, 1, height, width)), (0, 0, 1.5, 1.5)
    )
    return (2 * x).clip(-1, 1)


# Fréchet distance


def by_sqrtm(x, y):
    "The distance as libraries compute it."
    s, t = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    return (
        np.square(x.mean(0) - y.mean(0)).sum()
        + np.trace(s)
        + np.trace(t)
        - 2 * np.trace(sqrtm(s @ t)).real
    )


@pytest.mark.parametrize(
    "n, m, d", [(40, 40, 3), (300, 90, 24), (65, 400, 64), (900, 800, 1), (129, 70, 64)]
)
def test_frechet_equals_sqrtm(n, m, d):
    x, y = sample(n, d, 1).reshape(n, d), sample(m, d, 2, 0.3)
    if d > 1:
        assert frechet_distance(x, y) == pytest.approx(by_sqrtm(x, y), rel=1e-6)
    else:
        gap, s, t = (x.mean() - y.mean()) ** 2, x.std(ddof=1), y.std(ddof=1)
        assert frechet_distance(x, y) == pytest.approx(gap + (s - t) ** 2, rel=1e-9)


@pytest.mark.parametrize(
    "n, m, d", [(10, 12, 50), (2, 2, 5), (2, 200, 30), (60, 20, 40), (1100, 1060, 1050)]
)
def test_frechet_equals_eigenvalues_of_the_product(n, m, d):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(n, d)), 1.5 * rng.normal(size=(m, d)) + 0.1
    s, t = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    values, vectors = np.linalg.eigh(s)
    half = vectors * np.sqrt(values.clip(min=0))
    overlap = np.sqrt(np.linalg.eigvalsh(half.T @ t @ half).clip(min=0)).sum()
    expected = np.square(x.mean(0) - y.mean(0)).sum() + np.trace(s) + np.trace(t) - 2 * overlap
    assert frechet_distance(x, y) == pytest.approx(expected, rel=1e-6)
    assert frechet_from_moments(x.mean(0), s, y.mean(0), t) == pytest.approx(expected, rel=1e-6)


@quickly
@given(seed=seeds, n=st.integers(2, 40), m=st.integers(2, 40), d=st.integers(1, 20))
def test_frechet_invariants(seed, n, m, d):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(n, d)), rng.normal(size=(m, d)) * 2 + 1
    value = frechet_distance(x, y)
    turn = np.linalg.qr(rng.normal(size=(d, d)))[0]
    size = np.square(x).mean() + np.square(y).mean() + 1

    def near(other):
        return abs(other - value) <= 1e-8 * size * d

    assert value >= 0 and near(frechet_distance(y, x)) and near(frechet_distance(x + 7, y + 7))
    assert near(frechet_distance(x @ turn, y @ turn)) and near(frechet_distance(3 * x, 3 * y) / 9)
    assert near(frechet_distance(x[rng.permutation(n)], y))
    assert frechet_distance(x, x) <= 1e-8 * size * d


def test_frechet_in_numpy_and_torch():
    x, y = sample(50, 80, 1).astype(np.float32), sample(60, 80, 2).astype(np.float32)
    assert frechet_distance(torch.from_numpy(x), torch.from_numpy(y)) == frechet_distance(x, y)


@pytest.mark.parametrize("n, m, d", [(40, 30, 5), (25, 20, 60)])
def test_influences_are_those_of_the_jackknife(n, m, d):
    x, y = sample(n, d, 1), sample(m, d, 2, 0.5)
    left_out = np.array([frechet_distance(np.delete(x, i, 0), y) for i in range(n)])
    found, steps = influence_values(x, y)[0], (n - 1) * (left_out.mean() - left_out)
    assert np.corrcoef(found, steps)[0, 1] > 0.9
    assert 0.7 < found.std() / steps.std() < 1.3


def test_intervals_widen_with_groups():
    rng = np.random.default_rng(0)
    x = np.repeat(rng.normal(size=(20, 6)), 4, 0) + 0.05 * rng.normal(size=(80, 6))
    y = rng.normal(size=(800, 6)) + 1
    names = np.repeat([f"patient {i}" for i in range(20)], 4)
    for interval in (frechet_ci, kid_ci):
        alone, grouped = interval(x, y), interval(x, y, groups_real=names)
        assert grouped[1] - grouped[0] > 1.3 * (alone[1] - alone[0])
        with pytest.raises(MedganError, match="at least two groups"):
            interval(x, y, groups_real=["one"] * 80)


# Kernel distance


def by_pairs(x, y):
    "The unbiased estimate, as three means over pairs."

    def k(u, v):
        return (u @ v.T / u.shape[1] + 1) ** 3

    def inner(v):
        return (k(v, v).sum() - np.trace(k(v, v))) / (len(v) * (len(v) - 1))

    return inner(x) + inner(y) - 2 * k(x, y).mean()


@pytest.mark.parametrize("n, m, d", [(2, 2, 1), (30, 50, 7), (1500, 40, 3), (20, 1030, 100)])
def test_kernel_distance_equals_pairs(n, m, d):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(n, d)), rng.normal(size=(m, d)) + 0.5
    assert kid(x, y) == pytest.approx(by_pairs(x, y), rel=1e-9, abs=1e-12)


def test_kernel_subsets_equal_the_subsets_one_by_one():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(40, 5)), rng.normal(size=(30, 5)) + 0.5
    draws = np.random.default_rng(3)
    in_x, in_y = (subset_indicators(count, 8, 20, draws).astype(bool) for count in (40, 30))
    values = [by_pairs(x[a], y[b]) for a, b in zip(in_x, in_y)]
    assert kid_subsets(x, y, 8, 20, seed=3) == pytest.approx(
        (np.mean(values), np.std(values)), rel=1e-9
    )


def test_kernel_distance_is_unbiased():
    rng = np.random.default_rng(0)
    values = [
        kid(rng.normal(size=(12, 4)), rng.normal(size=(9, 4))) for _ in range(600)
    ]
    assert abs(np.mean(values)) < 3 * np.std(values) / np.sqrt(600)


@pytest.mark.skipif(
    importlib.util.find_spec("torch_fidelity") is None, reason="torch-fidelity is not installed"
)
def test_kernel_subsets_equal_torch_fidelity():
    from torch_fidelity.metric_kid import kid_features_to_metric

    x, y = (torch.from_numpy(sample(120, 16, seed) / 4).float() for seed in (1, 2))
    peer = kid_features_to_metric(x, y, kid_subsets=200, kid_subset_size=100, verbose=False)
    assert kid_subsets(x, y, 200, 100)[0] == pytest.approx(
        peer["kernel_inception_distance_mean"], rel=0.1
    )


# Precision, recall, density, coverage


@quickly
@given(seed=seeds, n=st.integers(3, 40), m=st.integers(3, 40), k=st.integers(1, 2))
def test_prdc_equals_loops(seed, n, m, k):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(n, 3)), rng.normal(size=(m, 3)) + rng.uniform(0, 2)
    table = cdist(x, y)
    inside = table < np.sort(cdist(x, x), 1)[:, k][:, None]
    expected = {
        "precision": inside.any(0).mean(),
        "recall": (table < np.sort(cdist(y, y), 1)[:, k]).any(1).mean(),
        "density": inside.sum() / (k * m),
        "coverage": inside.any(1).mean(),
    }
    assert prdc(x, y, k) == pytest.approx(expected)
    swapped = prdc(y, x, k)
    assert (swapped["precision"], swapped["recall"]) == pytest.approx(
        (expected["recall"], expected["precision"])
    )


# Similarity


@pytest.mark.parametrize(
    "count, height, width", [(5, 11, 11), (33, 24, 17), (17, 64, 64), (3, 256, 200)]
)
def test_ssim_equals_scikit_image(count, height, width):
    a, b = pictures(count, height, width, 0), pictures(count, height, width, 1)
    b = 0.6 * a + 0.4 * b
    expected = [structural_similarity(p[0], q[0], **WANG) for p, q in zip(a, b)]
    assert np.abs(ssim(a, b) - expected).max() < 1e-6
    assert np.abs(ssim(torch.from_numpy(a).float(), b, batch_size=2) - expected).max() < 1e-6


@quickly
@given(seed=seeds, gain=st.floats(-1, 1))
def test_similarity_invariants(seed, gain):
    a, b = pictures(3, 20, 15, seed), pictures(3, 20, 15, seed + 1)
    assert (ssim(a, a) == 1).all() and np.abs(ssim(a, b) - ssim(b, a)).max() < 1e-6
    assert (np.abs(ssim(a, gain * b)) <= 1 + 1e-6).all() and not (
        np.abs(pearson(a, gain * b)) > 1
    ).any()
    assert psnr(a, b) == pytest.approx(10 * np.log10(4 / mse(a, b)))
    assert mse(a, b) == pytest.approx(np.square(a - b).mean((1, 2, 3)), rel=1e-5)


def test_pair_ssim_is_the_mean_over_pairs():
    a = pictures(9, 30, 30, 0)
    pairs = [(i, j) for i in range(9) for j in range(i)]
    assert mean_pairwise_ssim(a) == pytest.approx(
        np.mean([ssim(a[i : i + 1], a[j : j + 1])[0] for i, j in pairs]), abs=1e-6
    )
    assert mean_pairwise_ssim(a, 20, seed=1) == mean_pairwise_ssim(a, 20, seed=1) != mean_pairwise_ssim(a, 20, seed=2)


def test_ssim_on_real_images(real_data):
    from PIL import Image

    paths = sorted(
        p for p in real_data.rglob("*") if p.suffix in (".png", ".jpeg", ".jpg", ".pgm")
    )[::50][:16]
    films = np.stack(
        [np.asarray(Image.open(p).convert("L").resize((128, 128)))[None] / 127.5 - 1 for p in paths]
    )
    expected = [structural_similarity(p[0], q[0], **WANG) for p, q in zip(films[::2], films[1::2])]
    assert np.abs(ssim(films[::2], films[1::2]) - expected).max() < 1e-6


# Memorisation


@quickly
@given(
    seed=seeds, n=st.integers(1, 50), m=st.integers(1, 30), scale=st.sampled_from([1e-6, 1.0, 1e6])
)
def test_nearest_equals_the_table_of_distances(seed, n, m, scale):
    rng = np.random.default_rng(seed)
    train, fake = scale * rng.normal(size=(n, 5)) + scale, scale * rng.normal(size=(m, 5))
    index, distance = nearest_neighbors(train, fake, batch_size=7)
    table = cdist(fake, train)
    assert (index == table.argmin(1)).all() and distance == pytest.approx(table.min(1), rel=1e-12)


def test_nearest_finds_copies_among_images():
    train = pictures(40, 16, 16, 0).astype(np.float32)
    index, distance = nearest_neighbors(train, train[[7, 3, 39]])
    assert index.tolist() == [7, 3, 39] and (distance == 0).all()


@quickly
@given(seed=seeds, n=st.integers(2, 30), m=st.integers(1, 30))
def test_authenticity_equals_its_definition(seed, n, m):
    rng = np.random.default_rng(seed)
    train, fake = rng.normal(size=(n, 2)), rng.normal(size=(m, 2))
    within = cdist(train, train) + np.diag(np.full(n, np.inf))
    table = cdist(fake, train)
    authentic = [row.min() > within[row.argmin()].min() for row in table]
    assert authenticity(train, fake) == pytest.approx(100 * np.mean(authentic))


def test_copies_flags_what_is_too_near_and_little_else():
    rng = np.random.default_rng(0)
    train, heldout = rng.normal(size=(200, 6)), rng.normal(size=(199, 6))
    fake = np.concatenate([train[:50] + 0.01, rng.normal(size=(500, 6))])
    found = flag_memorized(train, fake, heldout)
    assert found["flagged"][:50].all() and found["flagged"][50:].mean() < 0.1
    assert found["index"][:50].tolist() == list(range(50)) and found["expected"] == 0.05


# What all of them refuse

DISTANCES = [
    frechet_distance,
    frechet_ci,
    kid,
    kid_ci,
    authenticity,
    nearest_neighbors,
    lambda a, b: kid_subsets(a, b, 2, 4),
    lambda a, b: prdc(a, b, 2),
    lambda a, b: flag_memorized(a, b, a, 0.5),
]
IMAGE_METRICS = [
    ssim,
    psnr,
    pearson,
    mse,
    nearest_neighbors,
    lambda a, b: mean_pairwise_ssim(b),
    lambda a, b: extract_features(random_network(), b),
]


@pytest.mark.parametrize("metric", DISTANCES)
@pytest.mark.parametrize(
    "bad",
    [
        np.full((8, 4), np.nan),
        np.ones((8, 3)),
        np.ones(8),
        np.ones((0, 4)),
        np.ones((8, 4), complex),
        np.array([["a"] * 4] * 8),
        [[1.0, np.inf, 0, 0]] * 8,
    ],
)
def test_features_that_are_refused(metric, bad):
    good = np.random.default_rng(0).normal(size=(8, 4))
    for pair in ((good, bad), (bad, good)):
        with pytest.raises(MedganError) as caught:
            metric(*pair)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("metric", IMAGE_METRICS)
@pytest.mark.parametrize(
    "bad",
    [
        np.full((8, 1, 16, 16), np.nan),
        np.zeros((8, 3, 16, 16)),
        np.zeros((8, 16, 16, 1)),
        np.full((8, 1, 16, 16), 255.0),
        np.zeros((0, 1, 16, 16)),
        np.zeros((8, 1, 0, 16)),
    ],
)
def test_images_that_are_refused(metric, bad):
    with pytest.raises(MedganError):
        metric(np.zeros((8, 1, 16, 16)), bad)


def test_counts_that_are_refused():
    x = np.random.default_rng(0).normal(size=(9, 4))
    for call in (
        lambda: prdc(x, x, 9),
        lambda: prdc(x, x, 0),
        lambda: kid_subsets(x, x, 5, 10),
        lambda: kid_subsets(x, x, 0, 5),
        lambda: flag_memorized(x, x, x, 0.01),
        lambda: flag_memorized(x, x, x, 1.5),
        lambda: real_and_copy_baselines(mse, x, x, 10),
        lambda: frechet_ci(x, x, confidence_level=2),
        lambda: authenticity(x[:1], x),
    ):
        with pytest.raises(MedganError):
            call()


# Weights


def test_published_weights_are_parsed_in_one_place_only():
    parsers = ("torch.load", "pickle.load", "pickle.loads", "torch.jit.load", "np.load")
    found = []
    for file in Path(medgan_nb.__path__[0]).rglob("*.py"):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        for function in (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)):
            for call in (node for node in ast.walk(function) if isinstance(node, ast.Call)):
                options = {k.arg: ast.unparse(k.value) for k in call.keywords}
                if ast.unparse(call.func) in parsers and options.get("allow_pickle") != "False":
                    found.append((function.name, options))
    assert len(found) == 1 and found[0][0] == "convert" and found[0][1]["weights_only"] == "True"
