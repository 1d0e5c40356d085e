"""The site: builds without a warning and without a network, reads from disk, its links and search
work, and its how-tos name what exists.
"""

import html.parser
import re
import resource
import shlex
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import typer
from browser import needs_chromium, open_page, until
from playwright.sync_api import expect

from medgan_nb.cli import app
from medgan_nb.report.build import chosen
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
def test_every_page_loads_from_disk(site):
    pages = sorted(page for page in site.rglob("*.html") if "_static" not in page.parts)
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


@needs_chromium
def test_pages_fit_a_phone(site):
    with open_page(390, 844, is_mobile=True) as (page, log):
        for name in (
            "index.html",
            "studies/p4.html",
            "studies/p4_notebook.html",
            "howto/howto_small_sets.html",
            "library/510_metrics_fid.html",
            "api.html",
        ):
            page.goto((site / name).as_uri())
            assert page.evaluate("document.documentElement.scrollWidth") <= 391, name
        assert log.errors == []


def test_front_page_says_what_the_published_runs_say(site):
    text = (site / "index.html").read_text(encoding="utf-8")
    plain = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", "", text)).replace("&#39;", "'")
    for name, study in STUDIES.items():
        runs, _ = chosen(study, ROOT / "nowhere")
        assert f'href="studies/{name}.html"' in text and study.title in plain
        first = (
            re.split(r"(?<=[.!?]) (?=[A-Z0-9])", study.narrative(runs))[0]
            if runs
            else "no published run yet"
        )
        assert re.sub(r"\W+", "", first) in re.sub(r"\W+", "", plain)
        page = (site / "studies" / f"{name}.html").read_text(encoding="utf-8")
        assert not runs or f"{len(runs)} published runs" in page
    assert "make reproduce" in plain and "make test" in plain


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
