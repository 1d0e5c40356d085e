"""A reader study as people take it: in a browser, by keyboard, with a reload in the
middle; and the answers as they are scored.
"""

import base64
import io
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from browser import needs_chromium, open_page, until
from PIL import Image
from playwright.sync_api import Page

from medgan_nb.app.reader_study.build import assemble, simulate_reader
from medgan_nb.app.reader_study.page import load_page, render_page
from medgan_nb.app.reader_study.scores import load_answers, save_answers
from medgan_nb.cli import main
from medgan_nb.core.files import write_json
from medgan_nb.data.dataset import ImageSet

ROOT = Path(__file__).resolve().parent.parent
COMMAND = str(Path(sys.executable).parent / "medgan-nb")
HOSTILE = (
    "<img src=x onerror=\"document.title='owned'\"></script><script>document.title='owned'</script>"
)


def medgan(*words, cwd=ROOT) -> subprocess.CompletedProcess:
    return subprocess.run([COMMAND, *map(str, words)], capture_output=True, text=True, cwd=cwd)


def images(kind: str, n: int) -> ImageSet:
    "Noise in place of radiographs, with hostile names."
    pixels = torch.randint(
        0,
        256,
        (n, 1, 32, 32),
        dtype=torch.uint8,
        generator=torch.Generator().manual_seed(len(kind)),
    )
    ids = [f"{kind}/{HOSTILE}/{k}" for k in range(n)]
    return ImageSet(pixels, [0] * n, (HOSTILE,), ids, ids, name=HOSTILE)


@pytest.fixture
def written(tmp_path):
    "A test of twenty images with a hostile title, and its key."
    test, key = assemble(images("real", 10), images("generated", 10), HOSTILE, "3c" * 16)
    (tmp_path / "test.html").write_text(render_page(test), encoding="utf-8")
    write_json(tmp_path / "test.key.json", key)
    return tmp_path, key


def text_of(page: Page, element: str) -> str:
    return page.locator(element).text_content()


def answer(page: Page, letter: str, confidence: int) -> None:
    "One answer by keyboard; returns when the next image is there."
    before = text_of(page, "#place")
    until(page, "shownAt > 0")
    for key in (letter, str(confidence), "Enter"):
        page.keyboard.press(key)
    until(page, f"document.getElementById('place').textContent !== {json.dumps(before)}")


@needs_chromium
def test_twenty_answers_by_keyboard_with_a_reload(written):
    folder, key = written
    items = [item["item"] for item in load_page(folder / "test.html")["items"]]
    with open_page() as (page, log):
        page.goto((folder / "test.html").as_uri())
        page.keyboard.press("Enter")  # no name yet
        assert "name or code" in text_of(page, "#status")
        page.keyboard.insert_text(HOSTILE[:40])
        page.keyboard.press("Enter")
        shown = []
        for k, item in enumerate(items):
            if k == 7:
                page.reload()
                assert text_of(page, "#status").startswith("Resuming as <img")
            assert text_of(page, "#place") == f"{k + 1} of 20"
            shown.append(page.locator("#image").get_attribute("src"))
            if k == 3:  # a comment; letters in it are no shortcuts
                until(page, "shownAt > 0")
                page.keyboard.press("c")
                page.keyboard.insert_text("=grain like 1 2 3")
                page.keyboard.press("Escape")
            answer(page, "g" if key["truth"][item] == "generated" else "r", 1 + k % 5)
        until(page, "!document.getElementById('end').hidden")
        saved = [save(page, button, folder) for button in ("#json", "#csv")]
        until(page, "document.getElementById('status').textContent.endsWith('.csv')")
        assert page.title() == HOSTILE and page.evaluate("document.images.length") == 1
        assert log.errors == [] and log.external() == []
    assert len(set(shown)) == 20
    readings = [load_answers(path) for path in saved]
    assert readings[0].answers.keys() == readings[1].answers.keys() == key["truth"].keys()
    answers = list(readings[0].answers.values())
    assert [a["answer"] for a in answers] == list(key["truth"].values())
    assert [a["confidence"] for a in answers] == [1 + k % 5 for k in range(20)]
    comments = [reading.answers["004"]["comment"] for reading in readings]
    assert comments == ["=grain like 1 2 3", "'=grain like 1 2 3"]
    assert all(0 < a["seconds"] < 60 for a in answers)
    assert json.loads(saved[0].read_text())["answers"][7]["resumed"] is True
    done = medgan("reader-study", "score", saved[0], "--out", folder / "scores.csv")
    assert done.returncode == 0, done.stderr
    assert "accuracy 100.0% (83.9% to 100.0%) of 20 images" in done.stdout
    assert "AUC of confidence 1.000" in done.stdout
    assert len((folder / "scores.csv").read_text().splitlines()) == 2


def save(page: Page, button: str, folder: Path) -> Path:
    "Click a button that saves a file; where the file is."
    with page.expect_download() as download:
        page.click(button)
    path = folder / download.value.suggested_filename
    download.value.save_as(path)
    return path


@needs_chromium
def test_a_double_click_counts_once_and_two_tabs_agree(written):
    folder, _ = written
    with open_page(390, 780) as (page, log):
        page.goto((folder / "test.html").as_uri())
        page.keyboard.insert_text("A")
        page.click("#begin")
        until(page, "shownAt > 0")
        page.click("#next", click_count=2, force=True)  # nothing chosen
        assert page.evaluate("session.answers.length") == 0
        page.click("label:has(input[value=real]) span", click_count=2)
        page.click("label:has(input[value='4']) span")
        page.click("#next", click_count=2)
        saved = "session.answers.map(a => a.item + a.answer + a.confidence).join()"
        assert page.evaluate(saved) == "001real4"
        until(page, "shownAt > 0")
        # another tab has answered 002
        page.evaluate(
            "(() => {const other = load(answersKey('A'));"
            " other.answers.push({item: '002', answer: 'real', confidence: 5, comment: '',"
            " seconds: 1, resumed: false, at: ''});"
            " localStorage.setItem(answersKey('A'), JSON.stringify(other));})()"
        )
        for key in ("g", "1", "Enter"):
            page.keyboard.press(key)
        assert page.evaluate(saved) == "001real4,002real5"
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        page.evaluate("localStorage.setItem(answersKey('A'), '{broken')")
        page.reload()
        assert page.evaluate("!document.getElementById('intro').hidden") and log.errors == []


