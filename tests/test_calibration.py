"""Calibration cards: those of the real data sets, and cards that were kept and damaged."""

import json
from pathlib import Path

import numpy as np
import pytest

from medgan_nb.core.errors import DataError
from medgan_nb.core.random import seed_all
from medgan_nb.data.dataset import ImageSet
from medgan_nb.datasets import registry
from medgan_nb.evaluation.classification import train_classifier
from medgan_nb.evaluation.training import TrainConfig
from medgan_nb.experiments.run import Run
from medgan_nb.metrics.calibration import CalibrationCard, calibration_card
from medgan_nb.metrics.distortions import describe
from medgan_nb.metrics.features import FeatureNetwork, feature_network, random_network
from medgan_nb.models.classifiers import SmallCNN
from medgan_nb.studies.common.calibration import admitted, calibration_cards
from medgan_nb.studies.p2 import study as p2
from medgan_nb.studies.p3 import study as p3

REAL_SETS = {"busi": (p2, "pool", 10), "mini_mias": (p3, "train", 15)}


@pytest.fixture(params=REAL_SETS)
def real_run(request, real_data, tmp_path) -> tuple[Run, str, int]:
    "A short run on a real data set, the part its GAN may learn from, and epochs of a classifier."
    module, part, epochs = REAL_SETS[request.param]
    given = {"preset": "short", "dataset": request.param, "data_dir": str(real_data)}
    config, data = module.configure(given)
    return Run(tmp_path, config, data), part, epochs


def small_classifier(images: ImageSet, epochs: int) -> FeatureNetwork:
    "A small classifier of these few images as feature network: what studies 2 and 3 once used."
    seed_all(0, "study reader")
    network = SmallCNN(images.pixels.shape[-1], len(images.classes))
    train_classifier(network, images, TrainConfig(epochs=epochs), 0)
    return FeatureNetwork("study", network.dim, network.eval().features)


def curve(card: CalibrationCard, distortion: str) -> np.ndarray:
    "Distances against strength, from clean images."
    return card.curve(distortion)[1]


def test_cards_on_real_images(real_run):
    "EfficientNet-Lite orders blur and noise, clean images lowest; a small classifier is refused."
    run, part, epochs = real_run
    pool, held_out = run.data[part], run.data["test"]
    networks = [feature_network("efficientnet_lite0"), small_classifier(pool, epochs)]
    n = min(120, len(held_out))
    cards = calibration_cards(run, networks, held_out, pool, n)
    lite, own = cards
    for distortion in ("blur", "noise"):
        assert (np.diff(curve(lite, distortion)) > 0).all(), (distortion, lite.rows)
    beside = ("copies", "class left out")
    lowest = min((r for r in lite.rows if r.distortion not in beside), key=lambda r: r.value)
    assert lowest.distortion == "clean", describe(lowest.distortion, lowest.strength)
    assert lite.passes, lite.refusals
    assert not own.passes
    instruments, words = admitted(networks, cards)
    assert instruments == networks[:1]
    assert any("FD(study) is refused on these images" in text for text in words)


def labelled(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    "Random images (n, 1, 16, 16) and labels (n,)."
    rng = np.random.default_rng(seed)
    return rng.uniform(-1, 1, (n, 1, 16, 16)).astype(np.float32), rng.integers(0, 2, n)


def small_card(**options) -> CalibrationCard:
    "The card of the random network on noise, which has nothing to see."
    (reference, reference_labels), (images, labels) = labelled(20, 0), labelled(20, 1)
    given = {"reference_labels": reference_labels} | options
    return calibration_card(random_network(8), reference, images, labels, ("a", "b"), **given)


def test_the_same_seed_gives_the_same_card():
    first, again, other = (small_card(seed=seed).to_dict() for seed in (0, 0, 1))
    for card in (first, again, other):
        del card["seconds"]
    assert first == again != other


@pytest.mark.parametrize(
    "options, message",
    [
        ({"reference_labels": [0] * 19}, "labels (19,)"),
        ({"reference_labels": [2] * 20}, "a label is not one of 0 to 1"),
        ({"groups": [0]}, "groups (1,)"),
        ({"n": 21}, "n is 21"),
        ({"n": 3}, "n from 4 to their number"),
        ({"n_draws": 1}, "n_draws is 1"),
    ],
)
def test_what_a_card_refuses_to_measure(options, message):
    with pytest.raises(DataError) as caught:
        small_card(**options)
    assert message in str(caught.value)


def test_six_images_of_two_patients_have_a_card():
    card = small_card(n=6, groups=["one", "two"] * 10, reference_groups=["three"] * 20)
    assert card.n == 6
    assert sum("the spread over patients" in text for text in card.unknown) == 2


def test_one_class_has_no_probe():
    card = small_card(reference_labels=[0] * 20)
    assert card.balanced_accuracy is None
    assert any("tells the classes apart" in text for text in card.unknown)


@pytest.mark.parametrize("damage", ["missing", "unknown", "row", "no dict"])
def test_a_damaged_card_is_one_line(damage):
    data = json.loads(json.dumps(small_card().to_dict()))
    if damage == "missing":
        del data["rows"]
    elif damage == "unknown":
        data["extra"] = 1
    elif damage == "row":
        data["rows"][0] = {"value": 1}
    else:
        data = [1]
    with pytest.raises(DataError, match="calibration card"):
        CalibrationCard.from_dict(data)


def test_a_card_is_kept_with_its_run(tmp_path: Path, monkeypatch):
    "A finished card is read back: the network does not run again."
    images = registry.load("simulated_ultrasound", size=32)
    half = len(images) // 2
    reference, pool = images.select(range(half)), images.select(range(half, 2 * half))
    run = Run(tmp_path, {"params": {"seed": 0}, "settings": {"size": 32}})
    (first,) = calibration_cards(run, [random_network(8)], reference, pool, 16)
    monkeypatch.setattr("medgan_nb.metrics.calibration.extract_features", None)
    assert calibration_cards(run, [random_network(8)], reference, pool, 16) == [first]
