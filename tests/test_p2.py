"""Study 2 as people run it: papermill, a grid by command, one's own folder of one class, and what
cannot be met.
"""

import csv
import hashlib
import json
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import roc_auc_score

from medgan_nb.core.errors import ConfigError, MedganError
from medgan_nb.core.weights import PublishedFile
from medgan_nb.data.formats.images import write_png
from medgan_nb.data.splits import fixed_test_split
from medgan_nb.datasets import registry as sources
from medgan_nb.evaluation.classification import Arm
from medgan_nb.evaluation.probe import cached_features, fit_probe
from medgan_nb.evaluation.scores import classification_metrics
from medgan_nb.experiments.run import finished_runs, start_run
from medgan_nb.metrics.features import efficientnet_lite_features
from medgan_nb.models import classifiers
from medgan_nb.studies.common.results import from_row, results_of, select, to_rows
from medgan_nb.studies.p2 import evaluate, grid, leakage, narrative, study, tables

ROOT = Path(__file__).resolve().parent.parent
COMMAND = str(Path(sys.executable).parent / "medgan-nb")
TINY = {"preset": "smoke", "device": "cpu"}


@pytest.fixture(scope="module")
def batch(smoke_outputs, tmp_path_factory):
    "Two models at one size."
    outputs = tmp_path_factory.mktemp("p2") / "outputs"
    shutil.copytree(smoke_outputs("p2"), outputs)
    words = ("sweep", "p2", "-p", "preset=smoke", "-p", "dataset_size=50", "-p", "model=stylegan2")
    for command in (words, ("report",)):
        call = [COMMAND, *command, "--outputs", str(outputs)]
        done = subprocess.run(call, capture_output=True, text=True, cwd=outputs)
        assert done.returncode == 0, done.stderr
    return outputs


@pytest.mark.xdist_group("p2")
def test_every_number_comes_with_its_context(batch):
    runs = finished_runs(batch, "p2")
    assert len(runs) == 2
    for run in runs:
        for row in run.metrics["results"]:
            r = from_row(row)
            assert r.n and np.isfinite(r.value)
            assert r.study == "p2" and r.seed is not None and r.condition
            if r.table == "quality":
                assert r.real_baseline is not None and r.copy_baseline is not None, r.metric
            if r.metric in ("FD", "KID"):
                assert r.feature_network
                assert r.reference_split == "all" or r.ci_low <= r.value <= r.ci_high
            if r.metric in ("micro-F1 (%)", "recall (%)"):
                assert 0 <= r.ci_low <= r.value <= r.ci_high + 1e-9 <= 100 + 1e-9
            if r.table == "classifier":
                trained = r.condition["arm"] in evaluate.ARMS
                assert (r.n_runs, r.feature_network) == ((1, "probe") if trained else (0, None))


@pytest.mark.xdist_group("p2")
def test_the_report_has_the_papers_tables_and_claims_nothing_on_simulated_images(batch):
    folder = batch / "report" / "p2"
    names = {
        "distance",
        "table1_js_ssim",
        "table2_classification",
        "leakage",
        "classifiers",
        "quality",
        "data",
        "audit",
    }
    assert names <= {path.stem for path in folder.glob("*.csv")}
    assert {
        "fig2_distance",
        "fig3_samples",
        "leakage",
        "fig1_architecture",
        "nearest_training_images",
    } <= {path.stem for path in folder.glob("*.png")}
    rows = {
        path.stem: list(csv.DictReader(open(path, newline=""))) for path in folder.glob("*.csv")
    }
    verdicts = {row["verdict"] for table in rows.values() for row in table}
    assert not verdicts & {"consistent", "inconsistent", "supported", "contradicted"}
    order = [r for r in rows["distance"] if "less = StyleGAN2" in r["condition"]]
    assert {r["verdict"] for r in order} == {"single run"}
    assert any("copies100" in r["condition"] for r in rows["table2_classification"])


