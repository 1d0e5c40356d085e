"Copies of a finished run, and what can be wrong with the files of one."

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from medgan_nb.core.errors import MedganError
from medgan_nb.core.files import read_json, write_json
from medgan_nb.experiments.run import config_hash, run_id

FILES = ("config.json", "metrics.json", "predictions.json", "log.jsonl", "progress.json")
MARKUP = "<img src=x onerror=alert(1)>"


def copy_run(run: Path, outputs: Path, seed: int) -> Path:
    "A copy of a run under another seed, with the numbers of the first and no weights or images."
    config, metrics = read_json(run / "config.json"), read_json(run / "metrics.json")
    for part in (config, metrics):
        part["params"] = part["params"] | {"seed": seed}
    folder = outputs / config["paper"] / run_id(config)
    folder.mkdir(parents=True)
    for name in ("predictions.json", "log.jsonl", "executed.ipynb", "progress.json"):
        shutil.copy(run / name, folder / name)
    if (run / "leases").is_dir():
        shutil.copytree(run / "leases", folder / "leases")
    write_json(folder / "config.json", config)
    write_json(folder / "metrics.json", metrics | {"hash": config_hash(config)})
    return folder


def places(value, place: tuple = ()) -> Iterator[tuple]:
    "The path of every value in plain data, the first two of a list only."
    yield place
    if isinstance(value, dict):
        for key, item in value.items():
            yield from places(item, (*place, key))
    elif isinstance(value, list):
        for key, item in enumerate(value[:2]):
            yield from places(item, (*place, key))


def replaced(value, place: tuple, new):
    "Plain data with another value at a place."
    if not place:
        return new
    key, *rest = place
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[key] = replaced(value[key], tuple(rest), new)
    return copy


def removed(value, place: tuple):
    "Plain data without what was at a place."
    if len(place) == 1:
        copy = dict(value) if isinstance(value, dict) else list(value)
        del copy[place[0]]
        return copy
    return replaced(value, place[:1], removed(value[place[0]], place[1:]))


def load(path: Path):
    "The content of a JSON file, or the lines of a .jsonl file."
    text = path.read_text(encoding="utf-8")
    return (
        [json.loads(line) for line in text.splitlines()]
        if path.suffix == ".jsonl"
        else json.loads(text)
    )


def store(path: Path, value) -> None:
    "Write plain data as it is, valid or not, without the care of the package."
    if path.suffix == ".jsonl" and isinstance(value, list):
        text = "".join(json.dumps(line) + "\n" for line in value)
    else:
        text = json.dumps(value)
    path.write_text(text, encoding="utf-8")


def rehash(folder: Path) -> None:
    "Make metrics.json belong to a config.json that was changed."
    try:
        config, metrics = load(folder / "config.json"), load(folder / "metrics.json")
        store(folder / "metrics.json", metrics | {"hash": config_hash(config)})
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, MedganError):
        pass


def make_fifo(path: Path) -> None:
    "A named pipe in the place of a file: whoever opens it to read waits for ever."
    path.unlink(missing_ok=True)
    os.mkfifo(path)
