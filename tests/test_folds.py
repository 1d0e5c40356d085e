"Trials over folds and of segmentation: who is in which fold, what each arm holds, readers of torchvision, masks that travel."

import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medgan_nb.core.errors import ConfigError, DataError, TrainingError, WeightsError
from medgan_nb.core.random import seed_all
from medgan_nb.data.dataset import ImageSet
from medgan_nb.data.splits import IMAGE_SPLIT
from medgan_nb.evaluation.classification import Arm, trial
from medgan_nb.evaluation.cross_validation import (
    MIXES,
    PAPER_PLAN,
    assign_folds,
    fold_arm,
    fold_scores,
    fold_seed,
    mixed,
)
from medgan_nb.evaluation.segmentation import (
    find_masks,
    fit_masks,
    mask_arms,
    mask_scores,
    mask_trial,
    pseudo_masks,
)
from medgan_nb.evaluation.training import Plan
from medgan_nb.models import classifiers as readers
from medgan_nb.models.classifiers import SmallCNN, build_classifier, efficientnet_b2, resnet18
from medgan_nb.models.unet import UNet

CLASSES = ("benign", "malignant", "normal")


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def squares(counts, seed: int, name: str, group_of=lambda i: i, size: int = 32) -> ImageSet:
    "Noise with a square whose place tells the class; the square is the mask."
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(3), counts)
    masks = np.zeros((len(labels), 1, size, size), bool)
    for mask, label in zip(masks, labels):
        mask[0, 4 + 8 * label : 12 + 8 * label, 6:16] = True
    pixels = (rng.integers(0, 90, masks.shape) + 120 * masks).astype(np.uint8)
    groups = [f"{name} g{group_of(i)}" for i in range(len(labels))]
    return ImageSet(
        torch.from_numpy(pixels),
        labels,
        CLASSES,
        groups,
        [f"{name} {i}" for i in range(len(labels))],
        masks=torch.from_numpy(masks),
        name=name,
    )


