"""Run folders that are not what they should be: each is named, none stops the others, and nothing
in them becomes markup, a formula, or an escape sequence.
"""

import json
import re
import signal
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from run_folders import FILES, MARKUP, copy_run, load, make_fifo, places, rehash, replaced, store

from medgan_nb.app.generate import open_source
from medgan_nb.app.reader_study.build import build_reader_study
from medgan_nb.app.runs import find_run, load_synthetic_images
from medgan_nb.core.errors import DataError, MedganError
from medgan_nb.core.files import write_json
from medgan_nb.experiments.executor import RunSpec, run_once
from medgan_nb.experiments.run import load_run
from medgan_nb.experiments.status import format_status, run_statuses
from medgan_nb.experiments.study import Study
from medgan_nb.report.build import report
from medgan_nb.studies.common.card import build_card
from medgan_nb.studies.common.comparison import compare
from medgan_nb.studies.common.paper_table import PaperTable
from medgan_nb.studies.common.results import results_of
from medgan_nb.studies.registry import STUDIES

COMMAND = str(Path(sys.executable).parent / "medgan-nb")
P4 = [STUDIES["p4"]]


def without_figures(study: Study) -> Study:
    "A study that draws nothing, for tests of its numbers."
    return replace(study, figures=lambda runs: {})


def without_tables(study: Study) -> Study:
    "A study that shows which runs there are and nothing else, for tests that need no numbers."
    nothing = {"tables": lambda _: {}, "figures": lambda _: {}, "paper_tables": lambda _: {}}
    return replace(study, narrative=lambda _: "", card=lambda _: study.card([]), **nothing)


def medgan_nb(*words, seconds: float = 60) -> subprocess.CompletedProcess:
    "The command line; fails after so many seconds."
    done = subprocess.run(
        [COMMAND, *map(str, words)], capture_output=True, text=True, timeout=seconds
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done


def without_key(path: Path, key: str) -> None:
    value = load(path)
    store(path, {name: item for name, item in value.items() if name != key})


BROKEN = {
    "config.json": lambda path: store(path, {"paper": "p4"}),
    "leases/1.json": lambda path: store(path, {"owner": None, "heartbeat": 0, "outcome": "done"}),
    "log.jsonl": lambda path: path.write_bytes(b'{"step": 1, "kimg": "many"}\n\xff\n'),
    "metrics.json": lambda path: without_key(path, "seconds"),
    "predictions.json": lambda path: without_key(path, "labels"),
    "samples.png": make_fifo,
}


@pytest.fixture
def six_of_twenty(tmp_path, smoke_run) -> tuple[Path, list[Path]]:
    "An outputs folder of twenty runs, and the six of them that are broken in six ways."
    folders = [copy_run(smoke_run, tmp_path, seed) for seed in range(100, 120)]
    for folder, (name, damage) in zip(folders, BROKEN.items()):
        damage(folder / name)
    return tmp_path, folders[: len(BROKEN)]


def test_six_broken_runs_of_twenty_are_named_and_fourteen_shown(six_of_twenty):
    outputs, broken = six_of_twenty
    status = medgan_nb("status", "--outputs", outputs)
    assert status.returncode == 0 and len(re.findall(": done$", status.stdout, re.M)) == 14
    for folder, name in zip(broken, BROKEN):
        line = next(line for line in status.stdout.splitlines() if folder.name in line)
        assert "unreadable: " + name in line
    done = medgan_nb("report", "p4", "--outputs", outputs)
    assert done.returncode == 0, done.stderr
    page = (outputs / "report" / "index.html").read_text()
    assert re.search("14( of 15 .partial.)? runs", page)
    table, unfinished = page.split("<caption>not done</caption>")
    for folder in broken:
        assert folder.name in unfinished and f"<td>{folder.name}<td class" not in table
    assert len(re.findall("<td>unreadable: ", unfinished)) == 6


def test_a_broken_run_does_not_stop_a_sweep(six_of_twenty):
    outputs, _ = six_of_twenty
    words = ["sweep", "p4", "-p", "preset=smoke", "-p", "seed=110", "--outputs", outputs]
    done = medgan_nb(*words)
    assert done.returncode == 0 and "1 of 1 runs done" in done.stdout, done.stderr


class Hang(BaseException):
    "No `Exception`, so that nothing takes it for an error of a file."


@contextmanager
def time_limit(seconds: int):
    "Raise `Hang` if what is inside does not end."

    def stop(*_):
        raise Hang(f"{seconds} s")

    previous = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)


def store_line(path: Path, line: dict) -> None:
    path.write_text(path.read_text() + f"{json.dumps(line)}\n")


