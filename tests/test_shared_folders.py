"""Folders that are passed on, and the cache: shared generators, generated images, trials, kept
features and cards. Whatever their files hold, they are read, made again, or refused in one line.
"""

import csv
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from run_folders import MARKUP, copy_run, load, make_fifo, places, rehash, replaced, store
from small_sources import CACHES, PLAN, cached_card, cached_images, noise_set, trained_source
from test_run_folders import time_limit

import medgan_nb
from medgan_nb.app.generate import Source, generate, open_source
from medgan_nb.app.runs import find_run, with_data
from medgan_nb.app.share import card_text, share
from medgan_nb.app.trial import _finished, _plan_once
from medgan_nb.core.errors import ConfigError, DataError, MedganError, WeightsError
from medgan_nb.core.files import digest, read_json, write_json
from medgan_nb.core.weights import PublishedFile, load_published_weights, required_tensors
from medgan_nb.data.formats.images import write_png
from medgan_nb.datasets import folder as folder_set
from medgan_nb.datasets.audit import check
from medgan_nb.experiments.run import load_run
from medgan_nb.report import contents
from medgan_nb.report.trial import trial_page
from medgan_nb.studies.common import calibration
from medgan_nb.studies.trial import evaluate
from medgan_nb.training.checkpoint import load_tree, save_tree


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Source:
    return trained_source(tmp_path_factory.mktemp("trained"))


@pytest.fixture
def shared(trained, tmp_path) -> Path:
    "The folder that is passed on."
    share(trained, tmp_path / "shared", accept_risk="a test", n_samples=4)
    return tmp_path / "shared"


@pytest.fixture(autouse=True)
def empty_cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("MEDGAN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


# --- shared generators


def change_tree(path: Path, place: tuple, value) -> None:
    "Another value in a weights file, whose digest is right again."
    save_tree(path, replaced(load_tree(path), place, value))


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("images", "class_counts"), {"a": float("inf"), "b": 1}),
        (("images", "class_counts"), {"a": 10**400, "b": 1}),
        (("images", "class_counts"), {"a\x1b[2J": 1, "b": 1}),
        (("images", "class_counts"), {"a" * 100_000: 1, "b": 1}),
        (("images", "class_counts"), [1, 2]),
        (("images", "bits"), [8]),
        (("images",), "text"),
        (("identity",), []),
        (("identity", "recipe", "settings", "z_dim"), 10**30),
        (("identity", "recipe", "settings", "batch_size"), 0),
        (
            ("identity", "recipe"),
            {
                "name": "stylegan2_ada_pretrained",
                "settings": {"size": 64, "n_classes": 2, "start": "../../secret"},
            },
        ),
        (("identity", "recipe", "settings", "mapping_layers"), 1 << 20),
        (("identity", "recipe", "settings", "z_dim"), float("nan")),
        (("G",), {}),
    ],
)
def test_a_shared_generator_that_does_not_hold_what_it_says(shared, place, value):
    change_tree(shared / "generator.safetensors", place, value)
    with time_limit(20), pytest.raises(WeightsError) as refusal:
        medgan_nb.load(shared)
    assert "secret" not in str(refusal.value) or "start is '../../secret'" in str(refusal.value)


def test_a_named_pipe_in_a_shared_folder_does_not_hang(shared):
    for path in [path for path in shared.rglob("*") if path.is_file()]:
        content = path.read_bytes()
        make_fifo(path)
        with time_limit(20):
            try:
                assert open_source(shared).generator.sample(1).shape == (1, 1, 32, 32)
            except MedganError:
                assert path.name == "generator.safetensors"
        path.unlink()
        path.write_bytes(content)


def test_class_names_of_a_shared_generator_are_no_formulas(shared, tmp_path):
    names = {"=1+1": 1, "@SUM(A1:A9)": 1}
    change_tree(shared / "generator.safetensors", ("images", "class_counts"), names)
    for n in (20, 300):  # the second call reads the manifest of the first
        generate(open_source(shared), tmp_path / "new", n, bar=False)
    text = (tmp_path / "new" / "manifest.csv").read_text()
    rows = list(csv.DictReader(text.splitlines()))
    assert len(rows) == 300 and {row["class"] for row in rows} == {"'=1+1", "'@SUM(A1:A9)"}