TRAIN, TEST, POOL = (
    squares((28, 14, 8), 0, "train", lambda i: i // 2),
    squares((12, 8, 6), 1, "test"),
    squares((60, 60, 60), 2, "pool"),
)
FOLDS = assign_folds(TRAIN, 4)


@given(
    sizes=st.lists(st.integers(1, 4), min_size=6, max_size=40),
    k=st.integers(2, 5),
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_folds_keep_groups_whole_and_classes_even(sizes, k, seed):
    group = np.repeat(np.arange(len(sizes)), sizes)
    labels = group % 2
    images = ImageSet(
        torch.zeros(len(group), 1, 1, 1, dtype=torch.uint8),
        labels,
        ("a", "b"),
        group,
        np.arange(len(group)),
    )
    if min(len(set(group[labels == c])) for c in (0, 1)) < k:
        with pytest.raises(ConfigError, match="one a fold"):
            assign_folds(images, k, seed)
        return
    fold = assign_folds(images, k, seed)
    assert all(len(set(fold[group == g])) == 1 for g in set(group)) and set(fold) == set(range(k))
    for c in (0, 1):
        counts = np.bincount(fold[labels == c], minlength=k)
        assert counts.min() > 0 and np.ptp(counts) <= max(sizes[c::2])
    assert (assign_folds(images, k, seed) == fold).all()


@pytest.mark.parametrize("name", list(MIXES))
def test_no_arm_holds_the_fold_left_out(name):
    for f in range(4):
        arm = fold_arm(TRAIN, FOLDS, f, name, PAPER_PLAN, 0, POOL)
        left_out = TRAIN.select(FOLDS == f)
        assert not set(arm.images.ids) & set(left_out.ids) and not set(arm.images.groups) & set(
            left_out.groups
        )
        assert not set(arm.images.groups) & set(TEST.groups)


def test_the_rivals_take_the_same_steps():
    plan = replace(PAPER_PLAN, epochs=2, batch=8, lr=1e-3)

    def build():
        return SmallCNN(32, 3)

    taken = {
        name: trial(
            fold_arm(TRAIN, FOLDS, 0, name, plan, 0, POOL), TEST, fold_seed(0, 0), build
        ).steps
        for name in ("real", "real_steps", "copies100", "synthetic100", "classic100")
    }
    assert (
        len({taken[name] for name in taken if name != "real"}) == 1
        and taken["real"] < taken["copies100"]
    )


def test_a_trial_over_folds_learns_and_repeats_itself():
    plan = replace(PAPER_PLAN, steps=60, batch=8, lr=2e-3, augment=None)
    once = [
        trial(
            fold_arm(TRAIN, FOLDS, f, "real", plan, 0),
            TEST,
            fold_seed(0, f),
            lambda: SmallCNN(32, 3),
        )
        for f in (0, 1)
    ]
    again = trial(
        fold_arm(TRAIN, FOLDS, 1, "real", plan, 0), TEST, fold_seed(0, 1), lambda: SmallCNN(32, 3)
    )
    assert (again.logits == once[1].logits).all() and (once[0].logits != once[1].logits).any()
    found = fold_scores(TEST.labels, np.stack([o.logits for o in once]), CLASSES)
    assert found["micro_f1"]["mean"] > 0.8 and found["micro_f1"]["values"] == [
        o.scores["accuracy"] for o in once
    ]


@pytest.mark.parametrize("kind", ["resnet18", "efficientnet_b2"])
def test_networks_with_batch_normalisation_survive_a_last_image(kind):
    three = squares((3, 3, 3), 0, "nine")
    plan = replace(PAPER_PLAN, epochs=1, batch=8)
    outcome = trial(
        mixed(three, "real", plan, 0),
        TEST.select(np.arange(3)),
        0,
        lambda: build_classifier(kind, 3, 32, "random")[0],
    )
    assert outcome.steps == 1 and outcome.logits.shape == (3, 3)


@pytest.mark.parametrize("build", [resnet18, efficientnet_b2])
def test_readers_depend_on_the_seed_alone(build):
    x = torch.randn(2, 1, 40, 33).clamp(-1, 1)
    outs = []
    for seed in (0, 0, 1):
        seed_all(seed, "weights")
        outs.append(build(3, "random").eval()(x))
    assert torch.equal(outs[0], outs[1]) and not torch.equal(outs[0], outs[2])


def test_absent_weights_are_said_once_and_in_one_line(monkeypatch):
    def absent(*args, **options):
        raise WeightsError("weights.pth: not there")

    monkeypatch.setattr(readers, "load_published_weights", absent)
    net, init, note = build_classifier("efficientnet_b2", 3, 64)
    assert (
        init == "random"
        and "weights.pth: not there" in note
        and "\n" not in note
        and net.last.out_features == 3
    )
    with pytest.raises(WeightsError):
        efficientnet_b2(3, "imagenet")


def test_segmentation_learns_and_pseudo_masks_carry_it_on():
    build, plan = (
        lambda: UNet(width=4, levels=2),
        Plan(epochs=25, batch=8, lr=1e-2, schedule="cosine", least=2),
    )
    a = mask_trial(mask_arms(TRAIN, POOL, plan, 0)[0], TEST, 0, build)
    assert (
        a.scores["lesion"]["dice"] > 0.8 and a.scores["accuracy"] > a.scores["background_accuracy"]
    )
    marked = pseudo_masks(a.net, replace(POOL, masks=None).select(np.arange(40)))
    assert marked.masks.shape == marked.pixels.shape and torch.equal(
        marked.pixels, POOL.pixels[:40]
    )
    b = mask_trial(mask_arms(TRAIN, marked, replace(plan, epochs=10), 0)[1], TEST, 0, build)
    assert b.scores["lesion"]["dice"] > 0.7
    assert torch.equal(find_masks(b.net, TEST, batch=7), torch.from_numpy(b.found))


def test_masks_move_with_their_images():
    plan = Plan(epochs=1, batch=4, augment="flip_rotate")
    seen = []

    def loss(logits, masks):
        seen.append(masks)
        return logits.square().mean()

    fit_masks(UNet(2, 1), TRAIN, plan, 0, loss=loss)
    total = torch.cat(seen)
    assert total.shape == (50, 1, 32, 32) and set(total.unique().tolist()) == {0.0, 1.0}
    assert (total.sum((1, 2, 3)) - 80).abs().max() < 12 and not torch.equal(total[0], total[1])


def test_lesions_on_both_sides_are_refused_unless_split_by_image():
    arm = mask_arms(TRAIN, POOL, Plan(steps=1), 0)[0]
    shared = replace(TEST, groups=["train g0"] * len(TEST))
    with pytest.raises(DataError, match="train g0 is in training and test"):
        mask_trial(arm, shared, 0, lambda: UNet(2, 1))
    mask_trial(arm, replace(shared, notes=(IMAGE_SPLIT,)), 0, lambda: UNet(2, 1))


def test_a_segmenter_that_diverges_is_stopped():
    net = UNet(2, 1)
    net.last.bias.data.fill_(float("nan"))
    with pytest.raises(TrainingError, match="the loss is nan at step 1"):
        fit_masks(net, TRAIN, Plan(), 0)
    with pytest.raises(TrainingError, match="logits are not finite"):
        find_masks(net, TRAIN)


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=30, deadline=None)
def test_mask_scores_agree_with_their_definitions(seed):
    rng = np.random.default_rng(seed)
    masks, found = rng.random((2, 3, 1, 6, 5)) < rng.random((2, 1, 1, 1, 1))
    s = mask_scores(masks, found)

    def dice(a, b):
        return 2 * (a & b).sum() / (a.sum() + b.sum()) if (a | b).any() else None

    assert s["lesion"]["dice"] == pytest.approx(dice(masks, found)) and s[
        "accuracy"
    ] == pytest.approx((masks == found).mean())
    if s["two_class"]["recall"] is not None:
        specificity = (~masks & ~found).sum() / (~masks).sum()
        assert s["two_class"]["recall"] == pytest.approx((s["lesion"]["recall"] + specificity) / 2)


@pytest.mark.skipif(
    "MEDGAN_DATA" not in os.environ, reason="MEDGAN_DATA names no folder of real data"
)
def test_lesions_of_real_images_are_found():
    from medgan_nb.data.splits import fixed_test_split
    from medgan_nb.datasets import busi

    images = busi.load(os.environ["MEDGAN_DATA"], 32, fit="stretch")
    parts = train_test(images.select(images.labels < 2), 0.3, 150, 0)
    arm = Arm(
        "real",
        "",
        parts["train"],
        Plan(epochs=12, batch=16, lr=5e-3, schedule="cosine", augment="flip_rotate", least=2),
    )
    assert mask_trial(arm, parts["test"], 0, lambda: UNet(8, 3)).scores["lesion"]["dice"] > 0.4
