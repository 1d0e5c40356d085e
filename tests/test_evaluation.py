"""Training and testing of classifiers: determinism, pairing, exact steps, arms, no leaks.

Statistics, metrics and denoising keep the values they had before SciPy, scikit-learn, statsmodels
and PyWavelets computed them.
"""

import math
import os
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.restoration import estimate_sigma

from medgan_nb.core.errors import ConfigError, DataError, TrainingError
from medgan_nb.data.dataset import ImageSet, concat
from medgan_nb.data.leakage import IMAGE_SPLIT, pixel_keys
from medgan_nb.evaluation import denoising, statistics
from medgan_nb.evaluation.classification import (
    Arm,
    balanced_class_weights,
    classification_arms,
    predict_logits,
    train_and_evaluate,
    train_classifier,
)
from medgan_nb.evaluation.scores import classification_metrics
from medgan_nb.evaluation.training import TrainConfig, build_seeded, iterate_batches
from medgan_nb.evaluation.variance import minimal_detectable_effect
from medgan_nb.models.classifiers import SmallCNN
from medgan_nb.studies.common.comparison import compare_direction
from medgan_nb.studies.common.results import Result, estimate_fields

CLASSES = ("NORMAL", "PNEUMONIA")
NAMES = ["A", "A_weights", "A_oversample", "A_classic", "A_noise", "A_steps", "B", "B_steps"]


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def squares(n_normal: int, n_pneumonia: int, seed: int, name: str) -> ImageSet:
    "Noise images; a pneumonia has a bright square in the middle."
    rng = np.random.default_rng(seed)
    labels = np.repeat([0, 1], (n_normal, n_pneumonia))
    pixels = rng.integers(0, 120, (len(labels), 1, 32, 32))
    pixels[labels == 1, :, 10:22, 10:22] += 100
    ids = [f"{name}-{k}" for k in range(len(labels))]
    return ImageSet(torch.from_numpy(pixels.astype(np.uint8)), labels, CLASSES, ids, ids, name=name)


TRAIN = squares(30, 70, 0, "train")
TEST = squares(20, 30, 1, "test")
SYNTHETIC = squares(45, 0, 2, "synthetic")


def small_cnn(seed: int = 0) -> SmallCNN:
    return build_seeded(lambda: SmallCNN(32), seed)


def trained(config: TrainConfig, seed: int = 0, images: ImageSet = TRAIN):
    network = small_cnn(seed)
    return network, train_classifier(network, images, config, seed)


def weights_of(network) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in network.parameters()])


@pytest.fixture
def optimizer_steps(monkeypatch):
    "Counts the steps Adam really takes."
    count, step = [0], torch.optim.Adam.step

    def counted(self, *args, **options):
        count[0] += 1
        return step(self, *args, **options)

    monkeypatch.setattr(torch.optim.Adam, "step", counted)
    return count


# --- training --------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_same_seed_same_bits(precision):
    config = TrainConfig(epochs=2, precision=precision)
    (network, log), (again, log_again) = trained(config), trained(config)
    assert log == log_again and torch.equal(weights_of(network), weights_of(again))
    assert not torch.equal(weights_of(network), weights_of(trained(config, seed=1)[0]))


def test_training_does_not_depend_on_what_was_drawn_before():
    torch.randn(1000)
    np.random.rand(7)
    first = trained(TrainConfig(epochs=1))[0]
    torch.manual_seed(99)
    assert torch.equal(weights_of(first), weights_of(trained(TrainConfig(epochs=1))[0]))


def test_it_learns():
    arm = Arm("A", "", TRAIN, TrainConfig(epochs=10, lr=3e-3))
    outcome = train_and_evaluate(small_cnn(), arm, TEST, 0)
    assert outcome.metrics["accuracy"] > 0.9
    assert outcome.metrics["correct"] == outcome.correct.sum()
    assert np.array_equal(predict_logits(outcome.network, TEST), outcome.logits)


def test_networks_with_the_same_seed_start_alike():
    torch.randn(5)
    assert torch.equal(weights_of(small_cnn(0)), weights_of(small_cnn(0)))
    assert not torch.equal(weights_of(small_cnn(0)), weights_of(small_cnn(1)))


