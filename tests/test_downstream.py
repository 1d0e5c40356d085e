"The classification trial as a whole: determinism, pairing, exact steps, counts of every arm, no test image in any of them."

import math
import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medgan_nb.core.errors import ConfigError, DataError, TrainingError
from medgan_nb.core.random import seed_all
from medgan_nb.data.dataset import ImageSet, concat
from medgan_nb.data.splits import IMAGE_SPLIT, pixel_keys
from medgan_nb.evaluation import classification as classify
from medgan_nb.evaluation import statistics as stats
from medgan_nb.evaluation.classification import Plan, arms, class_weights, fit, predict, trial
from medgan_nb.evaluation.scores import scores
from medgan_nb.evaluation.training import batches
from medgan_nb.models.classifiers import SmallCNN

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


TRAIN, TEST, SYNTHETIC = (
    squares(30, 70, 0, "train"),
    squares(20, 30, 1, "test"),
    squares(45, 0, 2, "synthetic"),
)


def reader() -> SmallCNN:
    return SmallCNN(32)


def trained(plan: Plan, seed: int = 0, images: ImageSet = TRAIN, **options):
    seed_all(seed, "weights")
    net = reader()
    return net, fit(net, images, plan, seed, **options)


def weights_of(net) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in net.parameters()])


@pytest.fixture
def optimiser_steps(monkeypatch):
    "Counts of the steps Adam really takes."
    count, step = [0], torch.optim.Adam.step

    def counted(self, *args, **options):
        count[0] += 1
        return step(self, *args, **options)

    monkeypatch.setattr(torch.optim.Adam, "step", counted)
    return count


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_same_seed_same_bits(precision):
    plan = Plan(epochs=2, precision=precision)
    (net, log), (again, log_again) = trained(plan), trained(plan)
    assert log == log_again and torch.equal(weights_of(net), weights_of(again))
    assert not torch.equal(weights_of(net), weights_of(trained(plan, seed=1)[0]))


def test_training_does_not_depend_on_what_was_drawn_before():
    torch.randn(1000)
    np.random.rand(7)
    first = trained(Plan(epochs=1))[0]
    torch.manual_seed(99)
    assert torch.equal(weights_of(first), weights_of(trained(Plan(epochs=1))[0]))


def test_evaluating_between_epochs_changes_nothing():
    looked = []

    def evaluate(net):
        looked.append(net.training)
        return {"accuracy": scores(TEST.labels, predict(net, TEST), CLASSES)["accuracy"]}

    net, log = trained(Plan(epochs=2), evaluate=evaluate)
    assert torch.equal(weights_of(net), weights_of(trained(Plan(epochs=2))[0]))
    assert looked == [False, False] and all("accuracy" in row for row in log)


def test_it_learns():
    outcome = trial(classify.Arm("A", "", TRAIN, Plan(epochs=10, lr=3e-3)), TEST, 0, reader)
    assert outcome.scores["accuracy"] > 0.9 and outcome.scores["correct"] == outcome.right.sum()


def test_every_arm_starts_from_the_same_weights_and_seeds_differ():
    starts = []

    def build():
        starts.append(weights_of(net := reader()))
        return net

    found = arms(TRAIN, SYNTHETIC, Plan(steps=1), seed=0)
    for arm in found:
        trial(arm, TEST, 0, build)
    trial(found[0], TEST, 1, build)
    *paired, other_seed = starts
    assert len(paired) == 8 and all(torch.equal(paired[0], start) for start in paired)
    assert not torch.equal(paired[0], other_seed)


def test_steps_are_matched_exactly(optimiser_steps):
    taken = {}
    for arm in arms(TRAIN, SYNTHETIC, Plan(epochs=2), seed=0):
        optimiser_steps[0] = 0
        assert trial(arm, TEST, 0, reader).steps == optimiser_steps[0]
        taken[arm.name] = optimiser_steps[0]
    real, both = 2 * math.ceil(100 / 32), 2 * math.ceil(145 / 32)
    assert taken == dict(zip(NAMES, [real, real, both, both, both, both, both, real]))