def test_markup_in_a_model_card_stays_text(shared):
    card = load(shared / "model_card.json")
    shown = 0
    for place in places(card):
        if isinstance(value_at(card, place), str):
            text = card_text(replaced(card, place, f"{MARKUP} | x](javascript:alert(1))"))
            assert "<img" not in text and "](" not in text
            shown += "&#60;img" in text
    assert shown > 8


def value_at(value, place: tuple):
    for key in place:
        value = value[key]
    return value


# --- generated images


@pytest.mark.parametrize(
    "state",
    [
        [],
        {"done": "many"},
        {"done": -1},
        {"done": 10**30},
        {"n_written": None},
        {"n_flagged": "=1"},
        {"request": 3},
    ],
)
def test_a_changed_state_of_generated_images_is_not_built_upon(trained, tmp_path, state):
    generate(trained, tmp_path / "new", 4, bar=False)
    path = tmp_path / "new" / "generate.json"
    store(path, load(path) | state if isinstance(state, dict) else state)
    with pytest.raises(ConfigError, match="--force"):
        generate(trained, tmp_path / "new", 6, bar=False)
    assert generate(trained, tmp_path / "new", 6, force=True, bar=False).n_written == 6


MANIFESTS = [
    b"",
    b"\xff\xfe",
    b"file\n../../secret\n",
    b"number\n\xc2\xb2\n" + b"9" * 5000 + b"\n",
    b'"' * 99,
    b"file,number\n" + b"a" * 200_000 + b",1\n",
]


@pytest.mark.parametrize("manifest", MANIFESTS, ids=range(len(MANIFESTS)))
def test_a_changed_manifest_is_read_or_refused(trained, tmp_path, manifest):
    secret = tmp_path / "secret"
    secret.write_text("not of the images")
    generate(trained, tmp_path / "new" / "images", 4, bar=False)
    (tmp_path / "new" / "images" / "manifest.csv").write_bytes(manifest)
    for force in (False, True):
        try:
            generate(trained, tmp_path / "new" / "images", 6, force=force, bar=False)
        except MedganError as error:
            assert "secret" in str(error)
    assert secret.exists()


@pytest.mark.parametrize("name", ["manifest.csv", "generate.json", "a/000004.png", "part-9.npy"])
def test_a_named_pipe_among_generated_images_does_not_hang(trained, tmp_path, name):
    kind = "npz" if name.endswith("npy") else "png"
    generate(trained, tmp_path, 4, label="a", file_format=kind, force=True, bar=False)
    make_fifo(tmp_path / name)
    with time_limit(20):
        try:
            generate(trained, tmp_path, 6, label="a", file_format=kind, bar=False)
        except ConfigError as error:
            assert name == "generate.json" and "--force" in str(error)
        generate(trained, tmp_path, 6, label="a", file_format=kind, force=True, bar=False)


def test_a_foreign_portion_is_one_line(trained, tmp_path):
    generate(trained, tmp_path / "new", 4, file_format="npz", bar=False)
    for damage in (b"", b"\x93NUMPY", b"PK\x03\x04"):
        (tmp_path / "new" / "part-000000004.npy").write_bytes(damage)
        with pytest.raises(DataError, match="cannot be joined"):
            generate(trained, tmp_path / "new", 4, file_format="npz", bar=False)


def test_a_full_disk_while_images_are_generated_is_one_line_and_resumes(trained, tmp_path):
    "A limit of the size of a file stands in: the manifest cannot grow."

    def limited():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        try:
            generate(trained, tmp_path / "new", 300, bar=False)
        except DataError as error:
            os._exit(0 if "cannot be written" in str(error) else 3)
        os._exit(4)

    child = multiprocessing.get_context("fork").Process(target=limited)
    child.start()
    child.join(60)
    assert child.exitcode == 0
    generate(trained, tmp_path / "new", 300, bar=False)
    generate(trained, tmp_path / "whole", 300, bar=False)
    manifests = [(tmp_path / name / "manifest.csv").read_bytes() for name in ("new", "whole")]
    assert manifests[0] == manifests[1]


