"""The report in a browser: a picture first, nothing cut, nothing from outside, no script but its
own.
"""

import shutil
from pathlib import Path

import pytest
from browser import needs_chromium, open_page, screenshot

from medgan_nb.report.build import report
from medgan_nb.report.style import SCRIPT, STYLE, script_policy
from medgan_nb.studies.common.card import Card
from medgan_nb.studies.registry import STUDIES

pytestmark = needs_chromium
LOOKS = [(width, scheme) for width in (1280, 390) for scheme in ("light", "dark")]
CUT = """[...document.querySelectorAll("table")].filter(table => {
  const box = table.parentElement, style = getComputedStyle(box);
  return table.scrollWidth > box.clientWidth + 1 && style.overflowX !== "auto";
}).length"""
FIRST_SCREEN = """[...document.querySelectorAll("img")].filter(image => {
  const place = image.getBoundingClientRect();
  return place.top < innerHeight - 40 && place.width > 100 && image.naturalWidth && image.alt;
}).length"""


@pytest.fixture(scope="module")
def page_file(smoke_run, tmp_path_factory) -> Path:
    "The report over a smoke run of p4 and studies without runs of one's own."
    outputs = tmp_path_factory.mktemp("report")
    shutil.copytree(smoke_run, outputs / "p4" / smoke_run.name)
    return report(list(STUDIES.values()), outputs)


@pytest.mark.parametrize("width, scheme", LOOKS)
def test_the_first_screen_shows_and_nothing_is_cut(page_file, width, scheme):
    with open_page(width, 800, color_scheme=scheme) as (page, log):
        page.goto(page_file.as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.evaluate(CUT) == 0
        first = page.evaluate("document.querySelector('.simulated').getBoundingClientRect().bottom")
        assert first < 800 and "--data-dir" in page.inner_text(".simulated")
        screenshot(page, f"report_{width}_{scheme}.png")
        page.evaluate("document.querySelectorAll('details').forEach(fold => fold.open = true)")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.evaluate(CUT) == 0
        assert log.errors == [] and log.external() == []


@pytest.mark.parametrize("width", [1280, 390])
def test_a_picture_with_alternative_text_stands_on_the_first_screen(page_file, width):
    with open_page(width, 800) as (page, _):
        page.goto(page_file.as_uri())
        assert page.evaluate("[...document.images].every(image => image.alt)")
        assert page.evaluate(FIRST_SCREEN) >= 1


def test_height_and_order_with_folds_closed(page_file):
    with open_page(1280, 800) as (page, _):
        page.goto(page_file.as_uri())
        assert page.evaluate("document.documentElement.scrollHeight") <= 12_000
        names = page.evaluate("[...document.querySelectorAll('.mg-card')].map(card => card.id)")
        assert sorted(names) == [f"card-{name}" for name in STUDIES]
        assert names[0] == "card-p4"  # the study that has a run


def test_long_tables_sort_and_filter(page_file):
    with open_page(1280, 800) as (page, log):
        page.goto(page_file.as_uri())
        page.evaluate("document.querySelectorAll('details').forEach(fold => fold.open = true)")
        box = page.locator("#p4 .sortable").nth(1)
        before = box.locator("tbody tr").count()
        field = box.locator("xpath=preceding-sibling::input[1]")
        field.fill("accuracy")
        assert 0 < box.locator("tbody tr:visible").count() < before
        field.fill("")
        button = box.locator("th", has_text="ours").locator("button")
        for order in (1, -1):
            button.click()
            texts = box.locator("tbody tr").evaluate_all(
                "(rows, k) => rows.map(row => parseFloat(row.cells[k].textContent))",
                box.locator("th").all_inner_texts().index("ours [interval]"),
            )
            values = [order * x for x in texts if x == x]
            assert len(values) > 3 and values == sorted(values)
        assert log.errors == []


def test_a_script_that_came_into_the_page_does_not_run(tmp_path):
    policy = script_policy(SCRIPT)
    path = tmp_path / "page.html"
    path.write_text(
        f'<!doctype html><meta http-equiv="Content-Security-Policy" content="{policy}">'
        f"<style>{STYLE}</style><img src=x onerror=\"document.title='in'\">"
        "<script>document.title = 'in'</script><div class=sortable><table><tr><th>a</table></div>"
        f"<script>{SCRIPT}</script>"
    )
    with open_page() as (page, log):
        page.goto(path.as_uri())
        assert page.title() != "in" and page.locator("th button").count() == 1
        assert any("Content Security Policy" in error for error in log.errors)


def test_a_card_without_runs_says_so_and_shows_no_picture():
    for study in STUDIES.values():
        card = study.card([])
        assert isinstance(card, Card) and card.verdict == "not reported"
        assert card.answer == "No finished run yet." and card.samples == () and card.plot is None
