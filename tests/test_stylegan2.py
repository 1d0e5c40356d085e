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
from medgan_nb.training.checkpoint import read
from medgan_nb.training.loop import train
from medgan_nb.training.recipe import declared
from medgan_nb.training.registry import model_recipe
from medgan_nb.training.step import d_step, g_step, generate, init_state

MODELS = ["stylegan2", "stylegan2_ada", "stylegan2_diffaugment"]
TINY = dict(config="auto", batch_size=4, channel_base=128, channel_max=8, latent_dim=8)
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


def tiny(name: str, **settings):
    built = model_recipe(name, 32, 3, **TINY | settings)
    if name == "stylegan2_ada":  # p must move within 20 steps of 4 images
        built = replace(built, augment=partial(built.augment, kimg=0.2, p=0.1))
    return built


def fit(built, images, folder, **options):
    return train(
        built,
        images,
        kimg=STEPS * built.batch_size / 1000,
        folder=folder,
        precision="fp32",
        bar=False,
        save_seconds=0.0,
        ticks=STEPS,
        **options,
    )


def stop_at(tick):
    return lambda state, log: signal.raise_signal(signal.SIGINT) if len(log) == tick else None


def without_time(rows):
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


@pytest.mark.parametrize("name", MODELS)
def test_exact_resume(name, images, tmp_path):
    built, states = tiny(name), {}

    def note(key):
        return lambda state, log: states.update({key: state})

    whole = fit(built, images, tmp_path / "whole", hooks=[note("whole")])
    for tick in (3, 14, None):
        try:
            resumed = fit(built, images, tmp_path / "cut", hooks=[stop_at(tick), note("cut")])
        except KeyboardInterrupt:
            assert tick is not None
    for key in ("G", "D"):
        for (k, a), b in zip(
            getattr(whole, key).state_dict().items(), getattr(resumed, key).state_dict().values()
        ):
            assert torch.equal(a, b), (key, k)
    for key in ("augment", "regularizer_state", "opt_G", "opt_D"):
        kept = [
            torch.cat(
                [t.flatten() for t in tensors(getattr(states[run], key).state_dict())]
                or [torch.zeros(1)]
            )
            for run in states
        ]
        assert torch.equal(*kept), key
    assert states["cut"].regularizer_state["path_length"].value > 0
    assert without_time(read_jsonl(tmp_path / "cut" / "log.jsonl")) == without_time(whole.log)
    if name == "stylegan2_ada":
        p = [row["ada_p"] for row in whole.log]
        assert len(set(p)) > 3 and "ada_r" in whole.log[-1]


def tensors(tree):
    "All tensors of a nested dict or list."
    if isinstance(tree, torch.Tensor):
        return [tree]
    items = (
        tree.values() if isinstance(tree, dict) else tree if isinstance(tree, (list, tuple)) else []
    )
    return [t for item in items for t in tensors(item)]


def nan_regularizer(built, name):
    "The recipe with one regularizer that turns NaN at step 16."

    @declared("nan_at_step_16")
    def broken(state, *images, loss):
        value = loss(state, *images)
        return value * float("nan") if state.step == 16 else value

    regularizers = [
        replace(r, loss=partial(broken, loss=r.loss)) if r.name == name else r
        for r in built.regularizers
    ]
    return replace(built, regularizers=tuple(regularizers))


@pytest.mark.parametrize("where", ["r1", "path_length", "D", "G"])
def test_nan_stops_before_the_update_and_the_checkpoint_stays_good(where, images, tmp_path):
    built = tiny("stylegan2_ada")
    seen = {}

    def keep(state, log):
        seen.update(
            weights={
                key: [p.detach().clone() for p in getattr(state, key).parameters()]
                for key in ("G", "D")
            },
            running_mean=state.regularizer_state["path_length"].value.clone(),
            state=state,
        )
        if where in "GD" and state.step == 16:  # a weight that a passing fault has spoilt
            list(getattr(state, where).parameters())[-1].register_hook(
                lambda gradient: gradient * float("nan")
            )

    broken = nan_regularizer(built, where) if where not in "GD" else built
    with pytest.raises(TrainingError, match="stopped before the update"):
        fit(broken, images, tmp_path, hooks=[keep])
    state = seen["state"]
    assert state.step == 16
    spoilt = "D" if where in ("D", "r1") else "G"
    assert all(
        torch.equal(p, q)
        for p, q in zip(getattr(state, spoilt).parameters(), seen["weights"][spoilt])
    )
    assert all(t.isfinite().all() for t in tensors(read(tmp_path / "checkpoint.safetensors")))
    assert read(tmp_path / "checkpoint.safetensors")["state"]["step"] == 16
    assert not (tmp_path / "weights.safetensors").exists()
    assert state.regularizer_state["path_length"].value.isfinite()


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("n", [1, 3, 5])
def test_a_batch_of_any_size(name, n):
    state = init_state(tiny(name), seed=0)
    x_real, y_real = torch.rand(n, 1, 32, 32) * 2 - 1, torch.zeros(n, dtype=torch.long)
    x_fake, y_fake = generate(state, n)
    log = d_step(state, x_real, y_real, x_fake, y_fake) | g_step(state, x_real, x_fake, y_fake)
    assert {"r1", "path_length"} <= set(log) and all(value.isfinite() for value in log.values())


def test_a_training_of_batches_of_one(images):
    trained = train(tiny("stylegan2_ada", batch_size=1), images, kimg=0.006, precision="fp32", bar=False)
    assert trained.sample(3).shape == (3, 1, 32, 32) and trained.sample(3).isfinite().all()


@pytest.mark.parametrize("name", MODELS)
def test_bf16_training_stays_finite_and_is_repeatable(name, images):
    runs = [train(tiny(name), images, kimg=0.02, precision="bf16", bar=False) for _ in range(2)]
    assert torch.equal(runs[0].sample(4), runs[1].sample(4)) and runs[0].sample(4).isfinite().all()


def test_samples_do_not_depend_on_how_many_are_drawn(images):
    trained = train(tiny("stylegan2"), images, kimg=0.02, precision="fp32", bar=False)
    torch.testing.assert_close(trained.sample(5)[:2], trained.sample(2), rtol=0, atol=1e-4)
    y = torch.tensor([2, 2])
    assert not torch.equal(trained.sample(2, y=y), trained.sample(2, y=1 - y.clamp(max=1)))
