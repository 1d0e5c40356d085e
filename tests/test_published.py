"""What is published can be traced: its numbers follow from the predictions beside them, and README
and report say the same.
"""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from medgan_nb.evaluation.scores import classification_metrics
from medgan_nb.experiments.run import config_hash, finished_runs
from medgan_nb.report.build import chosen
from medgan_nb.studies.common.results import results_of
from medgan_nb.studies.registry import STUDIES

ROOT = Path(__file__).resolve().parent.parent
PUBLISHED = ROOT / "outputs" / "published"
RUNS = [run for name in STUDIES for run in finished_runs(PUBLISHED, name)]


def test_something_is_published():
    assert len(RUNS) >= 10


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.id)
def test_numbers_follow_from_predictions(run):
    assert json.loads((run.folder / "metrics.json").read_text())["hash"] == config_hash(run.config)
    file = json.loads((run.folder / "predictions.json").read_text())
    columns = {
        "accuracy": "accuracy",
        "balanced accuracy": "balanced_accuracy",
        "F1": "f1",
        "AUC": "auc",
    }
    for result in results_of([run], "accuracy"):
        if result.metric in columns:
            logits = np.array(file["logits"][result.condition["arm"]])
            measured = classification_metrics(
                np.array(file["labels"]), logits, tuple(file["classes"])
            )
            assert measured[columns[result.metric]] == pytest.approx(result.value, abs=1e-4)
    for result in results_of([run], "classifier"):
        if result.metric == "micro-F1 (%)":
            part = file["splits"][result.condition["split"]]
            p = np.array(part["arms"][result.condition["arm"]]["probabilities"])
            correct = p.argmax(2) == np.array(part["labels"])
            assert 100 * correct.mean() == pytest.approx(result.value, abs=1e-4)
    assert run.config["data"]["simulated"] == (run.config["paper"] == "p1")


def test_no_folder_of_a_machine_is_named():
    for path in PUBLISHED.rglob("*"):
        if path.suffix in (".json", ".csv", ".jsonl", ".md"):
            assert not re.findall(
                r"/(?:home|root|Users|work|tmp|mnt|scratch)/", path.read_text()
            ), path


@pytest.mark.parametrize("name", [name for name in STUDIES if finished_runs(PUBLISHED, name)])
def test_report_says_what_the_runs_say(name):
    study = STUDIES[name]
    runs, source = chosen(study, ROOT / "nowhere")
    assert source == "published"
    for table, rows in study.tables(runs).items():
        text = (PUBLISHED / name / "report" / f"{table}.csv").read_text()
        assert len(text.splitlines()) == len(rows) + 1


def test_readme_is_what_docs_readme_writes(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    from claims import claims_table, published_cards, published_runs
    from hero import HERO, hero, same_picture
    from readme import readme_text
    from reference import escape_cell

    text = (ROOT / "README.md").read_text()
    assert text == readme_text(text) and len(text.splitlines()) <= 120
    runs = published_runs()
    cards = published_cards(runs)
    assert claims_table(cards) in text
    assert all(escape_cell(card.claim) in text for card in cards)
    assert all(escape_cell(card.answer) in text for card in cards if card.basis)
    assert readme_text(text.replace(cards[0].claim, "another claim")) == text
    assert same_picture(HERO.read_bytes(), hero(cards)[0])
    assert HERO.stat().st_size < 400_000


def test_no_weights_and_nothing_large():
    files = [p for p in PUBLISHED.rglob("*") if p.is_file()]
    assert {p.suffix for p in files} <= {".json", ".jsonl", ".csv", ".png", ".webp", ".md"}
    assert max(p.stat().st_size for p in files) < 1_000_000
