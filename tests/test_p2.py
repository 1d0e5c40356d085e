"""Study 2 as people run it: papermill, a grid by command, one's own folder of one class, and what cannot be met."""
import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medgan_nb.core import ConfigError
from medgan_nb.data import sources
from medgan_nb.study import p2, p2_tables
from medgan_nb.study.run import finished_runs, start

ROOT = Path(__file__).resolve().parent.parent
COMMAND = str(Path(sys.executable).parent / "medgan-nb")
TINY = {"preset": "smoke", "device": "cpu"}


@pytest.fixture(scope="module")
def batch(tmp_path_factory):
    "Two models at one size, by one command."
    outputs = tmp_path_factory.mktemp("p2")
    words = [COMMAND, "sweep", "p2", "-p", "preset=smoke", "-p", "dataset_size=50", "-p", "model=stylegan2,stylegan2_diffaugment",
             "--outputs", str(outputs)]
    done = subprocess.run(words, capture_output=True, text=True, cwd=outputs)
    assert done.returncode == 0, done.stderr
    assert subprocess.run([COMMAND, "report", "--outputs", str(outputs)], capture_output=True, text=True).returncode == 0
    return outputs


@pytest.mark.xdist_group("p2")
def test_every_number_comes_with_its_context(batch):
    runs = finished_runs(batch, "p2")
    assert len(runs) == 2
    for run in runs:
        for r in run.metrics["results"]:
            assert r["n"] and np.isfinite(r["value"])
            if r["table"] == "quality":
                assert r["floor"] is not None and r["copy"] is not None, r["column"]
            if r["column"].startswith(("FD", "FID", "KD", "KID")):
                assert r["extractor"] and r["low"] <= r["value"] <= r["high"]
            if r["table"] == "classifier":
                assert 0 <= r["low"] <= r["value"] <= r["high"] <= 100


@pytest.mark.xdist_group("p2")
def test_the_report_has_the_papers_tables_and_claims_nothing_on_simulated_images(batch):
    folder = batch / "report" / "p2"
    names = {"fid", "table1_js_ssim", "table2_classification", "leakage", "classifiers", "quality", "data", "audit"}
    assert names <= {path.stem for path in folder.glob("*.csv")}
    assert {"fig2_fid", "fig3_samples", "leakage", "fig1_architecture", "nearest_training_images"} <= {path.stem for path in folder.glob("*.png")}
    rows = {path.stem: list(csv.DictReader(open(path, newline=""))) for path in folder.glob("*.csv")}
    assert not any(r["verdict"] in ("inside", "outside") for table in rows.values() for r in table)
    assert any(r["row"] == "n = 50, StyleGAN2 DiffAug - StyleGAN2" for r in rows["fid"])
    assert any(r["column"] == "gain over copies (points)" for r in rows["table2_classification"])


@pytest.mark.xdist_group("p2")
def test_predictions_give_the_classifier_rows_again(batch):
    for run in finished_runs(batch, "p2"):
        kept = json.loads((run.folder / "predictions.json").read_text())
        for r in (r for r in run.metrics["results"] if r["table"] == "classifier" and not r["row"].startswith("split_by")):
            hits = np.array([list(map(int, fold)) for fold in kept["arms"][r["row"]]["calls"]]) == np.array(kept["labels"])
            assert r["value"] == pytest.approx(100 * hits.mean(), abs=1e-4)


def test_a_rival_has_the_same_count_and_steps(batch):
    for run in finished_runs(batch, "p2"):
        arms = json.loads((run.folder / "predictions.json").read_text())["arms"]
        assert [arms["copies100"][key] for key in ("n", "steps")] == [arms["synthetic100"][key] for key in ("n", "steps")]


def test_a_folder_of_one_class_runs_without_a_classifier(tmp_path):
    images = sources.load("simulated_ultrasound", size=32)
    (tmp_path / "mine" / "scans").mkdir(parents=True)
    for k in range(60):
        Image.fromarray(images.pixels[k, 0].numpy()).save(tmp_path / "mine" / "scans" / f"{k}.png")
    run = start(p2.STUDY, TINY | {"dataset": "folder", "data_dir": str(tmp_path / "mine"), "outputs": str(tmp_path / "outputs")})
    trained = p2.train_gan(run)
    synthetic = p2.synthesise(run, trained)
    left = p2.classify_arms(run, synthetic, progress=lambda text: None)
    run.finish(p2.results(run, synthetic, trained, left))
    assert left == {} and p2_tables.distance_name([run]) == "FD(random)"
    assert p2_tables.tables([run])["table2_classification"] == [] and p2_tables.reading([run])


@pytest.mark.parametrize("name, value, message", [
    ("dataset_size", 501, "501"), ("dataset_size", 3, "folds"), ("model", "cgan", "stylegan2_diffaugment"), ("split", "lesion", "group, image"),
    ("augpipe", "zoom", "augmentation pipe"), ("classifier", "vgg", "efficientnet_b2"), ("config", "big", "paper256"), ("size", 48, "48"),
    ("fit", "squash", "stretch")])
def test_a_wrong_request_is_one_line_before_any_training(tmp_path, name, value, message):
    with pytest.raises(ConfigError) as raised:
        start(p2.STUDY, TINY | {"outputs": str(tmp_path), name: value})
    assert message in str(raised.value) and "\n" not in str(raised.value)
    assert not list(tmp_path.iterdir())


def test_on_the_real_set(tmp_path, real_data):
    run = start(p2.STUDY, TINY | {"data_dir": str(real_data), "dataset_size": 100, "outputs": str(tmp_path)})
    counts = run.config["data"]["counts"]
    assert list(counts["test"].values()) == [157, 75, 48] and list(counts["train"].values()) == [56, 27, 17]
    assert not set(run.data["pool"].groups) & set(run.data["test"].groups)
    rows = {(r["row"], r["column"]): r["value"] for r in p2.leakage_rows(run.data["all"], 280, p2.SIZES, seeds=5)}
    assert rows["split by image, n = 500", "1-NN accuracy (%)"] > rows["split by group, n = 500", "1-NN accuracy (%)"] + 10
