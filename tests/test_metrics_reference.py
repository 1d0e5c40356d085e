"""The metrics against scipy, scikit-image and loops over pairs, and the input they refuse."""

import ast
import importlib.util
import os
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
from medgan_nb.datasets import registry
from medgan_nb.metrics.baselines import matched_scores
from medgan_nb.metrics.distributions import distribution_distance
from medgan_nb.metrics.features import extract_features, random_network
from medgan_nb.metrics.fid import (
    frechet_ci,
    frechet_distance,
    frechet_from_moments,
    influence_values,
)
from medgan_nb.metrics.kid import kid, kid_ci, kid_subsets, subset_indicators
from medgan_nb.metrics.memorization import (
    aligned_distances,
    authenticity,
    flag_memorized,
    nearest_neighbors,
)
from medgan_nb.metrics.prdc import prdc
from medgan_nb.metrics.similarity import (
    mean_pairwise_ms_ssim,
    mean_pairwise_ssim,
    ms_ssim,
    mse,
    pearson,
    psnr,
    ssim,
)
from medgan_nb.metrics.texture import erode_mask, foreground_mask, sobel_distance, sobel_magnitude
from medgan_nb.simulation import ultrasound_bmode
from medgan_nb.studies.common.memorization import disguise_copies

SSIM_OPTIONS = dict(gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=2)
few_examples = settings(max_examples=20, deadline=None, derandomize=True)
seeds = st.integers(0, 2**32 - 1)


def simulate_features(n, d, seed, shift=0.0):
    "Correlated simulated features (n, d)."
    mixing = np.random.default_rng(d).normal(size=(d, d))
    return np.random.default_rng(seed).normal(size=(n, d)) @ mixing + shift


def simulate_images(n, height, width, seed):
    "Simulated images (n, 1, height, width) in [-1, 1]."
    noise = np.random.default_rng(seed).normal(size=(n, 1, height, width))
    return (2 * gaussian_filter(noise, (0, 0, 1.5, 1.5))).clip(-1, 1)


# Fréchet distance


def by_sqrtm(x, y):
    "The distance as libraries compute it."
    s1, s2 = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    mean_term = np.square(x.mean(0) - y.mean(0)).sum()
    return mean_term + np.trace(s1) + np.trace(s2) - 2 * np.trace(sqrtm(s1 @ s2)).real


@pytest.mark.parametrize("n, m, d", [(40, 40, 3), (300, 90, 24), (65, 400, 64), (129, 70, 64)])
def test_frechet_equals_sqrtm(n, m, d):
    x, y = simulate_features(n, d, 1), simulate_features(m, d, 2, 0.3)
    assert frechet_distance(x, y) == pytest.approx(by_sqrtm(x, y), rel=1e-6)


def test_frechet_in_one_dimension():
    x, y = simulate_features(900, 1, 1), simulate_features(800, 1, 2, 0.3)
    expected = (x.mean() - y.mean()) ** 2 + (x.std(ddof=1) - y.std(ddof=1)) ** 2
    assert frechet_distance(x, y) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    "n, m, d", [(10, 12, 50), (2, 2, 5), (2, 200, 30), (60, 20, 40), (1100, 1060, 1050)]
)
def test_frechet_equals_eigenvalues_of_the_product(n, m, d):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(n, d)), 1.5 * rng.normal(size=(m, d)) + 0.1
    s1, s2 = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    values, vectors = np.linalg.eigh(s1)
    root = vectors * np.sqrt(values.clip(min=0))
    trace_sqrt = np.sqrt(np.linalg.eigvalsh(root.T @ s2 @ root).clip(min=0)).sum()
    mean_term = np.square(x.mean(0) - y.mean(0)).sum()
    expected = mean_term + np.trace(s1) + np.trace(s2) - 2 * trace_sqrt
    assert frechet_distance(x, y) == pytest.approx(expected, rel=1e-6)
    assert frechet_from_moments(x.mean(0), s1, y.mean(0), s2) == pytest.approx(expected, rel=1e-6)