# --- the cache


def npy(header: dict, data: bytes = b"") -> bytes:
    "A .npy file by hand."
    text = repr(header).encode().ljust(117) + b"\n"
    return b"\x93NUMPY\1\0" + len(text).to_bytes(2, "little") + text + data


DAMAGES = {
    "empty": lambda data: b"",
    "cut": lambda data: data[: len(data) // 2],
    "one bit": lambda data: data[:-5] + bytes([data[-5] ^ 1]) + data[-4:],
    "huge": lambda data: npy({"descr": "<f4", "fortran_order": False, "shape": (10**12,)}),
    "pickle": lambda data: npy({"descr": "|O", "fortran_order": False, "shape": (8,)}, b"cos\n"),
    "pipe": None,
}


def damage_file(path: Path, name: str) -> None:
    if DAMAGES[name] is None:
        make_fifo(path)
    else:
        path.write_bytes(DAMAGES[name](path.read_bytes()))


@pytest.mark.filterwarnings("ignore:.*damaged")
@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("kind", CACHES)
def test_a_damaged_file_of_the_cache_is_made_again(tmp_path, empty_cache, kind, damage):
    expected = CACHES[kind](tmp_path)
    (path,) = (empty_cache / kind).iterdir()
    damage_file(path, damage)
    with time_limit(30):
        assert CACHES[kind](tmp_path) == expected
    assert path.is_file() and CACHES[kind](tmp_path) == expected


def test_a_cached_card_of_another_shape_is_made_again(tmp_path, empty_cache):
    expected = cached_card(tmp_path)
    (path,) = (empty_cache / "calibration").iterdir()
    kept = load(path)
    for place, value in ((("rows",), []), (("rows", 0, "value"), "text"), (("n",), None)):
        card = replaced(kept["card"], place, value)
        store(path, {"card": card, "sha256": calibration.digest(card)})
        assert cached_card(tmp_path) == expected, place


def test_a_compressed_file_of_the_cache_is_not_unpacked(tmp_path, empty_cache):
    "200 KB that would become 200 MB."
    cached_images(tmp_path)
    (path,) = (empty_cache / "prepared").iterdir()
    np.savez_compressed(path, about=np.zeros(200 << 20, np.uint8))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.warns(UserWarning, match="compressed"):
        cached_images(tmp_path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 << 10


@pytest.mark.parametrize("kind", CACHES)
def test_a_cache_that_cannot_be_written_costs_time_only(tmp_path, empty_cache, kind):
    expected = CACHES[kind](tmp_path)
    for path in (empty_cache / kind).iterdir():
        path.unlink()
    (empty_cache / kind).rmdir()
    (empty_cache / kind).write_text("a file in the place of the folder")
    with pytest.warns(UserWarning, match="not kept"):
        assert CACHES[kind](tmp_path) == expected


def _fill_cache(kind: str, folder: Path, barrier) -> None:
    torch.set_num_threads(1)
    barrier.wait()
    for _ in range(3 if kind == "calibration" else 20):
        CACHES[kind](folder)
        for path in Path(os.environ["MEDGAN_CACHE"], kind).iterdir():
            path.unlink(missing_ok=True)


@pytest.mark.parametrize("kind", CACHES)
def test_two_processes_may_write_one_cache(tmp_path, kind):
    context = multiprocessing.get_context("fork")
    expected = CACHES[kind](tmp_path)
    barrier = context.Barrier(2)
    children = [
        context.Process(target=_fill_cache, args=(kind, tmp_path, barrier)) for _ in range(2)
    ]
    for child in children:
        child.start()
    for child in children:
        child.join(120)
    assert [child.exitcode for child in children] == [0, 0]
    assert CACHES[kind](tmp_path) == expected


def test_damaged_weights_of_the_cache_are_refused_or_made_again(tmp_path):
    network = torch.nn.Linear(3, 2)
    torch.save(network.state_dict(), tmp_path / "w.pth")
    published = PublishedFile(
        "https://none.invalid/w.pth", contents.sha256_file(tmp_path / "w.pth")
    )
    required = required_tensors(network)

    def weights():
        return load_published_weights(published, required, tmp_path)["weight"]

    for name in ("w.pth.json", "w.pth.safetensors"):
        for damage in DAMAGES:
            assert torch.equal(weights(), network.weight)
            damage_file(tmp_path / name, damage)
            with time_limit(20):
                try:
                    assert torch.equal(weights(), network.weight)
                except MedganError as error:
                    assert "w.pth" in str(error)
            (tmp_path / name).unlink()


# --- contents.json of a report


def write_kept(folder: Path, said: dict, files: dict) -> None:
    "A contents.json whose digest is right, of inputs called x."
    said = {"tables": {}, "narrative": "", "pictures": [], "card": {}, "paper_tables": {}} | said
    kept = {"inputs": "x", "contents": said, "files": files, "sha256": digest(said)}
    write_json(folder / "contents.json", kept)


@pytest.mark.parametrize("name", ["/dev/zero", "../secret", "pipe"])
def test_contents_name_files_of_their_folder_only(tmp_path, name):
    folder = tmp_path / "report"
    folder.mkdir()
    (tmp_path / "secret").write_text("s")
    make_fifo(folder / "pipe")
    write_kept(folder, {}, {name: contents.sha256_file(tmp_path / "secret")})
    with time_limit(20):
        assert contents._read_kept(folder, "x") is None


def test_contents_show_no_file_that_was_not_written(tmp_path):
    write_kept(tmp_path, {"pictures": ["../secret.png"]}, {})
    assert contents._read_kept(tmp_path, "x") is None
    write_kept(tmp_path, {"other": 1}, {})
    assert contents._read_kept(tmp_path, "x") == contents.Contents({}, "", [], {}, {})
    kept = load(tmp_path / "contents.json")
    store(tmp_path / "contents.json", replaced(kept, ("contents", "narrative"), "changed"))
    assert contents._read_kept(tmp_path, "x") is None


# --- trials


def test_a_plan_is_read_back_or_refused(tmp_path):
    path = tmp_path / "plan-x.json"
    assert _plan_once(path, lambda: PLAN) == PLAN == _plan_once(path, lambda: None)
    plan = load(path)
    values = ("text", None, -1, 10**30, [], {})
    changed = [plan | {key: value} for key in plan for value in values if key != "notes"]
    for value in [*changed, [], {}, None, {"notes": []}, plan | {"notes": 3}]:
        store(path, value)
        with pytest.raises(DataError, match="plan-x.json"):
            _plan_once(path, lambda: None)
    store(path, plan | {"of a later version": 1})
    assert _plan_once(path, lambda: None) == PLAN
    make_fifo(path)
    with time_limit(20), pytest.raises(DataError):
        _plan_once(path, lambda: None)


@pytest.fixture
def trial_run(tmp_path, smoke_run) -> Path:
    "A folder that looks like that of a finished trial, with the numbers of another study."
    folder = copy_run(smoke_run, tmp_path / "outputs", 7)
    config = load(folder / "config.json") | {"paper": "trial"}
    config["settings"] |= {"size": 64, "group_by": "", "resize_mode": ""}
    target = folder.parent.parent / "trial" / folder.name
    target.parent.mkdir()
    folder.rename(target)
    write_json(target / "config.json", config)
    rehash(target)
    write_json(target / "trial.json", {"decision": {"word": "no", "sentence": "s"}})
    (target / "trial.html").write_text("page")
    return target


def test_a_changed_answer_of_a_trial_is_made_again(trial_run):
    assert _finished(load_run(trial_run))["decision"]["word"] == "no"
    path = trial_run / "trial.json"
    for value in ([], {}, {"decision": "no"}, {"decision": {"word": 3, "sentence": "s"}}, None):
        store(path, value)
        assert _finished(load_run(trial_run)) is None
    make_fifo(path)
    with time_limit(20):
        with pytest.raises(DataError, match="trial.json: not a regular file"):
            load_run(trial_run)


@pytest.mark.parametrize("value", [None, 3, [["a"]], [[0.5]], [[0.5, 0.5]] * 3, {}])
def test_a_changed_stage_of_a_trial_is_one_line(trial_run, value):
    run = replace(load_run(trial_run), data={"train": noise_set(8), "test": noise_set(4)})
    (trial_run / "stages").mkdir()
    for name in ("arm-0-real", "quality-0"):
        store(trial_run / "stages" / f"{name}.json", {"value": value, "seconds": 0.0})
    with pytest.raises(DataError, match="stages/arm-0-real.json"):
        evaluate.arm_probabilities(run, noise_set(8), 0, None)
    with pytest.raises(DataError, match="stages/quality-0.json"):
        evaluate.quality_results(run, PLAN, noise_set(8), 0, None)


def test_status_names_a_broken_trial(trial_run):
    command = [Path(sys.executable).parent / "medgan-nb", "status"]

    def status() -> str:
        words = [*command, "--outputs", trial_run.parent.parent]
        return subprocess.run(words, capture_output=True, text=True, timeout=60).stdout

    assert status().endswith(": done\n")
    store(trial_run / "config.json", {"paper": "trial"})
    assert "unreadable: config.json" in status()


@pytest.mark.parametrize("pattern", ["(a+)+$", "((a|a)*)b", "(.*.*.*.*x)", "p(?:(x)){9}"])
def test_a_run_may_not_bring_an_endless_search(trial_run, tmp_path, pattern):
    config = load(trial_run / "config.json")
    config["settings"]["group_by"] = pattern
    config["data"]["simulated"] = False
    write_json(trial_run / "config.json", config)
    rehash(trial_run)
    (tmp_path / "mine" / "a").mkdir(parents=True)
    with time_limit(20), pytest.raises(DataError, match="it is not tried"):
        with_data(find_run(trial_run), tmp_path / "mine")


@pytest.mark.parametrize("size", [None, "64", 10**9, -1, 6.5])
def test_a_run_of_a_trial_may_not_ask_for_any_size(trial_run, tmp_path, size):
    config = load(trial_run / "config.json")
    config["settings"]["size"] = size
    write_json(trial_run / "config.json", config)
    rehash(trial_run)
    with pytest.raises(ConfigError, match="expected 8 to 1024 px"):
        with_data(find_run(trial_run))


def test_markup_in_every_place_of_a_trial_stays_text():
    row = {"name": "n", "value": 1.0, "value_low": 0.5, "value_high": 2.0, "real_baseline": 1.0}
    arm = {"title": "t", "accuracy": 1.0, "accuracy_low": 1.0, "accuracy_high": 1.0}
    arm |= {"difference": 1.0, "difference_low": 1.0, "difference_high": 1.0}
    content = {
        "decision": {"word": "w", "sentence": "s"},
        "data": {"name": "n", "simulated": True, "n_test": 9, "groups_test": 6},
        "plan": {"trainings": 3},
        "minutes": 18,
        "version": "0",
        "arms": [arm | {"p_value": 0.6, "mde": 3.0, "patients_needed": 150}],
        "quality": [row | {"copy_baseline": 0.0, "n": 9, "note": "note"}],
        "methods": "m",
    }
    content |= {k: ["x"] for k in ("next", "risks", "instruments", "facts", "plan_lines")}
    content |= {"references": ["r"]}
    shown = 0
    for place in places(content):
        if isinstance(value_at(content, place), str):
            page = trial_page(replaced(content, place, MARKUP), {})
            assert "<img src=x" not in page
            shown += "&lt;img src=x" in page.lower()
    assert shown >= 11 and "default-src 'none'" in page


# --- groups.csv


def test_a_named_pipe_for_groups_does_not_hang(tmp_path):
    noise = noise_set(4).pixels[:, 0].numpy()
    for k, pixels in enumerate(noise):
        write_png(tmp_path / "mine" / "ab"[k % 2] / f"{k}.png", pixels)
    os.mkfifo(tmp_path / "mine" / "groups.csv")
    with time_limit(20):
        with pytest.raises(DataError, match="groups.csv: not a regular file"):
            folder_set.load(tmp_path / "mine", 16)
        assert any(finding.fault for finding in check(tmp_path / "mine"))


def test_what_was_written_can_be_read(shared):
    assert read_json(shared / "model_card.json", dict)["accepted_risk"] == "a test"
