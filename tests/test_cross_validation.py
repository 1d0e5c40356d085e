"Folds and their arms: who is in which fold, what each arm holds; the classifiers of torchvision."

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medgan_nb.core.errors import ConfigError, WeightsError
from medgan_nb.data.dataset import ImageSet
from medgan_nb.evaluation.classification import train_and_evaluate
from medgan_nb.evaluation.cross_validation import (
    ARM_SPECS,
    PAPER_CONFIG,
    assign_folds,
    build_arm,
    fold_arm,
    fold_seed,
)
from medgan_nb.evaluation.training import build_seeded
from medgan_nb.models import classifiers
from medgan_nb.models.classifiers import SmallCNN, build_classifier, efficientnet_b2, resnet18

CLASSES = ("benign", "malignant", "normal")


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def squares(counts, seed: int, name: str, images_per_group: int = 1) -> ImageSet:
    "Noise with a square whose place tells the class."
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(3), counts)
    pixels = rng.integers(0, 90, (len(labels), 1, 32, 32))
    for image, label in zip(pixels, labels):
        image[0, 4 + 8 * label : 12 + 8 * label, 6:16] += 120
    ids = [f"{name} {i}" for i in range(len(labels))]
    groups = [f"{name} g{i // images_per_group}" for i in range(len(labels))]
    return ImageSet(
        torch.from_numpy(pixels.astype(np.uint8)), labels, CLASSES, groups, ids, name=name
    )


TRAIN = squares((28, 14, 8), 0, "train", images_per_group=2)
TEST = squares((12, 8, 6), 1, "test")
POOL = squares((60, 60, 60), 2, "pool")
FOLDS = assign_folds(TRAIN, 4)


def train_fold(name, fold, config):
    "The outcome of an arm without this fold."
    network = build_seeded(lambda: SmallCNN(32, 3), fold_seed(0, fold))
    arm = fold_arm(TRAIN, FOLDS, fold, name, config, 0, POOL)
    return train_and_evaluate(network, arm, TEST, fold_seed(0, fold))


@given(
    sizes=st.lists(st.integers(1, 4), min_size=6, max_size=40),
    n_folds=st.integers(2, 5),
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_folds_keep_groups_whole_and_classes_even(sizes, n_folds, seed):
    group = np.repeat(np.arange(len(sizes)), sizes)
    labels, ids = group % 2, np.arange(len(group))
    pixels = torch.zeros(len(group), 1, 1, 1, dtype=torch.uint8)
    images = ImageSet(pixels, labels, ("a", "b"), group, ids)
    if min(len(set(group[labels == c])) for c in (0, 1)) < n_folds:
        with pytest.raises(ConfigError, match="one for each fold"):
            assign_folds(images, n_folds, seed)
        return
    fold = assign_folds(images, n_folds, seed)
    assert all(len(set(fold[group == g])) == 1 for g in set(group))
    assert set(fold) == set(range(n_folds))
    for c in (0, 1):
        counts = np.bincount(fold[labels == c], minlength=n_folds)
        assert counts.min() > 0 and np.ptp(counts) <= max(sizes[c::2])
    assert (assign_folds(images, n_folds, seed) == fold).all()


def test_folds_are_those_of_the_published_numbers():
    "Recorded; the folds decide which network sees which images."
    expected = "11003311332200110022222233003322113300110022003311"
    assert "".join(map(str, FOLDS)) == expected


@pytest.mark.parametrize("name", list(ARM_SPECS))
def test_no_arm_holds_the_fold_left_out(name):
    for f in range(4):
        arm = fold_arm(TRAIN, FOLDS, f, name, PAPER_CONFIG, 0, POOL)
        left_out = TRAIN.select(FOLDS == f)
        assert not set(arm.images.ids) & set(left_out.ids)
        assert not set(arm.images.groups) & (set(left_out.groups) | set(TEST.groups))


def test_the_controls_take_the_same_steps():
    config = replace(PAPER_CONFIG, epochs=2, batch_size=8, lr=1e-3)
    controls = ("copies100", "synthetic100", "classic100", "flipped100")
    steps = {train_fold(name, 0, config).steps for name in controls}
    assert len(steps) == 1 and train_fold("real", 0, config).steps < steps.pop()
    in_steps = replace(config, steps=9)
    assert {
        train_fold(name, 0, in_steps).steps for name in ("real", "class_weights", "synthetic100")
    } == {9}


def test_folds_learn_and_repeat_themselves():
    config = replace(PAPER_CONFIG, steps=60, batch_size=8, lr=2e-3, augment=None)
    first, second = (train_fold("real", f, config) for f in (0, 1))
    assert (train_fold("real", 1, config).logits == second.logits).all()
    assert (first.logits != second.logits).any()
    assert (first.metrics["accuracy"] + second.metrics["accuracy"]) / 2 > 0.8


@pytest.mark.parametrize("name", ["resnet18", "efficientnet_b2"])
def test_networks_with_batch_normalisation_survive_a_last_image(name):
    nine = squares((3, 3, 3), 0, "nine")
    arm = build_arm(nine, "real", replace(PAPER_CONFIG, epochs=1, batch_size=8), 0)
    network, *_ = build_seeded(lambda: build_classifier(name, 3, 32, "random"), 0)
    outcome = train_and_evaluate(network, arm, TEST.select(np.arange(3)), 0)
    assert outcome.steps == 1 and outcome.logits.shape == (3, 3)


@pytest.mark.parametrize("build", [resnet18, efficientnet_b2])
def test_random_weights_depend_on_the_seed_alone(build):
    x = torch.randn(2, 1, 40, 33).clamp(-1, 1)
    logits = [build_seeded(lambda: build(3, "random"), seed).eval()(x) for seed in (0, 0, 1)]
    assert torch.equal(logits[0], logits[1]) and not torch.equal(logits[0], logits[2])


def test_absent_weights_are_replaced_and_that_is_said(monkeypatch):
    def absent(*args, **options):
        raise WeightsError("weights.pth: not there")

    monkeypatch.setattr(classifiers, "load_published_weights", absent)
    network, init, note = build_classifier("efficientnet_b2", 3, 64)
    assert (init, network.dim) == ("imagenet", 1280) and "\n" not in note
    assert note == "efficientnet_lite2 in place of efficientnet_b2: weights.pth: not there"
    monkeypatch.setattr(classifiers, "efficientnet_lite", absent)
    network, init, note = build_classifier("efficientnet_b2", 3, 64)
    assert (init, network.dim) == ("random", 1408) and "weights.pth: not there" in note