@few_examples
@given(seed=seeds, n=st.integers(2, 40), m=st.integers(2, 40), d=st.integers(1, 20))
def test_frechet_invariants(seed, n, m, d):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(n, d)), rng.normal(size=(m, d)) * 2 + 1
    value = frechet_distance(x, y)
    rotation = np.linalg.qr(rng.normal(size=(d, d)))[0]
    tolerance = 1e-8 * (np.square(x).mean() + np.square(y).mean() + 1) * d
    equal_values = [
        frechet_distance(y, x),
        frechet_distance(x + 7, y + 7),
        frechet_distance(x @ rotation, y @ rotation),
        frechet_distance(3 * x, 3 * y) / 9,
        frechet_distance(x[rng.permutation(n)], y),
    ]
    assert value >= 0 and equal_values == pytest.approx([value] * 5, abs=tolerance)
    assert frechet_distance(x, x) <= tolerance


def test_frechet_in_numpy_and_torch():
    x = simulate_features(50, 80, 1).astype(np.float32)
    y = simulate_features(60, 80, 2).astype(np.float32)
    assert frechet_distance(torch.from_numpy(x), torch.from_numpy(y)) == frechet_distance(x, y)


@pytest.mark.parametrize("n, m, d", [(40, 30, 5), (25, 20, 60)])
def test_influences_are_those_of_the_jackknife(n, m, d):
    x, y = simulate_features(n, d, 1), simulate_features(m, d, 2, 0.5)
    leave_one_out = np.array([frechet_distance(np.delete(x, i, 0), y) for i in range(n)])
    jackknife = (n - 1) * (leave_one_out.mean() - leave_one_out)
    influence = influence_values(x, y)[0]
    assert np.corrcoef(influence, jackknife)[0, 1] > 0.9
    assert 0.7 < influence.std() / jackknife.std() < 1.3


@pytest.mark.parametrize("confidence_interval", [frechet_ci, kid_ci])
def test_intervals_widen_with_groups(confidence_interval):
    rng = np.random.default_rng(0)
    x = np.repeat(rng.normal(size=(20, 6)), 4, 0) + 0.05 * rng.normal(size=(80, 6))
    y = rng.normal(size=(800, 6)) + 1
    patients = np.repeat([f"patient {i}" for i in range(20)], 4)
    by_image = confidence_interval(x, y)
    by_patient = confidence_interval(x, y, groups_real=patients)
    assert by_patient[1] - by_patient[0] > 1.3 * (by_image[1] - by_image[0])
    with pytest.raises(MedganError, match="at least two groups"):
        confidence_interval(x, y, groups_real=["one"] * 80)


# KID


def kid_by_pairs(x, y):
    "The unbiased estimate, as three means over pairs."

    def kernel(u, v):
        return (u @ v.T / u.shape[1] + 1) ** 3

    def within(v):
        return (kernel(v, v).sum() - np.trace(kernel(v, v))) / (len(v) * (len(v) - 1))

    return within(x) + within(y) - 2 * kernel(x, y).mean()


@pytest.mark.parametrize("n, m, d", [(2, 2, 1), (30, 50, 7), (1500, 40, 3), (20, 1030, 100)])
def test_kid_equals_pairs(n, m, d):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(n, d)), rng.normal(size=(m, d)) + 0.5
    assert kid(x, y) == pytest.approx(kid_by_pairs(x, y), rel=1e-9, abs=1e-12)


def test_kid_subsets_equal_the_subsets_one_by_one():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(40, 5)), rng.normal(size=(30, 5)) + 0.5
    rng = np.random.default_rng(3)
    in_x = subset_indicators(40, 8, 20, rng).astype(bool)
    in_y = subset_indicators(30, 8, 20, rng).astype(bool)
    values = [kid_by_pairs(x[a], y[b]) for a, b in zip(in_x, in_y)]
    expected = np.mean(values), np.std(values)
    assert kid_subsets(x, y, 8, 20, seed=3) == pytest.approx(expected, rel=1e-9)


