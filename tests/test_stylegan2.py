"StyleGAN2, ADA and DiffAugment through the training loop: exact resume, planted NaNs, odd batches."

import signal
from dataclasses import replace
from functools import partial

import pytest
import torch

from medgan_nb.core.errors import TrainingError
from medgan_nb.core.files import read_jsonl
from medgan_nb.core.random import stream
from medgan_nb.data.dataset import ImageSet
from medgan_nb.training.checkpoint import load_tree
from medgan_nb.training.loop import train
from medgan_nb.training.recipe import declared
from medgan_nb.training.registry import model_recipe
from medgan_nb.training.step import d_step, g_step, generate, init_state

MODELS = ["stylegan2", "stylegan2_ada", "stylegan2_diffaugment"]
TINY = dict(config="auto", batch_size=4, channel_base=128, channel_max=8, z_dim=8)
CONTAINERS = (dict, list, tuple)
STEPS = 20  # R1 at 0 and 16, path length at 0, 4, ..., 16


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def images() -> ImageSet:
    pixels = torch.randint(256, (12, 1, 32, 32), generator=stream(0, "pixels")).to(torch.uint8)
    return ImageSet(
        pixels,
        [0, 1, 2] * 4,
        ("benign", "malignant", "normal"),
        range(12),
        range(12),
        name="noise",
        simulated=True,
    )


def tiny_recipe(name: str, **settings):
    recipe = model_recipe(name, 32, 3, **TINY | settings)
    if name == "stylegan2_ada":  # p must move within 20 steps of 4 images
        recipe = replace(recipe, augment=partial(recipe.augment, kimg=0.2, p=0.1))
    return recipe


def fit(recipe, images, folder, **options):
    return train(
        recipe,
        images,
        kimg=STEPS * recipe.batch_size / 1000,
        folder=folder,
        precision="fp32",
        bar=False,
        save_seconds=0.0,
        ticks=STEPS,
        **options,
    )


def interrupt_at(tick):
    "A hook that sends SIGINT at a tick."
    return lambda state, log: signal.raise_signal(signal.SIGINT) if len(log) == tick else None


def without_seconds(rows):
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


def tensors(tree):
    "All tensors of a nested dict or list."
    if isinstance(tree, torch.Tensor):
        return [tree]
    items = tree.values() if isinstance(tree, dict) else tree
    return [t for item in items for t in tensors(item)] if isinstance(tree, CONTAINERS) else []


def all_equal(a, b):
    "Whether two nested states hold the same tensors."
    a, b = tensors(a), tensors(b)
    return len(a) == len(b) and all(torch.equal(s, t) for s, t in zip(a, b))


@pytest.mark.parametrize("name", MODELS)
def test_exact_resume(name, images, tmp_path):
    recipe, states = tiny_recipe(name), {}

    def keep_state(key):
        return lambda state, log: states.update({key: state})

    uninterrupted = fit(recipe, images, tmp_path / "whole", hooks=[keep_state("whole")])
    for tick in (3, 14, None):
        hooks = [interrupt_at(tick), keep_state("resumed")]
        try:
            resumed = fit(recipe, images, tmp_path / "resumed", hooks=hooks)
        except KeyboardInterrupt:
            assert tick is not None
    for key in ("G", "D"):
        whole = getattr(uninterrupted, key).state_dict()
        assert all_equal(whole, getattr(resumed, key).state_dict()), key
    for key in ("augment", "regularizer_state", "opt_G", "opt_D"):
        whole = getattr(states["whole"], key).state_dict()
        assert all_equal(whole, getattr(states["resumed"], key).state_dict()), key
    assert states["resumed"].regularizer_state["path_length"].value > 0
    log = read_jsonl(tmp_path / "resumed" / "log.jsonl")
    assert without_seconds(log) == without_seconds(uninterrupted.log)
    if name == "stylegan2_ada":
        assert len({row["ada_p"] for row in log}) > 3 and "ada_r" in log[-1]


def nan_regularizer(recipe, name):
    "The recipe with one regularizer that turns NaN at step 16."

    @declared("nan_at_step_16")
    def broken(state, *images, loss):
        value = loss(state, *images)
        return value * float("nan") if state.step == 16 else value

    regularizers = [
        replace(r, loss=partial(broken, loss=r.loss)) if r.name == name else r
        for r in recipe.regularizers
    ]
    return replace(recipe, regularizers=tuple(regularizers))


def nan_gradient(network):
    "The gradient of the network's last weight is NaN from now on."
    list(network.parameters())[-1].register_hook(lambda gradient: gradient * float("nan"))


@pytest.mark.parametrize("where", ["r1", "path_length", "D", "G"])
def test_nan_stops_before_the_update_and_the_checkpoint_stays_good(where, images, tmp_path):
    recipe = tiny_recipe("stylegan2_ada")
    network = {"r1": "D", "path_length": "G"}.get(where, where)
    before = {}

    def keep_weights(state, log):
        weights = [p.detach().clone() for p in getattr(state, network).parameters()]
        before.update(state=state, weights=weights)
        if where == network and state.step == 16:
            nan_gradient(getattr(state, network))

    if where != network:
        recipe = nan_regularizer(recipe, where)
    with pytest.raises(TrainingError, match="stopped before the update"):
        fit(recipe, images, tmp_path, hooks=[keep_weights])
    state = before["state"]
    assert state.step == 16
    assert all_equal(list(getattr(state, network).parameters()), before["weights"])
    assert state.regularizer_state["path_length"].value.isfinite()
    checkpoint = load_tree(tmp_path / "checkpoint.safetensors")
    assert checkpoint["state"]["step"] == 16
    assert all(t.isfinite().all() for t in tensors(checkpoint))
    assert not (tmp_path / "weights.safetensors").exists()


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("n", [1, 3, 5])
def test_a_batch_of_any_size(name, n):
    state = init_state(tiny_recipe(name), seed=0)
    x_real, y_real = torch.rand(n, 1, 32, 32) * 2 - 1, torch.zeros(n, dtype=torch.long)
    x_fake, y_fake = generate(state, n)
    log = d_step(state, x_real, y_real, x_fake, y_fake) | g_step(state, x_real, x_fake, y_fake)
    assert {"r1", "path_length"} <= set(log) and all(value.isfinite() for value in log.values())


def test_training_with_batches_of_one(images):
    recipe = tiny_recipe("stylegan2_ada", batch_size=1)
    samples = train(recipe, images, kimg=0.006, precision="fp32", bar=False).sample(3)
    assert samples.shape == (3, 1, 32, 32) and samples.isfinite().all()


@pytest.mark.parametrize("name", MODELS)
def test_bf16_training_stays_finite_and_is_repeatable(name, images):
    recipe = tiny_recipe(name)
    first, second = (
        train(recipe, images, kimg=0.02, precision="bf16", bar=False).sample(4) for _ in range(2)
    )
    assert torch.equal(first, second) and first.isfinite().all()


def test_samples_do_not_depend_on_how_many_are_drawn(images):
    trained = train(tiny_recipe("stylegan2"), images, kimg=0.02, precision="fp32", bar=False)
    torch.testing.assert_close(trained.sample(5)[:2], trained.sample(2), rtol=0, atol=1e-4)
    y = torch.tensor([2, 2])
    assert not torch.equal(trained.sample(2, y=y), trained.sample(2, y=1 - y.clamp(max=1)))
