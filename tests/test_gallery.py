"The Gallery in a browser, from disk: lists and sliders change the picture to the one they name."

import io
from types import SimpleNamespace

import numpy as np
import pytest
from browser import needs_chromium, open_page, screenshot
from PIL import Image

from medgan_nb.experiments.run import Run
from medgan_nb.report.gallery import gallery_entries, gallery_html
from medgan_nb.simulation.ultrasound_bmode import load as simulated_ultrasound
from medgan_nb.studies.common.gallery import write_gallery
from medgan_nb.training.loop import train
from medgan_nb.training.registry import model_recipe

STUDY = SimpleNamespace(name="p2", title="small sets", labels={"dcgan": "DCGAN"})
MODELS = {
    "dcgan": {},
    "stylegan2_diffaugment": dict(channel_base=512, channel_max=64, mapping_layers=2, z_dim=32),
}


@pytest.fixture(scope="module")
def page_file(tmp_path_factory):
    "A page over two generators, a conditional one with styles and one without either."
    folder, entries = tmp_path_factory.mktemp("gallery"), []
    images = simulated_ultrasound(size=32)
    for (name, options), n in zip(MODELS.items(), (50, 100)):
        n_classes = len(images.classes) if name.startswith("stylegan2") else 0
        recipe = model_recipe(name, 32, n_classes, **options)
        here = folder / "p2" / name
        train(recipe, images, kimg=0.2, seed=0, folder=here, precision="fp32", bar=False)
        params = {"model": name, "dataset": "simulated_ultrasound", "dataset_size": n}
        data = {"name": images.name, "simulated": True}
        config = {"params": params | {"preset": "smoke", "seed": 0}, "variant": {}, "data": data}
        run = Run(here, config)
        write_gallery(run, here / "gallery")
        entries += gallery_entries(STUDY, [run])
    path = folder / "index.html"
    head = '<!doctype html><html lang="en"><meta charset="utf-8"><title>Gallery</title>'
    path.write_text(f"{head}{gallery_html(entries)}</html>", encoding="utf-8")
    return path


def picture(locator) -> np.ndarray:
    "What the browser shows of an element, grey levels."
    return np.asarray(Image.open(io.BytesIO(locator.screenshot())).convert("L"), float)


def tile_shown(path, shown: np.ndarray) -> tuple[int, int]:
    "Row and column of the tile of a sprite file that a picture shows, enlarged by whole pixels."
    whole = np.asarray(Image.open(path).convert("L"), float)
    scale = shown.shape[1] // 32
    shown = shown[: 32 * scale, : 32 * scale]  # a box between two pixels is one larger
    tiles = whole.reshape(whole.shape[0] // 32, 32, -1, 32).swapaxes(1, 2)
    large = tiles.repeat(scale, -2).repeat(scale, -1)
    difference = np.abs(large - shown).mean((-2, -1))
    assert difference.min() < 3 and np.sort(difference.ravel())[1] > 1.2 * difference.min()
    return np.unravel_index(difference.argmin(), difference.shape)


@needs_chromium
def test_sliders_and_lists_show_what_they_name(page_file):
    sprites = page_file.parent / "p2" / "stylegan2_diffaugment" / "gallery"
    with open_page() as (page, log):
        page.goto(page_file.as_uri())
        page.select_option("select[name=method]", "stylegan2_diffaugment")
        assert page.locator("select[name=n]").input_value() == "100"
        page.select_option("select[name=class]", "malignant")
        walk, slider = page.locator(".walk .tile"), page.locator(".walk input")
        before = picture(walk)
        assert tile_shown(sprites / "walk.webp", before) == (1, 0)
        slider.focus()
        for _ in range(3):
            page.keyboard.press("ArrowRight")
        after = picture(walk)
        assert tile_shown(sprites / "walk.webp", after) == (1, 3)
        assert not np.array_equal(before, after)
        assert "step 4 of 24" in page.locator(".walk figcaption").inner_text()
        truncation = page.locator(".truncation .tile")
        assert tile_shown(sprites / "truncation.webp", picture(truncation)) == (1, 10)
        page.locator(".truncation input").press("Home")
        assert tile_shown(sprites / "truncation.webp", picture(truncation)) == (1, 0)
        screenshot(page, "gallery.png")
        page.select_option("select[name=method]", "DCGAN")
        assert page.locator("select[name=n]").input_value() == "50"
        assert page.locator(".truncation").is_hidden() and page.locator(".untruncated").is_visible()
        assert log.errors == [] and log.external() == []


@needs_chromium
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_every_picture_has_words_and_the_page_fits(page_file, width, theme):
    with open_page(width, 844, color_scheme=theme) as (page, log):
        page.goto(page_file.as_uri())
        names = page.locator(".tiles .tile").evaluate_all("all => all.map(e => e.ariaLabel)")
        assert len(names) == 12 and len(set(names)) == 12 and all(names)
        assert page.locator(".tiles .tile").first.bounding_box()["y"] < 844
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.get_by_text("trained on simulated images").first.is_visible()
        assert page.get_by_text("First samples, not chosen").is_visible()
        assert log.errors == [] and log.external() == []