def test_kid_is_unbiased():
    rng = np.random.default_rng(0)
    values = [kid(rng.normal(size=(12, 4)), rng.normal(size=(9, 4))) for _ in range(600)]
    assert abs(np.mean(values)) < 3 * np.std(values) / np.sqrt(600)


@pytest.mark.skipif(
    importlib.util.find_spec("torch_fidelity") is None, reason="torch-fidelity is not installed"
)
def test_kid_subsets_equal_torch_fidelity():
    from torch_fidelity.metric_kid import kid_features_to_metric

    x, y = (torch.from_numpy(simulate_features(120, 16, seed) / 4).float() for seed in (1, 2))
    peer = kid_features_to_metric(x, y, kid_subsets=200, kid_subset_size=100, verbose=False)
    expected = peer["kernel_inception_distance_mean"]
    assert kid_subsets(x, y, 200, 100)[0] == pytest.approx(expected, rel=0.1)


# Precision, recall, density, coverage


@few_examples
@given(seed=seeds, n=st.integers(3, 40), m=st.integers(3, 40), k=st.integers(1, 2))
def test_prdc_equals_its_definition(seed, n, m, k):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(n, 3)), rng.normal(size=(m, 3)) + rng.uniform(0, 2)
    distances = cdist(x, y)
    in_real_ball = distances < np.sort(cdist(x, x), 1)[:, k][:, None]
    expected = {
        "precision": in_real_ball.any(0).mean(),
        "recall": (distances < np.sort(cdist(y, y), 1)[:, k]).any(1).mean(),
        "density": in_real_ball.sum() / (k * m),
        "coverage": in_real_ball.any(1).mean(),
    }
    assert prdc(x, y, k) == pytest.approx(expected)
    swapped = prdc(y, x, k)
    assert swapped["precision"] == pytest.approx(expected["recall"])
    assert swapped["recall"] == pytest.approx(expected["precision"])


# Similarity


@pytest.mark.parametrize(
    "count, height, width", [(5, 11, 11), (33, 24, 17), (17, 64, 64), (3, 256, 200)]
)
def test_ssim_equals_scikit_image(count, height, width):
    a, b = simulate_images(count, height, width, 0), simulate_images(count, height, width, 1)
    b = 0.6 * a + 0.4 * b
    expected = [structural_similarity(p[0], q[0], **SSIM_OPTIONS) for p, q in zip(a, b)]
    assert np.abs(ssim(a, b) - expected).max() < 1e-6
    assert np.abs(ssim(torch.from_numpy(a).float(), b, batch_size=2) - expected).max() < 1e-6


@few_examples
@given(seed=seeds, gain=st.floats(-1, 1))
def test_similarity_invariants(seed, gain):
    a, b = simulate_images(3, 20, 15, seed), simulate_images(3, 20, 15, seed + 1)
    assert (ssim(a, a) == 1).all() and np.abs(ssim(a, b) - ssim(b, a)).max() < 1e-6
    assert (np.abs(ssim(a, gain * b)) <= 1 + 1e-6).all()
    assert not (np.abs(pearson(a, gain * b)) > 1).any()
    assert psnr(a, b) == pytest.approx(10 * np.log10(4 / mse(a, b)))
    assert mse(a, b) == pytest.approx(np.square(a - b).mean((1, 2, 3)), rel=1e-5)


def test_mean_pairwise_ssim_is_the_mean_over_pairs():
    a = simulate_images(9, 30, 30, 0)
    values = [ssim(a[i : i + 1], a[j : j + 1])[0] for i in range(9) for j in range(i)]
    assert mean_pairwise_ssim(a) == pytest.approx(np.mean(values), abs=1e-6)
    first = mean_pairwise_ssim(a, 20, seed=1)
    assert first == mean_pairwise_ssim(a, 20, seed=1) != mean_pairwise_ssim(a, 20, seed=2)