def test_steps_are_matched_exactly(optimizer_steps):
    taken = {}
    for arm in classification_arms(TRAIN, SYNTHETIC, TrainConfig(epochs=2), seed=0):
        optimizer_steps[0] = 0
        assert train_and_evaluate(small_cnn(), arm, TEST, 0).steps == optimizer_steps[0]
        taken[arm.name] = optimizer_steps[0]
    real, both = 2 * math.ceil(100 / 32), 2 * math.ceil(145 / 32)
    assert taken == dict(zip(NAMES, [real, real, both, both, both, both, both, real]))


def empty_images(counts, prefix: str) -> ImageSet:
    "Images of one pixel with these class counts."
    labels = np.repeat([0, 1], counts)
    ids = [f"{prefix}{k}" for k in range(len(labels))]
    pixels = torch.zeros(len(labels), 1, 1, 1, dtype=torch.uint8)
    return ImageSet(pixels, labels, CLASSES, ids, ids)


def test_steps_of_the_study():
    train, synthetic = empty_images((1341, 3875), "t"), empty_images((2000, 0), "s")
    arms = {a.name: a for a in classification_arms(train, synthetic, TrainConfig(), seed=0)}
    steps = {name: arm.config.total_steps(len(arm.images)) for name, arm in arms.items()}
    assert (steps["A"], steps["B"], steps["A_steps"], steps["B_steps"]) == (815, 1130, 1130, 815)
    assert arms["B"].images.counts() == {"NORMAL": 3341, "PNEUMONIA": 3875}


