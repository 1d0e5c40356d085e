"""Study 3 as people run it: by command on simulated mammograms, without classes, on mini-MIAS, and what may be published of it."""

import csv
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from medgan_nb.core.errors import ConfigError
from medgan_nb.experiments.run import finished_runs, start_run
from medgan_nb.report.build import publish
from medgan_nb.studies.p3 import evaluate as p3_measure
from medgan_nb.studies.p3 import figures as p3_figures
from medgan_nb.studies.p3 import study as p3
from medgan_nb.studies.p3 import tables as p3_tables

COMMAND = str(Path(sys.executable).parent / "medgan-nb")
REAL = os.environ.get("MEDGAN_DATA", "")


@pytest.fixture(scope="module")
def batch(tmp_path_factory):
    "The smallest preset, by one command."
    outputs = tmp_path_factory.mktemp("p3")
    done = subprocess.run(
        [COMMAND, "reproduce", "p3", "--preset", "smoke", "--outputs", str(outputs)],
        capture_output=True,
        text=True,
        cwd=outputs,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return outputs


@pytest.mark.xdist_group("p3")
def test_every_number_has_its_context(batch):
    (run,) = finished_runs(batch, "p3")
    for r in run.metrics["results"]:
        assert np.isfinite(r["value"]), r
        if r["table"] == "table1":
            assert r["floor"] is not None and r["copy"] is not None, r["column"]
        if r["column"].startswith(("FD", "FID", "KD", "KID")):
            assert r["extractor"], r
    assert {r["table"] for r in run.metrics["results"]} == {
        "table1",
        "table2",
        "texture",
        "diversity",
        "readers",
        "stability",
        "training",
    }


@pytest.mark.xdist_group("p3")
def test_the_report_has_all_tables_and_figures_and_no_number_of_the_thesis(batch):
    folder = batch / "report" / "p3"
    tables = {
        path.stem: list(csv.DictReader(open(path, newline=""))) for path in folder.glob("*.csv")
    }
    assert {
        "table1",
        "table2",
        "texture",
        "diversity",
        "readers",
        "reader_differences",
        "stability",
        "data",
        "thesis",
    } <= set(tables)
    assert {f"fig{k}" for k in range(1, 9)} <= {
        path.stem.split("_")[0] for path in folder.glob("*.png")
    }
    assert not any(row["paper"] for rows in tables.values() for row in rows)
    assert len(tables["thesis"]) == 10


def test_no_woman_is_in_two_parts_with_any_seed():
    films = p3.load_films("simulated_mammogram", "", 32)
    for seed in range(20):
        parts = p3.split_women(films, seed)
        assert not set(parts["train"].groups) & set(parts["test"].groups)
        assert sum(map(len, parts.values())) == len(films)
        share = np.array(list(parts["test"].counts().values())) / np.array(
            list(films.counts().values())
        )
        assert (np.abs(share - 0.2) < 0.05).all(), parts["test"].counts()


def test_without_classes_the_reader_gets_no_generated_films(tmp_path):
    run = start_run(
        p3.STUDY, {"preset": "smoke", "cond": "none", "outputs": str(tmp_path), "device": "cpu"}
    )
    trained = p3.train_gan(run)
    synthetic = p3.synthesise(run, trained)
    left = p3_measure.read_arms(run, synthetic, progress=lambda text: None)
    assert trained.recipe.n_classes == 0 and synthetic.classes == ("generated",)
    assert set(left) == {"real", "copies100", "classic100", "copies200"}
    run.finish(p3_measure.reader_rows(run, left))
    assert {row["row"] for row in p3_tables.difference_table([run])} == {
        "copies100 - real [cond=none]",
        "classic100 - real [cond=none]",
    }


def test_published_runs_show_no_patient(tmp_path):
    run = start_run(p3.STUDY, {"preset": "smoke", "outputs": str(tmp_path / "runs"), "device": "cpu"})
    run.config["data"]["simulated"] = False
    p3_figures.keep(run, p3_figures.system(), "fig1_system")
    p3_figures.keep(run, p3_figures.system(), "fig4_mix", real=True)
    fake = replace(run.data["train"], ids=[f"synthetic/{k}" for k in range(len(run.data["train"]))])
    left = p3_measure.read_arms(run, fake, progress=lambda text: None)
    run.finish(p3_measure.reader_rows(run, left))
    publish(p3.STUDY, tmp_path / "runs", tmp_path / "public")
    names = {path.name for path in (tmp_path / "public").rglob("*") if path.is_file()}
    assert "fig1_system.png" in names and "fig4_mix.png" not in names


@pytest.mark.skipif(
    not (Path(REAL) / "all-mias").is_dir(), reason="MEDGAN_DATA names no folder with all-mias"
)
def test_mini_mias_by_woman():
    config, parts = p3.configure({"preset": "short", "data_dir": REAL})
    assert (
        config["data"]["published"]["all"] == {"normal": 207, "benign": 63, "malignant": 52}
        and config["data"]["women"]["all"] == 161
    )
    assert (
        not set(parts["train"].groups) & set(parts["test"].groups)
        and config["params"]["dataset"] == "mini_mias"
    )


def test_six_films_are_enough(tmp_path):
    run = start_run(
        p3.STUDY, {"preset": "smoke", "dataset_size": 6, "outputs": str(tmp_path), "device": "cpu"}
    )
    synthetic = p3.synthesise(run, p3.train_gan(run))
    rows = (
        p3_measure.table1_rows(run, synthetic)
        + p3_measure.diversity_rows(run, synthetic)
        + p3_measure.texture_rows(run, synthetic)
    )
    assert all(np.isfinite(row["value"]) for row in rows)
    assert (run.folder / "raw.safetensors").exists() and list(
        p3_measure.read_arms(run, synthetic, progress=lambda text: None)
    ) == list(p3_measure.ARMS)


def test_what_cannot_be_met_is_refused():
    for asked, said in (
        ({"size": 48}, "size is 48"),
        ({"dataset_size": 10_000}, "dataset_size is 10000"),
        ({"dataset_size": 5}, "expected 6 films or more"),
        ({"seed": -1}, "seed is -1"),
        ({"gan_epochs": -3}, "gan_epochs is -3"),
        ({"model": "stylegan2"}, "hybrid_stem"),
        ({"betas": "adam"}, "expected one of: wgan, dcgan"),
        ({"preset": "paper"}, "give data_dir"),
        ({"dataset": "chest_xray"}, "data_dir"),
    ):
        with pytest.raises(ConfigError, match=said):
            p3.configure({"preset": "smoke"} | asked)