@pytest.mark.xdist_group("p2")
def test_the_card_and_the_papers_tables(batch):
    runs = finished_runs(batch, "p2")
    card = study.STUDY.card(runs)
    assert card.verdict == "single run" and card.simulated and "single run" not in card.answer
    first, *made = [label for label, _ in card.samples]
    assert first.startswith("simulated") and [name.split(",")[0] for name in made] == [
        "StyleGAN2",
        "StyleGAN2 ADA",
    ]
    assert card.columns == ("benign", "malignant", "normal")
    assert all(strip.shape == (32, 6 * 32) for _, strip in card.samples)
    assert "StyleGAN2 ADA changes FD(efficientnet_lite0-96px) to held-out by" in card.answer
    paper = study.STUDY.paper_tables(runs)
    cells = {heading: row for heading, row in paper["table2"].rows}
    assert [cell.paper for cell in cells["50 images"]] == [59.36, 69.64, 66.71]
    assert [cell.paper for cell in paper["fid"].rows[0][1]] == [219.8, 166.98]
    verdicts = {c.verdict for t in paper.values() for _, row in t.rows for c in row if c}
    assert not verdicts & {"consistent", "inconsistent"}


@pytest.mark.xdist_group("p2")
def test_predictions_give_the_classifier_results_again(batch):
    for run in finished_runs(batch, "p2"):
        file = json.loads((run.folder / "predictions.json").read_text())
        splits, results = file["splits"], results_of([run], "classifier")
        for r in results:
            part = splits[r.condition["split"]]
            p = np.array(part["arms"][r.condition["arm"]]["probabilities"])
            labels = np.array(part["labels"])
            correct = p.argmax(2) == labels
            if r.metric == "micro-F1 (%)":
                assert r.value == pytest.approx(100 * correct.mean(), abs=1e-4)
            if r.metric == "recall (%)":
                own = labels == file["classes"].index(r.condition["class"])
                assert r.value == pytest.approx(100 * correct[:, own].mean(), abs=1e-4)
            if r.metric == "AUC":
                mean = np.mean(
                    [
                        roc_auc_score(labels, q, multi_class="ovr")
                        for q in p / p.sum(2, keepdims=True)
                    ]
                )
                assert r.value == pytest.approx(mean, abs=1e-3)
        metrics = {r.metric for r in results}
        assert {"macro-F1 (%)", "balanced accuracy (%)", "AUC", "recall (%)"} < metrics


@pytest.mark.xdist_group("p2")
def test_a_control_has_the_same_count_and_steps(batch):
    for run in finished_runs(batch, "p2"):
        splits = json.loads((run.folder / "predictions.json").read_text())["splits"]
        arms = splits[run.settings["split"]]["arms"]
        copies, synthetic = (arms[name] for name in ("copies100", "synthetic100"))
        assert (copies["n"], copies["steps"]) == (synthetic["n"], synthetic["steps"])


def finished(run):
    "A run of study 2, to its end."
    trained = study.train_gan(run)
    synthetic = study.generate_images(run, trained)
    arms = evaluate.train_arms(run, synthetic, progress=lambda text: None)
    run.finish(to_rows(evaluate.results(run, synthetic, trained, arms)))
    return arms


@pytest.mark.parametrize("model", study.MODELS)
def test_the_figure_of_the_system_knows_every_model(model):
    "A long run of two models ended there once."
    data = {"train": SimpleNamespace(classes=("benign", "malignant", "normal"))}
    config = {"params": {"model": model}}
    run = SimpleNamespace(config=config, settings=study.PRESETS["short"], data=data)
    boxes, arrows = study.system(run)
    assert set(boxes) == {end for start, stop, _ in arrows for end in (start, stop)}


def test_a_folder_of_one_class_runs_without_a_classifier(tmp_path):
    images = sources.load("simulated_ultrasound", size=32)
    (tmp_path / "mine" / "scans").mkdir(parents=True)
    for k in range(60):
        Image.fromarray(images.pixels[k, 0].numpy()).save(tmp_path / "mine" / "scans" / f"{k}.png")
    run = start_run(
        study.STUDY,
        TINY
        | {
            "dataset": "folder",
            "data_dir": str(tmp_path / "mine"),
            "outputs": str(tmp_path / "outputs"),
        },
    )
    assert all(part["arms"] == {} for part in finished(run).values())
    assert grid.main_network(results_of([run], "quality")) == "efficientnet_lite0-96px"
    assert tables.tables([run])["table2_classification"] == [] and narrative.narrative([run])


def own_folder(root, classes, n, per_group=1):
    "A folder of noise, n images a class; groups.csv where several are of one patient."
    draw, lines = np.random.default_rng(0), ["id,group"]
    for name in classes:
        (root / name).mkdir(parents=True)
        for k in range(n):
            Image.fromarray(draw.integers(0, 255, (40, 40)).astype(np.uint8)).save(
                root / name / f"{k}.png"
            )
            lines.append(f"{name}/{k}.png,{name}{k // per_group}")
    if per_group > 1:
        (root / "groups.csv").write_text("\n".join(lines) + "\n")
    return {"dataset": "folder", "data_dir": str(root)}


