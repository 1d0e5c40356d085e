"""The site: builds without a warning and without a network, reads from disk, its links and search
work, and its how-tos name what exists.
"""

import html.parser
import os
import re
import resource
import shlex
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import typer
from browser import needs_chromium, open_page, screenshot, until
from playwright.sync_api import expect

from medgan_nb.cli import app
from medgan_nb.report.build import chosen
from medgan_nb.studies.common import comparison
from medgan_nb.studies.registry import STUDIES

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.xdist_group("site")


@pytest.fixture(scope="session")
def site(tmp_path_factory) -> Path:
    "The site, built once: under two minutes of processor time, every warning an error."
    pytest.importorskip("myst_nb", reason="the site needs the extra docs: pip install -e '.[docs]'")
    folder, before = tmp_path_factory.mktemp("site"), resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, str(ROOT / "docs" / "build.py"), str(folder)],
        capture_output=True,
        text=True,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr[-3000:]
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 120
    return folder / "_docs"


class Links(html.parser.HTMLParser):
    "Targets, anchors and text of a page."

    def __init__(self, page: Path):
        super().__init__()
        self.links, self.loads, self.anchors = [], [], set()
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.anchors |= {found[key] for key in ("id", "name") if found.get(key)}
        if tag == "a" and found.get("href"):
            self.links.append(found["href"])
        elif found.get("src") or (tag == "link" and found.get("href")):
            self.loads.append(found.get("src") or found["href"])


def test_links_resolve_and_nothing_is_loaded_from_elsewhere(site):
    pages = {page: Links(page) for page in site.rglob("*.html") if "_static" not in page.parts}
    assert len(pages) > 60
    dead, loaded = [], []
    for page, found in pages.items():
        loaded += [
            (page.name, url) for url in found.loads if urlsplit(url).scheme not in ("", "data")
        ]
        for url in found.links + [u for u in found.loads if not u.startswith("data:")]:
            parts = urlsplit(url)
            if parts.scheme in ("http", "https", "mailto"):
                continue
            target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
            target = target / "index.html" if target.is_dir() else target
            if not target.exists() or (
                parts.fragment
                and target in pages
                and unquote(parts.fragment) not in pages[target].anchors
            ):
                dead.append((page.name, url))
    assert dead == [] and loaded == []


@needs_chromium
def test_pages_load_from_disk(site):
    "Each page but those of the library, of which every fourth: one program writes them all."
    pages = sorted(page for page in site.rglob("*.html") if "_static" not in page.parts)
    library = [page for page in pages if page.parent.name == "library"]
    first = int(os.environ.get("MEDGAN_SEED", 0)) % 4
    pages = [page for page in pages if page not in library] + library[first::4]
    wrong = []
    with open_page() as (page, log):
        for path in pages:
            page.goto(path.as_uri())
            if page.locator("h1").count() == 0 and path.name != "search.html":
                wrong.append((path.name, "no heading"))
            wrong += [(path.name, problem) for problem in log.errors + log.external()]
            log.errors.clear()
            log.requests.clear()
    assert wrong == []


@needs_chromium
def test_search_and_themes(site):
    with open_page() as (page, log):
        page.goto((site / "search.html").as_uri() + "?q=kid")
        expect(page.locator("#search-results")).to_contain_text("Kernel distance", timeout=30_000)
        page.goto((site / "index.html").as_uri())
        background = "getComputedStyle(document.body).backgroundColor"
        light = page.evaluate(background)
        page.evaluate("document.documentElement.dataset.theme = 'dark'")
        until(page, f"{background} !== {light!r}")
        link = page.locator(".bd-article a[href='howto/howto_own_images.html']").first
        expect(link).to_be_in_viewport()
        assert log.errors == []


TOP_PAGES = (
    "index.html",
    "studies/index.html",
    "gallery.html",
    "measuring.html",
    "howto/index.html",
    "library/index.html",
)
STUDY_PAGES = tuple(f"studies/{name}.html" for name in STUDIES)
OTHER_PAGES = (
    "studies/p4_notebook.html",
    "howto/howto_small_sets.html",
    "library/510_metrics_fid.html",
    "library/metrics.html",
    "api.html",
)
CUT = """() => [...document.querySelectorAll('.bd-article table, .bd-article img')]
  .filter(box => box.getBoundingClientRect().right > innerWidth + 1
    && !box.closest('.mg-scroll, .bd-article div.math'))
  .map(box => box.outerHTML.slice(0, 200))"""


@needs_chromium
@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_pages_fit_and_nothing_is_cut(site, width, theme):
    with open_page(width, 844, color_scheme=theme, is_mobile=width < 600) as (page, log):
        for name in (*TOP_PAGES, *STUDY_PAGES, *OTHER_PAGES):
            page.goto((site / name).as_uri())
            assert page.evaluate("document.documentElement.dataset.theme") == theme
            assert page.evaluate("document.documentElement.scrollWidth") <= width + 1, name
            assert page.evaluate(CUT) == [], name
            screenshot(page, f"{name.replace('/', '_')}_{width}_{theme}.png")
        assert log.errors == [] and log.external() == []


