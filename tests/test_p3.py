"""Study 3 as people run it: by command on simulated mammograms, without classes, on mini-MIAS, and
what may be published of it.
"""

import csv
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from medgan_nb.core.errors import ConfigError
from medgan_nb.experiments.run import finished_runs, start_run
from medgan_nb.report.build import publish
from medgan_nb.studies.common.results import of_run, results_of, to_rows
from medgan_nb.studies.common.strips import keep_figure
from medgan_nb.studies.p3 import classifiers, evaluate, figures, study, tables

REAL = os.environ.get("MEDGAN_DATA", "")


@pytest.fixture(scope="module")
def batch(smoke_outputs):
    "The smallest preset, by one command."
    return smoke_outputs("p3")


@pytest.mark.xdist_group("p3")
def test_every_number_has_its_context(batch):
    (run,) = finished_runs(batch, "p3")
    for r in results_of([run]):
        assert np.isfinite(r.value), r
        if r.table == "table1":
            assert r.real_baseline is not None and r.copy_baseline is not None, r.metric
        if r.metric in ("FD", "KID"):
            assert r.feature_network, r
    assert {r.table for r in results_of([run])} == {
        *tables.MEASURED,
        "stability",
        "probe",
        "calibration",
    }


@pytest.mark.xdist_group("p3")
def test_the_report_has_all_tables_and_figures_and_no_number_of_the_thesis(batch):
    folder = batch / "report" / "p3"
    report = {
        path.stem: list(csv.DictReader(open(path, newline=""))) for path in folder.glob("*.csv")
    }
    assert {
        "table1",
        "table2",
        "texture",
        "diversity",
        "classifiers",
        "classifier_differences",
        "stability",
        "data",
        "thesis",
    } <= set(report)
    assert {f"fig{k}" for k in range(1, 9)} <= {
        path.stem.split("_")[0] for path in folder.glob("*.png")
    }
    assert not any(row["paper"] for rows in report.values() for row in rows)
    assert len(report["thesis"]) == 10


@pytest.mark.xdist_group("p3")
def test_the_card_and_the_tables_of_the_thesis(batch):
    runs = finished_runs(batch, "p3")
    card = study.STUDY.card(runs)
    assert (card.verdict, card.simulated) == ("single run", True)
    assert [label for label, _ in card.samples][1:] == ["WGAN-GP, stem"]
    assert "of 16 modes" in card.answer and card.basis.startswith("simulated mammograms")
    paper = study.STUDY.paper_tables(runs)
    assert [heading for heading, _ in paper["table2"].rows][:2] == ["real images", "none"]
    cells = [c for t in paper.values() for _, row in t.rows for c in row if not isinstance(c, str)]
    assert len(cells) > 50 and all(c.paper is None for c in cells)


def test_no_patient_is_in_two_parts_with_any_seed():
    images = study.load_images("simulated_mammogram", "", 32)
    for seed in range(20):
        parts = study.split_patients(images, seed)
        assert not set(parts["train"].groups) & set(parts["test"].groups)
        assert sum(map(len, parts.values())) == len(images)
        counts, total = (np.array(list(p.counts().values())) for p in (parts["test"], images))
        assert (np.abs(counts / total - 0.2) < 0.05).all(), parts["test"].counts()


def test_without_classes_the_classifier_gets_no_generated_images(tmp_path):
    given = {"preset": "smoke", "conditioning": "none", "outputs": str(tmp_path), "device": "cpu"}
    run = start_run(study.STUDY, given)
    trained = study.train_gan(run)
    synthetic = study.generate_images(run, trained)
    arms = classifiers.train_arms(run, synthetic, progress=lambda text: None)
    assert trained.recipe.n_classes == 0 and synthetic.classes == ("generated",)
    assert set(arms) == {"real", "copies100", "classic100", "copies200"}
    run.finish(to_rows(of_run(run, classifiers.classifier_arm_results(run, arms), "model")))
    conditions = [c.result.condition for c in tables.difference_table([run])]
    assert [c["arm"] for c in conditions] == ["copies100", "classic100"]
    assert {c["conditioning"] for c in conditions} == {"none"}


def test_published_runs_show_no_patient(tmp_path):
    run = start_run(
        study.STUDY, {"preset": "smoke", "outputs": str(tmp_path / "runs"), "device": "cpu"}
    )
    params = run.config["params"] | {"dataset": "mini_mias"}
    of_patients = replace(run, config=run.config | {"params": params})
    keep_figure(of_patients, figures.system(), "fig1_system")
    keep_figure(of_patients, figures.system(), "fig4_mix", shows_images=True)
    fake = replace(run.data["train"], ids=[f"synthetic/{k}" for k in range(len(run.data["train"]))])
    arms = classifiers.train_arms(run, fake, progress=lambda text: None)
    run.finish(to_rows(of_run(run, classifiers.classifier_arm_results(run, arms), "model")))
    publish(study.STUDY, tmp_path / "runs", tmp_path / "public")
    names = {path.name for path in (tmp_path / "public").rglob("*") if path.is_file()}
    assert "fig1_system.png" in names and "fig4_mix.png" not in names


@pytest.mark.skipif(
    not (Path(REAL) / "all-mias").is_dir(), reason="MEDGAN_DATA names no folder with all-mias"
)
def test_mini_mias_by_patient():
    config, parts = study.configure({"preset": "short", "data_dir": REAL})
    assert (
        config["data"]["published"]["all"] == {"normal": 207, "benign": 63, "malignant": 52}
        and config["data"]["patients"]["all"] == 161
    )
    assert (
        not set(parts["train"].groups) & set(parts["test"].groups)
        and config["params"]["dataset"] == "mini_mias"
    )


def test_six_images_are_enough(tmp_path):
    run = start_run(
        study.STUDY,
        {"preset": "smoke", "dataset_size": 6, "outputs": str(tmp_path), "device": "cpu"},
    )
    synthetic = study.generate_images(run, study.train_gan(run))
    results = (
        evaluate.table1_results(run, synthetic)
        + evaluate.diversity_results(run, synthetic)
        + evaluate.texture_results(run, synthetic)
    )
    assert all(np.isfinite(r.value) for r in results)
    assert (run.folder / "raw.safetensors").exists()
    arms = classifiers.train_arms(run, synthetic, progress=lambda text: None)
    assert list(arms) == list(classifiers.ARMS)


def test_what_cannot_be_met_is_refused():
    for asked, said in (
        ({"size": 48}, "size is 48"),
        ({"dataset_size": 10_000}, "dataset_size is 10000"),
        ({"dataset_size": 5}, "expected 6 images or more"),
        ({"seed": -1}, "seed is -1"),
        ({"gan_epochs": -3}, "gan_epochs is -3"),
        ({"model": "stylegan2"}, "hybrid_stem"),
        ({"adam_betas": "adam"}, "expected one of: wgan, dcgan"),
        ({"betas": "wgan"}, "betas is now called adam_betas"),
        ({"preset": "paper"}, "give data_dir"),
        ({"dataset": "chest_xray"}, "data_dir"),
    ):
        with pytest.raises(ConfigError, match=said):
            study.configure({"preset": "smoke"} | asked)