@given(n=st.integers(1, 90), batch_size=st.integers(1, 40), steps=st.integers(1, 30))
@settings(max_examples=60, deadline=None)
def test_batches_cover_every_epoch_once(n, batch_size, steps):
    batches = list(iterate_batches(n, batch_size, steps, seed=0))
    assert len(batches) == steps
    drawn = torch.cat(batches)
    for epoch in drawn[: len(drawn) // n * n].view(-1, n):
        assert sorted(epoch.tolist()) == list(range(n))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_before_the_weights(bad, optimizer_steps):
    class Breaks(SmallCNN):
        calls = 0

        def forward(self, x):
            self.calls += 1
            return super().forward(x) + (bad if self.calls == 3 else 0)

    images = squares(40, 60, 0, "train")
    network = build_seeded(lambda: Breaks(32), 0)
    with pytest.raises(TrainingError, match="at step 3 of 20; the weights are those of step 2"):
        train_classifier(network, images, TrainConfig(), 0)
    assert optimizer_steps[0] == 2
    two_steps = trained(TrainConfig(steps=2), images=images)[0]
    assert torch.equal(weights_of(network), weights_of(two_steps))


@pytest.mark.parametrize(
    "wrong",
    [
        {"epochs": 0},
        {"epochs": 2.5},
        {"batch_size": -1},
        {"steps": 0},
        {"lr": 0.0},
        {"lr": math.nan},
        {"class_weight": "auto"},
        {"precision": "fp16"},
    ],
)
def test_impossible_configurations_are_refused(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        TrainConfig(**wrong)


# --- arms ------------------------------------------------------------------------------------


def test_arms_hold_what_they_say():
    arms = classification_arms(TRAIN, SYNTHETIC, TrainConfig(), seed=0)
    assert [arm.name for arm in arms] == NAMES
    augmented = {"NORMAL": 75, "PNEUMONIA": 70}
    for arm in arms:
        real = arm.name in ("A", "A_weights", "A_steps")
        assert arm.images.counts() == (TRAIN.counts() if real else augmented)
        assert arm.images.select(np.arange(100)).fingerprint == TRAIN.fingerprint
        assert arm.config.class_weight == ("balanced" if arm.name == "A_weights" else None)
    added = {arm.name: pixel_keys(arm.images)[100:] for arm in arms}
    normals = set(pixel_keys(TRAIN.of_class("NORMAL")))
    assert set(added["A_oversample"]) <= normals
    assert list(added["B"]) == list(pixel_keys(SYNTHETIC))
    for name in ("A_classic", "A_noise"):
        assert len(set(added[name])) == 45 and not set(added[name]) & normals


def test_copies_stay_in_their_patient():
    for arm in classification_arms(TRAIN, SYNTHETIC, TrainConfig(), seed=0)[2:5]:
        assert set(arm.images.groups) == set(TRAIN.groups)


def test_no_test_image_in_any_arm():
    for arm in classification_arms(TRAIN, SYNTHETIC, TrainConfig(), seed=0):
        assert not set(pixel_keys(TEST)) & set(pixel_keys(arm.images))
        assert not set(TEST.ids) & set(arm.images.ids)
        assert not set(TEST.groups) & set(arm.images.groups)


def test_a_test_image_in_an_arm_is_refused_unless_the_images_were_split_by_image():
    stolen = replace(TEST.of_class("NORMAL"), ids=[f"copy-{k}" for k in range(20)], name="stolen")
    arm = classification_arms(TRAIN, stolen, TrainConfig(steps=1), seed=0)[6]
    message = "20 test images are among its training images, for example test-0"
    with pytest.raises(DataError, match=message):
        train_and_evaluate(small_cnn(), arm, TEST, 0)
    train_and_evaluate(small_cnn(), arm, replace(TEST, notes=(IMAGE_SPLIT,)), 0)


# --- classifiers -----------------------------------------------------------------------------


def test_class_weights_move_predictions_towards_the_rare_class():
    normals = TRAIN.of_class("NORMAL").select(np.arange(8))
    few = concat([normals, TRAIN.of_class("PNEUMONIA")], "few normals")
    weights = balanced_class_weights(few.labels, 2).tolist()
    assert weights == pytest.approx([78 / 16, 78 / 140])
    assert balanced_class_weights(np.array([0, 0, 2]), 3).tolist() == [0.75, 1.0, 1.5]

    def mean_logit(class_weight):
        config = TrainConfig(epochs=2, class_weight=class_weight)
        return predict_logits(trained(config, images=few)[0], TEST).mean()

    assert mean_logit("balanced") < mean_logit(None)


def test_more_classes():
    labels, classes = np.arange(100) % 3, ("a", "b", "c")
    three = ImageSet(TRAIN.pixels, labels, classes, TRAIN.groups, TRAIN.ids)
    network = SmallCNN(32, n_logits=3)
    train_classifier(network, three, TrainConfig(steps=2, class_weight="balanced"), 0)
    logits = predict_logits(network, three, batch_size=7)
    assert logits.shape == (100, 3)
    np.testing.assert_allclose(logits, predict_logits(network, three), atol=1e-5)
    with pytest.raises(DataError, match=r"expected \(N, 3\)"):
        train_classifier(small_cnn(), three, TrainConfig(steps=1), 0)


def test_predict_logits_keeps_order_and_mode():
    network = small_cnn().train()
    logits = predict_logits(network, TEST)
    assert network.training and logits.shape == (50,)
    backwards = predict_logits(network, TEST.select(np.arange(50)[::-1]))
    np.testing.assert_allclose(backwards, logits[::-1], atol=1e-6)


def test_one_class_cannot_be_learned():
    with pytest.raises(DataError, match="two classes or more"):
        train_classifier(small_cnn(), TRAIN.of_class("NORMAL"), TrainConfig(), 0)


@pytest.mark.skipif(
    "MEDGAN_DATA" not in os.environ, reason="MEDGAN_DATA names no folder of real data"
)
def test_one_epoch_on_real_radiographs():
    from medgan_nb.datasets import chest_xray

    images = chest_xray.load(os.environ["MEDGAN_DATA"], 32)
    arm = Arm("A", "", images.of_split("train"), TrainConfig(epochs=1))
    outcome = train_and_evaluate(small_cnn(), arm, images.of_split("test"), 0)
    assert outcome.steps == 163 and outcome.metrics["auc"] > 0.8


# --- metrics and statistics ------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(-3, 3)), min_size=1, max_size=40))
@settings(max_examples=100, deadline=None)
def test_metrics_are_consistent(rows):
    labels, logits = (np.array(column) for column in zip(*rows))
    metrics = classification_metrics(labels, logits.astype(float), CLASSES)
    assert sum(map(sum, metrics["confusion"])) == len(rows) == metrics["n"]
    assert 0 <= metrics["brier"] <= 1 and 0 <= metrics["accuracy"] <= 1
    assert (metrics["auc"] is None) == (len(set(labels)) == 1)
    if metrics["auc"] is not None:
        assert metrics["auc"] == pytest.approx(1 - statistics.roc_auc(labels, -logits))


def simulated_arms(rng, n_seeds, n_patients=60, n_images=3):
    "Two equal arms: values (seeds, images) that share seeds and patients, and the patients."
    groups = np.repeat(np.arange(n_patients), n_images)
    shared = rng.normal(0, 0.5, n_patients)[groups] + rng.normal(0, 0.1, (n_seeds, 1))
    arms = [
        shared
        + rng.normal(0, 0.1, (n_seeds, 1))
        + rng.normal(0, 0.2, n_patients)[groups]
        + rng.normal(0, 0.4, (n_seeds, len(groups)))
        for _ in range(2)
    ]
    return *arms, groups


@pytest.mark.parametrize("n_seeds", [3, 10])
def test_intervals_cover_what_they_promise(n_seeds):
    "Sixty patients of three images, mean 0: the 95 % interval holds 0 in 92 to 98 % of studies."
    rng, covered = np.random.default_rng(0), np.zeros(2)
    for _ in range(600):
        a, b, groups = simulated_arms(rng, n_seeds)
        _, low, high = statistics.cluster_interval(a, groups)
        difference = statistics.paired_difference(a, b, groups)
        covered += low <= 0 <= high, difference.ci_low <= 0 <= difference.ci_high
    assert ((0.92 <= covered / 600) & (covered / 600 <= 0.98)).all()


def test_two_equal_gans_of_three_seeds_are_inconclusive():
    "In 95 % of studies, give or take 3; the rest splits about evenly."
    rng, verdicts = np.random.default_rng(0), []
    for _ in range(600):
        a, b, groups = simulated_arms(rng, 3)
        fields = estimate_fields(statistics.paired_difference(a, b, groups))
        result = Result(table="differences", metric="points", n_runs=3, **fields)
        verdicts.append(compare_direction(result, 1).verdict)
    counts = Counter(verdicts)
    assert 0.92 <= counts["inconclusive"] / 600 <= 0.98, counts
    assert min(counts["supported"], counts["contradicted"]) >= 3, counts


def test_an_effect_of_the_minimal_detectable_size_is_found_in_four_of_five_studies():
    rng, found = np.random.default_rng(0), 0
    true_error = np.sqrt(2 * (0.1**2 / 5 + 0.2**2 / 60 + 0.4**2 / (5 * 180)))
    effect = minimal_detectable_effect(true_error, 8)
    for _ in range(400):
        a, b, groups = simulated_arms(rng, 5)
        found += statistics.paired_difference(a, b + effect, groups).p_value < 0.05
    assert 0.70 <= found / 400 <= 0.90


def test_a_shift_is_found_in_the_direction_of_its_sign():
    a, b, groups = simulated_arms(np.random.default_rng(0), 5)
    up, down = (statistics.paired_difference(a, b + shift, groups) for shift in (1.0, -1.0))
    assert up.ci_low > 0 > down.ci_high and max(up.p_value, down.p_value) < 0.01


def test_statistics_keep_their_values():
    "Recorded with our own code, before the libraries replaced it."
    close = pytest.approx
    wilson = statistics.wilson_interval
    assert wilson(445, 624) == close((0.6764339342074421, 0.7472399029737486), abs=1e-12)
    assert wilson(0, 10) == close((0.0, 0.27753279986288926), abs=1e-12)
    assert wilson(10, 10) == close((0.7224672001371109, 1.0), abs=1e-12)
    assert wilson(3, 7, 0.9) == close((0.18644319036395607, 0.7105229089864071), abs=1e-12)
    z_test = statistics.two_proportion_z_test
    assert z_test(445, 624, 466, 624) == close((1.3389132780184805, 0.18059890652982225), abs=1e-12)
    assert z_test(3, 10, 9, 11) == close((2.3964936507701875, 0.016552780261048457), abs=1e-12)
    rng = np.random.default_rng(0)
    a, b = rng.random((2, 300)) < [[0.7], [0.75]]
    assert statistics.mcnemar_test(a, b) == close((41, 83, 0.000203788740361683), abs=1e-12)
    assert statistics.mcnemar_test(a[:20], b[:20]) == close((3, 5, 0.7265625), abs=1e-12)
    p = [0.0, 0.375, 0.31, 0.283, 0.325, 0.202, 0.002, 0.3, 0.0, 0.006, 0.075, 0.054]
    adjusted = [0.0, 1, 1, 1, 1, 1, 0.02, 1, 0.0, 0.054, 0.525, 0.432]
    assert statistics.holm(p).tolist() == close(adjusted, abs=1e-12)


def test_metrics_keep_their_values():
    "Recorded with our own code; the fixed scores hold ties, and probabilities that round to 1."
    labels = np.array([0, 1, 1, 0, 1, 1, 0, 1])
    logits = np.array([40.0, 50.0, 60.0, -40.0, -50.0, 3.0, 0.0, 0.0])
    metrics = classification_metrics(labels, logits, CLASSES)
    expected = {
        "accuracy": 0.625,
        "balanced_accuracy": 0.6333333333333333,
        "f1": 0.6666666666666666,
        "macro_f1": 0.6190476190476191,
        "auc": 0.6166666666666667,
        "brier": 0.31278115168083187,
    }
    assert {name: metrics[name] for name in expected} == pytest.approx(expected, abs=1e-12)
    assert metrics["confusion"] == [[2, 1], [2, 3]]
    assert metrics["precision"] == {"NORMAL": 0.5, "PNEUMONIA": 0.75}
    one_class = classification_metrics([1, 1, 1], [-1.0, -2.0, 0.5], CLASSES)
    assert one_class["brier"] == pytest.approx(0.4842623648531499, abs=1e-12)
    assert one_class["macro_f1"] == 0.25 and one_class["auc"] is None
    assert one_class["class_f1"] == {"NORMAL": 0.0, "PNEUMONIA": 0.5}


# --- denoising -------------------------------------------------------------------------------


def disc_in_air() -> tuple[np.ndarray, np.ndarray]:
    "A noisy disc (1, 1, 64, 64), sigma 0.1, in black air; and where it is."
    y, x = np.mgrid[-1:1:64j, -1:1:64j]
    disc = np.hypot(x, y) < 0.8
    noisy = 0.3 * np.sin(4 * x) + np.random.default_rng(0).normal(0, 0.1, (64, 64))
    return np.where(disc, noisy, -1)[None, None], disc[None, None]


def test_denoising_keeps_its_values():
    "Recorded with our own wavelet transform, whose filter had eight digits."
    image, disc = disc_in_air()
    assert denoising.noise_sigma(image, disc)[0] == pytest.approx(0.10465901093451635, rel=1e-7)
    expected = {
        "non-local means": (0.042289797, 0.27531525, 0.21583314),
        "wavelet (BayesShrink)": (0.013165609, 0.35152608, 0.22181554),
    }
    for method, values in expected.items():
        denoised = denoising.denoise(image, method)
        found = denoised[0, 0, 32, 32], denoised[0, 0, 20, 40], denoised[disc].std()
        assert found == pytest.approx(values, abs=2e-7)


def test_noise_sigma_is_that_of_scikit_image_where_there_is_no_mask():
    flat = 0.5 + np.random.default_rng(0).normal(0, 0.05, (256, 256))
    sigma = denoising.noise_sigma(2 * flat[None, None] - 1)[0] / 2
    assert sigma == pytest.approx(estimate_sigma(flat), rel=0.05)
