"Segmentation: networks learn, so do those on pseudo-masks, masks move with images, no leaks."

import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medgan_nb.core.errors import DataError, TrainingError
from medgan_nb.data.dataset import ImageSet
from medgan_nb.data.leakage import IMAGE_SPLIT
from medgan_nb.evaluation.classification import Arm
from medgan_nb.evaluation.segmentation import (
    predict_masks,
    segmentation_arms,
    segmentation_metrics,
    train_and_evaluate_segmenter,
    train_segmenter,
    with_pseudo_masks,
)
from medgan_nb.evaluation.training import TrainConfig, build_seeded
from medgan_nb.models.unet import UNet


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def squares(n: int, seed: int, name: str) -> ImageSet:
    "Noise with a square; the square is the mask."
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 3
    masks = np.zeros((n, 1, 32, 32), bool)
    for mask, label in zip(masks, labels):
        mask[0, 4 + 8 * label : 12 + 8 * label, 6:16] = True
    pixels = torch.from_numpy((rng.integers(0, 90, masks.shape) + 120 * masks).astype(np.uint8))
    ids = [f"{name} {i}" for i in range(n)]
    classes = ("benign", "malignant", "normal")
    return ImageSet(pixels, labels, classes, ids, ids, masks=torch.from_numpy(masks), name=name)


TRAIN, TEST, POOL = squares(50, 0, "train"), squares(26, 1, "test"), squares(180, 2, "pool")


def small_unet() -> UNet:
    return build_seeded(lambda: UNet(width=4, levels=2), 0)


def test_segmentation_learns_and_pseudo_masks_carry_it_on():
    config = TrainConfig(epochs=25, batch_size=8, lr=1e-2, lr_schedule="cosine", min_last_batch=2)
    real = segmentation_arms(TRAIN, POOL, config, 0)[0]
    a = train_and_evaluate_segmenter(small_unet(), real, TEST, 0)
    assert a.metrics["lesion"]["dice"] > 0.8
    assert a.metrics["accuracy"] > a.metrics["background_accuracy"]
    synthetic = with_pseudo_masks(a.network, replace(POOL, masks=None).select(np.arange(40)))
    assert synthetic.masks.shape == synthetic.pixels.shape
    assert torch.equal(synthetic.pixels, POOL.pixels[:40])
    arm = segmentation_arms(TRAIN, synthetic, replace(config, epochs=10), 0)[1]
    b = train_and_evaluate_segmenter(small_unet(), arm, TEST, 0)
    assert b.metrics["lesion"]["dice"] > 0.7
    masks = predict_masks(b.network, TEST, batch_size=7)
    assert torch.equal(masks, torch.from_numpy(b.predicted_masks))


def test_masks_move_with_their_images():
    seen = []

    def loss(logits, masks):
        seen.append(masks)
        return logits.square().mean()

    config = TrainConfig(epochs=1, batch_size=4, augment="flip_rotate")
    train_segmenter(UNet(2, 1), TRAIN, config, 0, loss=loss)
    masks = torch.cat(seen)
    assert masks.shape == (50, 1, 32, 32) and set(masks.unique().tolist()) == {0.0, 1.0}
    assert (masks.sum((1, 2, 3)) - 80).abs().max() < 12
    assert not torch.equal(masks[0], masks[1])


def test_lesions_on_both_sides_are_refused_unless_split_by_image():
    arm = segmentation_arms(TRAIN, POOL, TrainConfig(steps=1), 0)[0]
    shared = replace(TEST, groups=["train 0"] * len(TEST))
    with pytest.raises(DataError, match="train 0 is in training and test"):
        train_and_evaluate_segmenter(UNet(2, 1), arm, shared, 0)
    train_and_evaluate_segmenter(UNet(2, 1), arm, replace(shared, notes=(IMAGE_SPLIT,)), 0)


def test_a_segmenter_that_diverges_is_stopped():
    network = UNet(2, 1)
    network.last.bias.data.fill_(float("nan"))
    with pytest.raises(TrainingError, match="the loss is nan at step 1"):
        train_segmenter(network, TRAIN, TrainConfig(), 0)
    with pytest.raises(TrainingError, match="logits are not finite"):
        predict_masks(network, TRAIN)


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=30, deadline=None)
def test_metrics_agree_with_their_definitions(seed):
    rng = np.random.default_rng(seed)
    masks, predicted = rng.random((2, 3, 1, 6, 5)) < rng.random((2, 1, 1, 1, 1))
    metrics = segmentation_metrics(masks, predicted)
    dice = None
    if (masks | predicted).any():
        dice = 2 * (masks & predicted).sum() / (masks.sum() + predicted.sum())
    assert metrics["lesion"]["dice"] == pytest.approx(dice)
    assert metrics["accuracy"] == pytest.approx((masks == predicted).mean())
    if metrics["two_class"]["recall"] is not None:
        specificity = (~masks & ~predicted).sum() / (~masks).sum()
        mean_recall = (metrics["lesion"]["recall"] + specificity) / 2
        assert metrics["two_class"]["recall"] == pytest.approx(mean_recall)


@pytest.mark.skipif(
    "MEDGAN_DATA" not in os.environ, reason="MEDGAN_DATA names no folder of real data"
)
def test_lesions_of_real_images_are_found():
    from medgan_nb.data.splits import fixed_test_split
    from medgan_nb.datasets import busi

    images = busi.load(os.environ["MEDGAN_DATA"], 32, resize_mode="stretch")
    parts = fixed_test_split(images.select(images.labels < 2), 0.3, 150, 0)
    config = TrainConfig(
        epochs=12,
        batch_size=16,
        lr=5e-3,
        lr_schedule="cosine",
        augment="flip_rotate",
        min_last_batch=2,
    )
    network = build_seeded(lambda: UNet(8, 3), 0)
    arm = Arm("real", "", parts["train"], config)
    outcome = train_and_evaluate_segmenter(network, arm, parts["test"], 0)
    assert outcome.metrics["lesion"]["dice"] > 0.4