def test_groups_that_do_not_come_out_even(tmp_path):
    run = start_run(
        study.STUDY,
        TINY
        | own_folder(tmp_path / "mine", "ab", 48, per_group=7)
        | {"gan_kimg": 0.04, "outputs": str(tmp_path / "outputs")},
    )
    train, test = run.data["train"], run.data["test"]
    assert not set(train.groups) & set(test.groups) and len(train) + len(test) == 96
    finished(run)
    small = select(results_of([run], "leakage"), leakage.CLASSIFIER)
    assert {r.condition["split"] for r in small} == {"image", "group"}


@pytest.mark.parametrize(
    "classes, n, per_group, message",
    [
        ("a", 1, 1, "1 images; expected enough"),
        ("ab", 2, 1, "folds"),
        ("a", 5, 1, "expected 6 or more"),
        ("ab", 6, 1, "4 test images out of 12"),
        ("ab", 30, 30, "class a has 1 groups"),
    ],
)
def test_too_few_images_are_said_before_any_training(tmp_path, classes, n, per_group, message):
    with pytest.raises(MedganError) as raised:
        start_run(
            study.STUDY,
            TINY
            | own_folder(tmp_path / "mine", classes, n, per_group)
            | {"outputs": str(tmp_path / "outputs")},
        )
    assert message in str(raised.value) and "\n" not in str(raised.value)
    assert not (tmp_path / "outputs").exists()


@pytest.mark.xdist_group("p2")
def test_the_classifier_is_scored_under_both_splits_at_every_size(batch):
    for run in finished_runs(batch, "p2"):
        small = select(results_of([run], "leakage"), leakage.CLASSIFIER)
        conditions = {(r.condition["split"], r.condition["n_train"]) for r in small}
        assert conditions == {(split, n) for split in ("image", "group") for n in study.SIZES}
        assert all(0 <= r.value <= 100 for r in small)


def test_weights_put_by_hand_are_checked_by_hash_and_used(tmp_path, monkeypatch):
    torchvision = pytest.importorskip("torchvision")
    torch.manual_seed(5)
    state = torchvision.models.efficientnet_b2(weights=None).state_dict()
    (tmp_path / "hand").mkdir()
    torch.save(state, tmp_path / "hand" / "b2.pth")
    content = (tmp_path / "hand" / "b2.pth").read_bytes()
    source = PublishedFile("http://127.0.0.1:9/b2.pth", hashlib.sha256(content).hexdigest())
    run = start_run(
        study.STUDY, TINY | {"classifier": "efficientnet_b2", "outputs": str(tmp_path / "outputs")}
    )
    arm = Arm(
        "real",
        "real",
        run.data["train"].select(np.arange(0, 100, 12)),
        evaluate.train_config(run.settings, 8),
    )

    def record(folder):
        monkeypatch.setitem(
            classifiers.CLASSIFIERS,
            "efficientnet_b2",
            partial(classifiers.efficientnet_b2, source=source, folder=folder),
        )
        test = run.data["test"].select(np.arange(0, 280, 30))
        return evaluate._train_one(run, arm, run.data["train"].select([1, 30, 45]), test, 0)

    used = record(tmp_path / "hand")
    assert (used["classifier"], used["note"]) == ("efficientnet_b2", "")
    given = classifiers.build_classifier("efficientnet_b2", 3, 32)[0].backbone.network.state_dict()
    assert all(torch.equal(given[name], state[name]) for name in given)
    absent = record(tmp_path / "nowhere")
    assert absent["classifier"] == "efficientnet_lite2"
    assert absent["note"].startswith("efficientnet_lite2 in place of efficientnet_b2:")
    assert "not there and not fetched from http://127.0.0.1:9/b2.pth" in absent["note"]
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "b2.pth").write_bytes(content[:-1] + b"x")
    refused = record(tmp_path / "other")
    assert refused["classifier"] == "efficientnet_lite2"
    assert f"expected {source.sha256[:16]}" in refused["note"]