@needs_chromium
@pytest.mark.parametrize("width", [1280, 390])
def test_first_screens_show_a_picture(site, width):
    published = [name for name, study in STUDIES.items() if chosen(study, ROOT / "nowhere")[0]]
    assert published
    with open_page(width, 800, is_mobile=width < 600) as (page, log):
        for name in (*TOP_PAGES, *(f"studies/{name}.html" for name in published)):
            page.goto((site / name).as_uri())
            picture = page.locator(".bd-article img, .bd-article [role=img]").first
            expect(picture).to_be_in_viewport()
            words = picture.get_attribute("alt") or picture.get_attribute("aria-label")
            assert words and len(words) > 10, name
        assert log.errors == []


@needs_chromium
def test_pages_are_short_and_the_front_page_answers_at_once(site):
    with open_page(1280, 800) as (page, log):
        for name in (*TOP_PAGES, *STUDY_PAGES):
            page.goto((site / name).as_uri())
            assert page.locator(".bd-article details[open]").count() == 0
            assert page.evaluate("document.documentElement.scrollHeight") <= 12_000, name
        page.goto((site / "index.html").as_uri())
        for words in ("Does GAN augmentation help", "What do such GANs make?", "medgan-nb trial"):
            expect(page.get_by_text(words).first).to_be_in_viewport()
        assert log.errors == []


def test_front_page_says_what_the_published_runs_say(site):
    text = (site / "index.html").read_text(encoding="utf-8")
    plain = plain_text(text)
    for name, study in STUDIES.items():
        runs, _ = chosen(study, ROOT / "nowhere")
        card = study.card(runs)
        assert f'href="studies/{name}.html"' in text and bare(card.claim) in bare(plain)
        page = (site / "studies" / f"{name}.html").read_text(encoding="utf-8")
        said = (card.verdict, card.answer) if runs else ("no published run yet",)
        assert all(bare(words) in bare(plain) for words in said)
        assert bare(card.answer) in bare(plain_text(page))
        assert not runs or f"{len(runs)} published runs" in page
    assert "make reproduce" in plain and "make test" in plain


def plain_text(html: str) -> str:
    "The text of a page."
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", "", html)).replace("&#39;", "'")


def bare(text: str) -> str:
    "Letters and digits alone: typography and escapes do not matter."
    return re.sub(r"\W+", "", text)


def test_measuring_page_has_every_verdict_and_what_the_cards_say(site):
    plain = plain_text((site / "measuring.html").read_text(encoding="utf-8"))
    words = [word for name, word in vars(comparison).items() if name in comparison.__all__[:9]]
    assert len(words) == 9 and all(word in plain for word in words)
    assert "blur 1 px" in plain and "x clean)" in plain and "{{" not in plain
    assert len(list((site / "_images").glob("*calibration*.png"))) >= 2


def test_library_index_is_by_package(site):
    page = Links(site / "library" / "index.html")
    packages = {path.stem.partition("_")[2].partition(".")[0] for path in NOTEBOOKS}
    assert {f"{name}.html" for name in packages} <= set(page.links)
    for path in NOTEBOOKS:
        package = path.stem.partition("_")[2].partition(".")[0]
        links = Links(site / "library" / f"{package}.html").links
        assert f"{path.stem.replace('.', '_')}.html" in links


NOTEBOOKS = sorted((ROOT / "nbs").glob("[0-9]*.ipynb"))


def commands() -> list[tuple[str, str]]:
    "Each medgan-nb command of the how-tos."
    found = []
    for path in sorted((ROOT / "docs").glob("howto_*.md")):
        for line in re.findall(
            r"^\s*(medgan-nb .*)$", path.read_text(encoding="utf-8"), re.MULTILINE
        ):
            found.append((path.stem, line.strip()))
    return found


@pytest.mark.parametrize("page, line", commands())
def test_howto_commands_exist(page, line):
    words = shlex.split(line, comments=True)[1:]
    command = typer.main.get_command(app)
    while hasattr(command, "commands"):
        assert words[0] in command.commands, line
        command = command.commands[words.pop(0)]
    options = {name for parameter in command.params for name in parameter.opts}
    assert all(word in options for word in words if word.startswith("-")), line
    for setting in [value for flag, value in zip(words, words[1:]) if flag == "-p"]:
        assert setting.split("=")[0] in STUDIES[words[0]].parameters, line


def test_howto_code_names_what_exists():
    for path in sorted((ROOT / "docs").glob("howto_*.md")):
        for module, names in re.findall(
            r"^\s*from (medgan_nb[\w.]*) import (.+)$",
            path.read_text(encoding="utf-8"),
            re.MULTILINE,
        ):
            exec(f"from {module} import {names}", {})