def test_steps_of_the_study():
    train = ImageSet(
        torch.zeros(5216, 1, 1, 1, dtype=torch.uint8),
        np.repeat([0, 1], (1341, 3875)),
        CLASSES,
        np.arange(5216),
        np.arange(5216),
    )
    synthetic = ImageSet(
        torch.zeros(2000, 1, 1, 1, dtype=torch.uint8),
        np.zeros(2000),
        CLASSES,
        np.arange(2000),
        [f"s{k}" for k in range(2000)],
    )
    steps = {
        arm.name: arm.plan.steps_for(len(arm.images))
        for arm in arms(train, synthetic, Plan(), seed=0)
    }
    assert (steps["A"], steps["B"], steps["A_steps"], steps["B_steps"]) == (815, 1130, 1130, 815)
    assert arms(train, synthetic, Plan(), seed=0)[6].images.counts() == {
        "NORMAL": 3341,
        "PNEUMONIA": 3875,
    }


@given(n=st.integers(1, 90), batch=st.integers(1, 40), steps=st.integers(1, 30))
@settings(max_examples=60, deadline=None)
def test_batches_cover_every_epoch_once(n, batch, steps):
    rows = list(batches(n, batch, steps, seed=0))
    assert len(rows) == steps
    drawn = torch.cat(rows)
    for epoch in drawn[: len(drawn) // n * n].view(-1, n):
        assert sorted(epoch.tolist()) == list(range(n))


def test_arms_hold_what_they_say():
    found = arms(TRAIN, SYNTHETIC, Plan(), seed=0)
    assert [arm.name for arm in found] == NAMES
    more = {"NORMAL": 75, "PNEUMONIA": 70}
    for arm in found:
        real = arm.name in ("A", "A_weights", "A_steps")
        assert arm.images.counts() == (TRAIN.counts() if real else more)
        assert arm.images.select(np.arange(100)).fingerprint == TRAIN.fingerprint
        assert arm.plan.class_weight == ("balanced" if arm.name == "A_weights" else None)
    keys = {arm.name: pixel_keys(arm.images)[100:] for arm in found}
    normals = pixel_keys(TRAIN.of_class("NORMAL"))
    assert set(keys["A_oversample"]) <= set(normals) and list(keys["B"]) == list(
        pixel_keys(SYNTHETIC)
    )
    for name in ("A_classic", "A_noise"):
        assert len(set(keys[name])) == 45 and not set(keys[name]) & set(normals)


def test_copies_stay_in_their_patient():
    for arm in arms(TRAIN, SYNTHETIC, Plan(), seed=0)[2:5]:
        assert set(arm.images.groups) == set(TRAIN.groups)


def test_no_test_image_in_any_arm():
    for arm in arms(TRAIN, SYNTHETIC, Plan(), seed=0):
        assert not set(pixel_keys(TEST)) & set(pixel_keys(arm.images))
        assert not set(TEST.ids) & set(arm.images.ids) and not set(TEST.groups) & set(
            arm.images.groups
        )


def test_a_test_image_in_an_arm_is_refused_unless_the_split_was_made_by_image():
    stolen = replace(TEST.of_class("NORMAL"), ids=[f"copy-{k}" for k in range(20)], name="stolen")
    arm = arms(TRAIN, stolen, Plan(steps=1), seed=0)[6]
    with pytest.raises(
        DataError, match="20 test images are among its training images, for example test-0"
    ):
        trial(arm, TEST, 0, reader)
    trial(arm, replace(TEST, notes=(IMAGE_SPLIT,)), 0, reader)


def test_class_weights_move_the_call_towards_the_rare_class():
    few = concat(
        [TRAIN.of_class("NORMAL").select(np.arange(8)), TRAIN.of_class("PNEUMONIA")], "few normals"
    )
    assert class_weights(few, Plan(class_weight="balanced")).tolist() == pytest.approx(
        [78 / 16, 78 / 140]
    )
    assert class_weights(few, Plan()).tolist() == [1, 1]

    def mean(weight):
        return predict(trained(Plan(epochs=2, class_weight=weight), images=few)[0], TEST).mean()

    assert mean("balanced") < mean(None)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_before_the_weights(bad, optimiser_steps):
    class Breaks(SmallCNN):
        calls = 0

        def forward(self, x):
            self.calls += 1
            return super().forward(x) + (bad if self.calls == 3 else 0)

    seed_all(0, "weights")
    net = Breaks(32)
    with pytest.raises(TrainingError, match="at step 3 of 20; the weights are those of step 2"):
        fit(net, squares(40, 60, 0, "train").select(np.arange(100)), Plan(), 0)
    assert optimiser_steps[0] == 2
    assert torch.equal(
        weights_of(net), weights_of(trained(Plan(steps=2), images=squares(40, 60, 0, "train"))[0])
    )


def test_more_classes():
    three = ImageSet(TRAIN.pixels_store, np.arange(100) % 3, ("a", "b", "c"), TRAIN.groups, TRAIN.ids)
    net = SmallCNN(32, n_logits=3)
    fit(net, three, Plan(steps=2, class_weight="balanced"), 0)
    assert predict(net, three, batch=7).shape == (100, 3)
    np.testing.assert_allclose(predict(net, three, batch=7), predict(net, three), atol=1e-5)
    with pytest.raises(DataError, match=r"expected \(N, 3\)"):
        fit(reader(), three, Plan(steps=1), 0)


def test_predict_keeps_order_and_mode():
    net = reader().train()
    logits = predict(net, TEST)
    assert net.training and logits.shape == (50,)
    np.testing.assert_allclose(
        predict(net, TEST.select(np.arange(50)[::-1])), logits[::-1], atol=1e-6
    )


@pytest.mark.parametrize(
    "wrong",
    [
        {"epochs": 0},
        {"epochs": 2.5},
        {"batch": -1},
        {"steps": 0},
        {"lr": 0.0},
        {"lr": math.nan},
        {"class_weight": "auto"},
        {"precision": "fp16"},
    ],
)
def test_plans_that_make_no_sense_are_refused(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        Plan(**wrong)


def test_one_class_cannot_be_learned():
    with pytest.raises(DataError, match="two classes or more"):
        fit(reader(), TRAIN.of_class("NORMAL"), Plan(), 0)


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(-3, 3)), min_size=1, max_size=40))
@settings(max_examples=100, deadline=None)
def test_scores_are_consistent(rows):
    labels, logits = (np.array(column) for column in zip(*rows))
    found = scores(labels, logits.astype(float), CLASSES)
    assert sum(map(sum, found["confusion"])) == len(rows) == found["n"]
    assert 0 <= found["brier"] <= 1 and 0 <= found["accuracy"] <= 1
    assert (found["auc"] is None) == (len(set(labels)) == 1)
    if found["auc"] is not None:
        assert found["auc"] == pytest.approx(1 - stats.auc(labels, -logits))


def test_intervals_cover_what_they_promise():
    "Ten seeds, 60 patients of 3 films, no difference: the 95 % interval holds 0 in 90 % of studies or more."
    rng, groups = np.random.default_rng(0), np.repeat(np.arange(60), 3)
    held = 0
    for _ in range(200):
        patient = np.repeat(rng.normal(0, 0.5, 60), 3)
        values = rng.normal(0, 0.1, (10, 1)) + patient + 0.4 * rng.normal(size=(10, 180))
        _, low, high = stats.group_bootstrap(values, groups, draws=500)
        held += low <= 0 <= high
    assert held >= 180


@pytest.mark.skipif(
    "MEDGAN_DATA" not in os.environ, reason="MEDGAN_DATA names no folder of real data"
)
def test_one_epoch_on_real_films():
    from medgan_nb.datasets import chest_xray

    films = chest_xray.load(os.environ["MEDGAN_DATA"], 32)
    outcome = trial(
        classify.Arm("A", "", films.of_split("train"), Plan(epochs=1)),
        films.of_split("test"),
        0,
        lambda: SmallCNN(32),
    )
    assert outcome.steps == 163 and outcome.scores["auc"] > 0.8