@pytest.mark.parametrize(
    "name, value, message",
    [
        ("dataset_size", 501, "501"),
        ("dataset_size", 3, "folds"),
        ("model", "cgan", "stylegan2_diffaugment"),
        ("split", "lesion", "group, image"),
        ("augpipe", "zoom", "augmentation pipe"),
        ("classifier", "vgg", "efficientnet_b2"),
        ("stylegan2_config", "big", "paper256"),
        ("size", 48, "48"),
        ("resize_mode", "squash", "stretch"),
        ("seed", -1, "4 294 967 295"),
        ("gan_kimg", -1.0, "gan_kimg is -1.0"),
        ("gan_kimg", float("nan"), "gan_kimg is nan"),
        ("classifier_epochs", -3, "classifier_epochs"),
        ("clf_epochs", 3, "clf_epochs is now called classifier_epochs"),
        ("dataset_size", 100000, "expected 1 to 500"),
        ("dataset_size", -5, "-5"),
    ],
)
def test_a_wrong_request_is_one_line_before_any_training(tmp_path, name, value, message):
    with pytest.raises(ConfigError) as raised:
        start_run(study.STUDY, TINY | {"outputs": str(tmp_path), name: value})
    assert message in str(raised.value) and "\n" not in str(raised.value)
    assert not list(tmp_path.iterdir())


def test_on_the_real_set(tmp_path, real_data):
    run = start_run(
        study.STUDY,
        TINY | {"data_dir": str(real_data), "dataset_size": 100, "outputs": str(tmp_path)},
    )
    counts = run.config["data"]["counts"]
    assert list(counts["test"].values()) == [157, 75, 48] and list(counts["train"].values()) == [
        56,
        27,
        17,
    ]
    assert not set(run.data["pool"].groups) & set(run.data["test"].groups)
    ways = leakage.groupings(run.data["all"], str(real_data))
    images = {way: grouped for way, grouped in ways.items() if way != "image"}
    n_groups = {way: len(set(grouped.groups)) for way, grouped in images.items()}
    assert n_groups["group, strict"] > n_groups["group"] > n_groups["group, loose"]
    assert abs(n_groups["group"] - (780 - 330 + 149)) <= 8
    results = leakage.nearest_neighbor_results(ways, 280, study.SIZES, n_splits=5)
    by_split = {
        split: select(results, leakage.NEAREST, split=split, n_train=500)[0].value for split in ways
    }
    assert by_split["image"] > by_split["group"] + 10
    assert by_split["image"] > by_split["group, strict"] > by_split["group"]


def test_a_probe_learns_on_the_real_set(real_data):
    "Mean of three splits by group at 64 px, images resized to 128 px for the network."
    images = sources.load("busi", real_data, size=64, resize_mode="stretch")
    features_of = cached_features(efficientnet_lite_features(size=128))
    scores = {}
    for n in (500, 100):
        for split_seed in range(3):
            parts = fixed_test_split(images, 280, n, split_seed)
            train, test = parts["train"], parts["test"]
            probe = fit_probe(
                features_of(train), train.labels, train.groups, class_weight="balanced"
            )
            logits = probe.logits(features_of(test))
            scores[n, split_seed] = classification_metrics(test.labels, logits, test.classes)
    accuracy = {n: np.mean([scores[n, k]["accuracy"] for k in range(3)]) for n in (500, 100)}
    normal = {n: np.mean([scores[n, k]["recall"]["normal"] for k in range(3)]) for n in (500, 100)}
    assert accuracy[500] >= 0.68 and accuracy[100] >= 0.58 and min(normal.values()) > 0.4


def test_ways_to_split_busi(tmp_path):
    "The folder is read the first time, and the rows are kept with the run."
    rng = np.random.default_rng(0)
    for name in ("benign", "malignant", "normal"):
        for k in range(1, 21):
            stem = tmp_path / "Dataset_BUSI_with_GT" / name / f"{name} ({k})"
            blocks = rng.integers(0, 256, (8, 8), dtype=np.uint8)
            write_png(f"{stem}.png", np.kron(blocks, np.ones((4, 4), np.uint8)))
            mask = np.zeros((32, 32), np.uint8)
            mask[8:20, 8:20] = 255 * (name != "normal")
            write_png(f"{stem}_mask.png", mask)
    given = TINY | {"data_dir": str(tmp_path), "dataset_size": 20, "outputs": str(tmp_path / "out")}
    run = start_run(study.STUDY, given)
    rows = to_rows(evaluate.leakage_results(run, str(tmp_path)))
    ways = {row["condition"]["split"] for row in rows}
    assert ways == {"image", "group", "group, strict", "group, loose"}
    assert to_rows(evaluate.leakage_results(run)) == rows