def test_ssim_on_real_images(real_data):
    from PIL import Image

    suffixes = (".png", ".jpeg", ".jpg", ".pgm")
    paths = sorted(path for path in real_data.rglob("*") if path.suffix in suffixes)
    paths = paths[:: max(1, len(paths) // 16)][:16]
    pixels = [np.asarray(Image.open(path).convert("L").resize((128, 128))) for path in paths]
    a = np.stack(pixels)[:, None] / 127.5 - 1
    b = np.roll(a, 1, axis=0)
    expected = [structural_similarity(p[0], q[0], **SSIM_OPTIONS) for p, q in zip(a, b)]
    assert np.abs(ssim(a, b) - expected).max() < 5e-6  # flat regions cost digits


# Texture


def test_erode_mask_keeps_pixels_with_eight_neighbors():
    masks = np.random.default_rng(0).random((20, 1, 9, 12)) < 0.9
    masks[0] = False
    masks[0, 0, 2, 3] = True
    padded = np.pad(masks, ((0, 0), (0, 0), (1, 1), (1, 1)))
    shifted = [padded[:, :, y : y + 9, x : x + 12] for y in range(3) for x in range(3)]
    eroded = np.logical_and.reduce(shifted)
    expected = [inner if inner.any() else mask for inner, mask in zip(eroded, masks)]
    assert (erode_mask(masks) == expected).all()


def test_sobel_distance_is_the_distance_of_pooled_pixels():
    a, b = (simulate_images(5, 40, 30, seed) for seed in (0, 1))
    pixels = [sobel_magnitude(x)[erode_mask(foreground_mask(x))] for x in (a, b)]
    points = np.sort(np.concatenate(pixels))
    f, g = (np.searchsorted(np.sort(v), points, side="right") / len(v) for v in pixels)
    ks, wasserstein = sobel_distance(a, b)
    pooled = distribution_distance(*pixels)
    assert ks == np.abs(f - g).max() == pooled.ks
    assert wasserstein == pytest.approx(pooled.wasserstein * pixels[0].std(), rel=1e-6)


# Memorization


@few_examples
@given(
    seed=seeds, n=st.integers(1, 50), m=st.integers(1, 30), scale=st.sampled_from([1e-6, 1.0, 1e6])
)
def test_nearest_neighbors_equal_those_of_all_distances(seed, n, m, scale):
    rng = np.random.default_rng(seed)
    train, query = scale * rng.normal(size=(n, 5)) + scale, scale * rng.normal(size=(m, 5))
    index, distance = nearest_neighbors(train, query, batch_size=7)
    distances = cdist(query, train)
    assert (index == distances.argmin(1)).all()
    assert distance == pytest.approx(distances.min(1), rel=1e-12)


def test_nearest_neighbors_of_copied_images():
    train = simulate_images(40, 16, 16, 0).astype(np.float32)
    index, distance = nearest_neighbors(train, train[[7, 3, 39]])
    assert index.tolist() == [7, 3, 39] and (distance == 0).all()


@few_examples
@given(seed=seeds, n=st.integers(2, 30), m=st.integers(1, 30))
def test_authenticity_equals_its_definition(seed, n, m):
    rng = np.random.default_rng(seed)
    train, fake = rng.normal(size=(n, 2)), rng.normal(size=(m, 2))
    train_distances = cdist(train, train) + np.diag(np.full(n, np.inf))
    authentic = [row.min() > train_distances[row.argmin()].min() for row in cdist(fake, train)]
    assert authenticity(train, fake) == pytest.approx(100 * np.mean(authentic))


def test_flag_memorized_flags_copies_and_little_else():
    rng = np.random.default_rng(0)
    train, heldout = rng.normal(size=(200, 6)), rng.normal(size=(199, 6))
    fake = np.concatenate([train[:50] + 0.01, rng.normal(size=(500, 6))])
    memorized = flag_memorized(train, fake, heldout)
    assert memorized["flagged"][:50].all() and memorized["flagged"][50:].mean() < 0.1
    assert memorized["index"][:50].tolist() == list(range(50)) and memorized["expected"] == 0.05


def split_groups(images, groups, seed):
    "Training, held-out and fresh images of a random division of the groups."
    order = np.random.default_rng(seed).permutation(np.unique(groups))
    part = np.searchsorted([0.5, 0.75], np.linspace(0, 1, len(order)), side="right")
    return (images[np.isin(groups, order[part == k])] for k in range(3))


def shares_flagged(images, groups, n_draws):
    "Shares flagged of fresh, blurred fresh and disguised training images; means over divisions."
    shares = []
    for seed in range(n_draws):
        train, heldout, fresh = split_groups(images, groups, seed)
        fakes = [fresh, *(gaussian_filter(fresh, (0, 0, s, s)) for s in (0.5, 1, 2))]
        fakes += [disguise_copies(train[:100], seed), train[:100]]
        shares.append([flag_memorized(train, fake, heldout)["share"] for fake in fakes])
    return np.mean(shares, axis=0)


def test_blurred_images_of_new_patients_are_no_copies():
    images = ultrasound_bmode.load(64, n_images=480, seed=1)
    *fresh, disguised, copies = shares_flagged(images.batch().numpy(), images.groups, 4)
    assert max(fresh) < 0.1 and disguised > 0.9 and copies == 1


@pytest.mark.skipif(
    not os.environ.get("MEDGAN_DATA"), reason="MEDGAN_DATA names no folder with real images"
)
@pytest.mark.parametrize(("name", "n_draws"), [("busi", 4), ("mini_mias", 16)])
def test_blurred_real_images_are_no_copies(name, n_draws):
    images = registry.load(name, os.environ["MEDGAN_DATA"], size=64)
    *fresh, disguised, copies = shares_flagged(images.batch().numpy(), images.groups, n_draws)
    assert 0.02 < fresh[0] < 0.08 and max(fresh) < 0.08
    assert disguised > 0.9 and copies == 1


# Refused input

FEATURE_METRICS = [
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
    ms_ssim,
    aligned_distances,
    lambda a, b: mean_pairwise_ssim(b),
    lambda a, b: mean_pairwise_ms_ssim(b),
    lambda a, b: flag_memorized(a, b, a, 0.5),
    lambda a, b: extract_features(random_network(), b),
]


@pytest.mark.parametrize("metric", FEATURE_METRICS)
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
def test_refused_features(metric, bad):
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
def test_refused_images(metric, bad):
    with pytest.raises(MedganError):
        metric(np.zeros((8, 1, 16, 16)), bad)


@pytest.mark.parametrize(
    "call",
    [
        lambda x: prdc(x, x, 9),
        lambda x: prdc(x, x, 0),
        lambda x: kid_subsets(x, x, 5, 10),
        lambda x: kid_subsets(x, x, 0, 5),
        lambda x: flag_memorized(x, x, x, 0.01),
        lambda x: flag_memorized(x, x, x, 1.5),
        lambda x: matched_scores(mse, x, {"copies": x}, 1),
        lambda x: matched_scores(mse, x, {"none": x[:0]}, 5),
        lambda x: frechet_ci(x, x, confidence_level=2),
        lambda x: authenticity(x[:1], x),
    ],
)
def test_refused_options(call):
    with pytest.raises(MedganError):
        call(np.random.default_rng(0).normal(size=(9, 4)))


# Weights


def test_only_one_function_parses_downloaded_weights():
    parsers = ("torch.load", "pickle.load", "pickle.loads", "torch.jit.load", "np.load")
    unsafe_calls = []
    for path in Path(medgan_nb.__path__[0]).rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for function in (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)):
            for call in (node for node in ast.walk(function) if isinstance(node, ast.Call)):
                options = {k.arg: ast.unparse(k.value) for k in call.keywords}
                if ast.unparse(call.func) in parsers and options.get("allow_pickle") != "False":
                    unsafe_calls.append((function.name, options.get("weights_only")))
    assert unsafe_calls == [("_convert", "True")]