DAMAGES = {
    "config without keys": ("config.json", lambda path: store(path, {})),
    "config with a text for a number": (
        "config.json",
        lambda path: store(path, replaced(load(path), ("params", "seed"), "many")),
    ),
    "lease without owner": ("leases/1.json", BROKEN["leases/1.json"]),
    "lease whose owner has no pid": (
        "leases/1.json",
        lambda path: store(
            path, {"owner": {"machine": "m", "started": 0.0}, "heartbeat": 0, "outcome": None}
        ),
    ),
    "log that is not UTF-8": ("log.jsonl", lambda path: path.write_bytes(b'{"a": "\xff"}\n')),
    "log nested deep": ("log.jsonl", lambda path: path.write_bytes(b"[" * 100_000 + b"\n")),
    "log without kimg": ("log.jsonl", lambda path: store_line(path, {"step": 1, "seconds": 0.0})),
    "log without step": ("log.jsonl", lambda path: store_line(path, {"kimg": 1, "seconds": 0.0})),
    "log with kimg as text": (
        "log.jsonl",
        lambda path: store_line(path, {"step": 1, "kimg": "1", "seconds": 0.0}),
    ),
    "metrics without a key": ("metrics.json", BROKEN["metrics.json"]),
    "metrics with text for a number": (
        "metrics.json",
        lambda path: store(path, replaced(load(path), ("results", 0, "ci_low"), "high")),
    ),
    "predictions without a key": ("predictions.json", BROKEN["predictions.json"]),
    "predictions with text for a number": (
        "predictions.json",
        lambda path: store(path, replaced(load(path), ("labels", 0), "ill")),
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_wrong_with_a_run_is_named_by_the_report(tmp_path, smoke_run, damage):
    "Each fault that once stopped `report` and `status`; the run beside it is shown."
    name, make = DAMAGES[damage]
    broken, good = (copy_run(smoke_run, tmp_path, seed) for seed in (7, 8))
    make(broken / name)
    states = {row["run"]: row["state"] for row in run_statuses(tmp_path, ["p4"])}
    assert states[good.name] == "done"
    page = report([without_tables(STUDIES["p4"])], tmp_path).read_text()
    undone = page.split("<caption>not done</caption>")[1]
    assert broken.name in undone and "unreadable: " in undone and good.name not in undone


def test_a_short_row_in_the_list_of_synthetic_images_is_named(tmp_path, smoke_run):
    folder = copy_run(smoke_run, tmp_path, 7)
    (folder / "synthetic").mkdir()
    (folder / "synthetic" / "list.csv").write_text("file,class,seed\n0.png\n")
    with pytest.raises(DataError, match="list.csv: line 2"):
        load_synthetic_images(load_run(folder))


def spec_of(folder: Path) -> RunSpec:
    "What a sweep would do with the run in a folder."
    return RunSpec("p4", Path("p4.ipynb"), {}, load(folder / "config.json"), folder)


RUN_FILES = (
    "weights.safetensors",
    "synthetic/list.csv",
    "trajectory.jsonl",
    "executed.ipynb",
    "stages/real.json",
    "figures/a.png",
    "run.log",
    "running.ipynb",
    ".lock",
)


@pytest.mark.parametrize("name", [*FILES, *RUN_FILES])
def test_a_named_pipe_anywhere_in_a_run_hangs_no_command(tmp_path, smoke_run, name):
    "Status and report name the run; what opens it, and a sweep that would resume it, refuse it."
    folder = copy_run(smoke_run, tmp_path, 7)
    spec = spec_of(folder)
    (folder / name).parent.mkdir(exist_ok=True)
    make_fifo(folder / name)
    with time_limit(60):
        (row,) = run_statuses(tmp_path, ["p4"])
        assert "unreadable" in row["state"]
        report([without_tables(STUDIES["p4"])], tmp_path)
        for use in (find_run, open_source, lambda run: build_reader_study(run, "page.html")):
            with pytest.raises(DataError, match="not a regular file"):
                use(folder)
        if name != "metrics.json":
            (folder / "metrics.json").unlink()
        assert "not a regular file" in run_once(spec)


def test_a_link_in_a_run_is_not_written_through(tmp_path, smoke_run):
    precious = tmp_path / "precious"
    precious.write_text("of the user")
    folder = copy_run(smoke_run, tmp_path / "outputs", 7)
    spec = spec_of(folder)
    (folder / "metrics.json").unlink()
    for name in (".lock", "running.ipynb", "log.jsonl"):
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(precious)
    assert "a link that leads out" in run_once(spec)
    assert precious.read_text() == "of the user"


@pytest.mark.parametrize("name", [*FILES, "leases/1.json", "contents.json"])
def test_a_named_pipe_in_the_place_of_a_file_does_not_hang(tmp_path, smoke_run, name):
    folder = copy_run(smoke_run, tmp_path, 7)
    write_json(tmp_path / "report" / "p4" / "contents.json", {})
    make_fifo(tmp_path / "report" / "p4" / name if name == "contents.json" else folder / name)
    with time_limit(60):
        run_statuses(tmp_path, ["p4"])
        report([without_tables(STUDIES["p4"])], tmp_path)


def test_links_out_of_the_folder_are_not_followed(tmp_path, smoke_run):
    secret = tmp_path / "secret.png"
    secret.write_bytes(b"of the user who makes the report")
    folder = copy_run(smoke_run, tmp_path / "outputs", 7)
    (folder / "figures").mkdir()
    (folder / "figures" / "innocent.png").symlink_to(secret)
    report(P4, tmp_path / "outputs")
    assert not list((tmp_path / "outputs" / "report").rglob("innocent.png"))
    (row,) = run_statuses(tmp_path / "outputs", ["p4"])
    assert "innocent.png: a link that leads out" in row["state"]


def markup_in_every_place(folder: Path):
    "Put markup in each place of each file in turn; yields file and place."
    for name in FILES:
        original = load(folder / name)
        for place in places(original):
            store(folder / name, replaced(original, place, MARKUP))
            if name == "config.json":
                rehash(folder)
            yield name, place
        store(folder / name, original)
        rehash(folder)


def test_markup_in_every_field_of_every_file_stays_text(tmp_path, smoke_run):
    "Each result is a row of a table: all that the files hold, and no bootstrap a thousand times."

    def tables(runs):
        return {"all": [compare(result) for result in results_of(runs)]}

    def card(runs):
        shown = {"DCGAN": runs[0]}
        return build_card(("p4", "title", "claim"), runs, ("single run", ""), shown, (None, ""))

    def paper_tables(runs):
        rows = tuple((result.metric, (compare(result),)) for result in results_of(runs))
        return {"all": PaperTable("all", ("ours",), rows)}

    study = replace(
        STUDIES["p4"],
        tables=tables,
        figures=lambda _: {},
        narrative=lambda _: MARKUP,
        card=card,
        paper_tables=paper_tables,
    )
    folder = copy_run(smoke_run, tmp_path, 7)
    results = load(folder / "metrics.json")
    store(folder / "metrics.json", results | {"results": results["results"][:2]})
    shown = 0
    for name, place in markup_in_every_place(folder):
        page = report([study], tmp_path).read_text()
        assert "<img src=x" not in page, (name, place)
        shown += page.count("&lt;img src=x") > 1
    assert shown > 15
    assert "default-src 'none'" in page and page.count("<script") == 1
    assert re.search(r"script-src 'sha256-[^' ]+'\"", page)  # that one script, no other


def test_markup_in_names_stays_text_in_the_tables_of_the_study(tmp_path, smoke_run):
    folder = copy_run(smoke_run, tmp_path, 7)
    config, metrics = load(folder / "config.json"), load(folder / "metrics.json")
    config["data"] |= {"name": MARKUP, "licence": MARKUP, "notes": [MARKUP]}
    for row in metrics["results"]:
        row |= {"note": MARKUP, "feature_network": MARKUP, "ci_method": MARKUP}
    store(folder / "config.json", config)
    store(folder / "metrics.json", metrics)
    page = report([without_figures(STUDIES["p4"])], tmp_path).read_text()
    assert "<img src=x" not in page and "&lt;img src=x" in page


def test_class_names_that_are_formulas_do_not_run(tmp_path, smoke_run):
    folder = copy_run(smoke_run, tmp_path, 7)
    metrics = load(folder / "metrics.json")
    for row in metrics["results"]:
        row["condition"], row["metric"] = {"class": "=1+1"}, "@SUM(A1:A9)"
    store(folder / "metrics.json", metrics)
    report(P4, tmp_path)
    text = "".join(path.read_text() for path in (tmp_path / "report" / "p4").glob("*.csv"))
    assert "'=1+1" in text and "'@SUM" in text
    assert not re.findall(r'(?m)(?:^|,)"?(?:=1\+1|@SUM)', text)


def test_status_prints_no_escape_sequence(tmp_path, smoke_run):
    folder = copy_run(smoke_run, tmp_path, 7)
    (folder / "metrics.json").unlink()
    store(folder / "progress.json", {"phase": "\x1b]0;title\x07\x1b[2Jgone"})
    (row,) = run_statuses(tmp_path, ["p4"])
    assert "\x1b" not in format_status(row) and "\\x1b]0;title" in format_status(row)
    assert "\x1b" not in str(MedganError("\x1b[31m"))


def test_status_prints_no_escape_sequence_of_a_folder(tmp_path, smoke_run):
    folder = copy_run(smoke_run, tmp_path, 7)
    folder.rename(folder.with_name("n1-\x1b[2J"))
    text = medgan_nb("status", "--outputs", tmp_path).stdout
    assert "\x1b" not in text and "\\x1b[2J" in text


def test_a_copy_is_a_finished_run(tmp_path, smoke_run):
    assert load_run(copy_run(smoke_run, tmp_path, 7)).done