def test_nothing_in_the_page_betrays_the_answer(written):
    folder, key = written
    text = (folder / "test.html").read_text(encoding="utf-8")
    assert (
        key["secret"] not in text
        and 'onerror="' not in text
        and "http" not in text.replace("http-equiv", "")
    )
    assert not any(json.dumps(source)[1:-1] in text for source in key["source"].values())
    test = load_page(folder / "test.html")
    assert set(test) == {"test", "title", "notice", "items"} and all(
        set(item) == {"item", "image"} for item in test["items"]
    )
    opened = [
        Image.open(io.BytesIO(base64.b64decode(item["image"].split(",")[1])))
        for item in test["items"]
    ]
    assert {(image.format, image.mode, image.size, str(image.info)) for image in opened} == {
        ("PNG", "L", (32, 32), "{}")
    }
    assert [item["item"] for item in test["items"]] == [f"{k:03d}" for k in range(1, 21)]


def test_order_does_not_follow_from_program_and_seed():
    tests = [
        assemble(images("real", 10), images("generated", 10), "t", f"{k:032x}")[1]["truth"]
        for k in range(40)
    ]
    share = np.mean([[kind == "real" for kind in truth.values()] for truth in tests], axis=0)
    assert (
        len({tuple(truth.values()) for truth in tests}) == 40
        and 0.15 < share.min()
        and share.max() < 0.85
    )


def test_simulated_readers_score_as_built_and_say_so(written):
    folder, key = written
    files = [
        save_answers(folder / f"{seed}.json", simulate_reader(key, 2.0, seed)) for seed in range(3)
    ]
    done = medgan("reader-study", "score", *files)
    assert done.returncode == 0, done.stderr
    assert (
        done.stdout.count("(simulated)") == 3
        and done.stdout.count("kappa") == 3
        and "3 readers, 20 images: accuracy" in done.stdout
    )


@pytest.mark.parametrize(
    "spoil, message",
    [
        (
            lambda f, key: write_json(
                f / "test.key.json", key | {"truth": {i: "real" for i in key["truth"]}}
            ),
            "not what its test was built with",
        ),
        (lambda f, key: (f / "test.key.json").unlink(), "give the .key.json of this test"),
        (
            lambda f, key: (f / "0.json").write_text('{"answers": 1'),
            "not the answers of a reader study",
        ),
        (lambda f, key: (f / "0.json").write_bytes(b"\x80\x04\x95pickle"), "answers of 0 readers"),
        (
            lambda f, key: (f / "0.json").write_text(
                (f / "0.json").read_text().replace('"001"', '"999"')
            ),
            "which the test does not have",
        ),
        (
            lambda f, key: (f / "0.json").write_text(
                (f / "0.json").read_text().replace('"001"', '"\\u001b[31m"')
            ),
            "answers to \\x1b[31m, which",
        ),
        (
            lambda f, key: (f / "0.json").write_text(
                re.sub(r'"confidence": \d', '"confidence": 1e999', (f / "0.json").read_text())
            ),
            "not the answers",
        ),
        (
            lambda f, key: write_json(
                f / "test.key.json", {k: v for k, v in key.items() if k != "secret"}
            ),
            "not the key of a reader study",
        ),
        (
            lambda f, key: write_json(f / "test.key.json", key | {"images": {}}),
            "not the key of a reader study",
        ),
    ],
)
def test_faults_are_one_line(written, spoil, message, monkeypatch, capsys):
    folder, key = written
    save_answers(folder / "0.json", simulate_reader(key))
    spoil(folder, key)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["medgan-nb", "reader-study", "score", str(folder / "0.json")])
    with pytest.raises(SystemExit) as end:
        main()
    said = capsys.readouterr().err
    assert end.value.code == 2 and message in said and said.count("\n") == 1


@pytest.mark.xdist_group("app")
def test_build_from_a_run(smoke_run, tmp_path):
    done = medgan("reader-study", "build", smoke_run, "--out", tmp_path / "t.html", "--n", "20")
    assert done.returncode == 0, done.stderr
    key = json.loads((tmp_path / "t.key.json").read_text())
    assert sorted(key["truth"].values()) == ["generated"] * 10 + ["real"] * 10
    assert (
        "simulated" in load_page(tmp_path / "t.html")["notice"]
        and smoke_run.name not in (tmp_path / "t.html").read_text()
    )
    real = [source for item, source in key["source"].items() if key["truth"][item] == "real"]
    assert all("NORMAL" in source.upper() for source in real) and len(set(real)) == 10
    for words, message in (
        (("--out", tmp_path / "t.html"), "exists already"),
        (("--out", tmp_path / "t.txt"), "ends in .html"),
        (("--out", tmp_path / "u.html", "--n", "7"), "expected an even number"),
        (("--out", tmp_path / "u.html", "--n", "400"), "too few"),
    ):
        refused = medgan("reader-study", "build", smoke_run, *words)
        assert (
            refused.returncode == 2
            and message in refused.stderr
            and refused.stderr.count("\n") == 1
        )
    assert not (tmp_path / "u.html").exists()
