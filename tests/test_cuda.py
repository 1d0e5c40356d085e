"""Training on a CUDA device: runs where there is one, skipped by name elsewhere."""

from functools import partial

import pytest
import torch

from medgan_nb.data.dataset import ImageSet
from medgan_nb.models.dcgan import Discriminator, Generator
from medgan_nb.training.loop import train
from medgan_nb.training.losses import discriminator_bce_loss, generator_nonsaturating_loss
from medgan_nb.training.recipe import Recipe

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_train_and_load(tmp_path, precision):
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (64, 1, 32, 32), generator=generator, dtype=torch.uint8)
    labels, ids = [k % 2 for k in range(64)], range(64)
    images = ImageSet(pixels, labels, ("a", "b"), ids, ids, name="noise", simulated=True)
    recipe = Recipe(
        "cgan",
        partial(Generator, 32, n_classes=2, base=64),
        partial(Discriminator, 32, n_classes=2, base=64),
        discriminator_bce_loss,
        generator_nonsaturating_loss,
        n_classes=2,
        batch_size=16,
        ema_kimg=0.1,
    )
    options = dict(kimg=0.5, folder=tmp_path, device="cuda", precision=precision, bar=False)
    trained = train(recipe, images, **options)
    loaded = train(recipe, images, **options)
    samples = trained.sample(8)
    assert torch.isfinite(samples).all()
    assert torch.equal(loaded.sample(8), samples)
