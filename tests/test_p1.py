"""Paper 1: a growing network killed in the middle of a fade, a NaN in the terms that compare G with
real images, and the set on real scans.
"""

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from medgan_nb.core.errors import TrainingError
from medgan_nb.core.files import read_jsonl
from medgan_nb.experiments.run import finished_runs
from medgan_nb.studies.p1 import study as p1
from medgan_nb.training.loop import train
from medgan_nb.training.recipe import declared

CHILD = """
import os, signal, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from tests.test_p1 import grown

def kill_at(step):
    return lambda state, log: os.kill(os.getpid(), signal.SIGKILL) if state.step == step else None

grown(Path(sys.argv[1]), [kill_at(int(sys.argv[2]))])
"""


def lesions():
    "Simulated: ramps of two classes, two views each."
    from medgan_nb.data.dataset import ImageSet, to_pixels

    g = torch.Generator().manual_seed(0)
    pixels = to_pixels(
        torch.rand(24, 1, 1, 1, generator=g)
        * torch.linspace(-1, 1, 32).view(1, 1, 32, 1).expand(24, 1, 32, 32)
    )
    return ImageSet(
        pixels,
        [0, 1] * 12,
        p1.CLASSES,
        np.arange(24) // 2,
        range(24),
        masks=pixels > 128,
        name="ramps",
        simulated=True,
    )


def small(**changes):
    "The recipe of Model 0 at a sixteenth of its width, growing from 16 to 32 px."
    settings = (
        p1.OPTIONS
        | p1.PRESETS["smoke"]
        | {"growing": "from16", "batch_size": 4, "n_critic": 1}
        | changes
    )
    return p1.build_recipe("m0", settings)


def grown(folder, hooks=()):
    "80 steps with a fade from step 22 on; a checkpoint every other step."
    from medgan_nb.models.classifiers import SmallCNN
    from medgan_nb.studies.p1.callbacks import AuxClassifier, Curves
    from medgan_nb.training.callbacks import GrowthSchedule

    torch.set_num_threads(1)
    images = lesions()
    watch = {
        "aux": lambda: AuxClassifier("small_cnn", SmallCNN(32, 2), 32),
        "curves": lambda: Curves(images, images, 0, most=8),
        "growth": lambda: GrowthSchedule((16, 32), "fd", patience=1.0),
    }
    return train(
        small(),
        images,
        kimg=0.32,
        folder=folder,
        precision="fp32",
        ticks=40,
        save_seconds=0.0,
        callbacks=watch,
        hooks=hooks,
        bar=False,
    )


def test_killed_in_the_middle_of_a_fade(tmp_path):
    whole = grown(tmp_path / "whole")
    fading = [row["step"] for row in whole.log if 0 < row["alpha"] < 1]
    assert len(fading) > 5
    for step in (fading[2], fading[-2]):
        child = subprocess.run(
            [sys.executable, "-c", CHILD, str(tmp_path / "killed"), str(step)],
            capture_output=True,
            text=True,
            cwd=Path(__file__).parent.parent,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        assert child.returncode == -signal.SIGKILL, child.stderr
    again = grown(tmp_path / "killed")
    for a, b in zip(whole.G.state_dict().values(), again.G.state_dict().values()):
        assert a == b if isinstance(a, dict) else torch.equal(a, b)

    def strip(rows):
        return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]

    assert strip(read_jsonl(tmp_path / "killed" / "log.jsonl")) == strip(whole.log)


@pytest.mark.parametrize("term", ["pixel", "pearson", "gp"])
def test_nan_in_a_term_stops_before_the_update(term):
    torch.set_num_threads(1)
    made = small(growing="off")

    def poisoned(p):
        return (
            replace(p, loss=declared("nan")(lambda *given: p.loss(*given) * float("nan")))
            if p.name == term
            else p
        )

    made = replace(made, regularizers=tuple(poisoned(p) for p in made.regularizers))
    with pytest.raises(TrainingError, match=f"{term} nan.*stopped before the update"):
        train(made, lesions(), kimg=0.02, precision="fp32", bar=False)


@pytest.mark.skipif(
    not os.environ.get("MEDGAN_DATA"), reason="MEDGAN_DATA names no folder with real images"
)
def test_busi_by_lesion():
    data = os.environ["MEDGAN_DATA"]
    if not (Path(data) / "Dataset_BUSI_with_GT").is_dir():
        pytest.skip("MEDGAN_DATA holds no Dataset_BUSI_with_GT")
    config, parts = p1.configure({"preset": "smoke", "dataset": "busi", "data_dir": data})
    assert config["data"]["counts"]["all"] == {"benign": 437, "malignant": 210}
    assert not set(parts["train"].groups) & set(parts["test"].groups)
    assert config["params"]["dataset_size"] == 24 and not config["data"]["simulated"]


def test_the_card_and_the_papers_tables(smoke_outputs):
    runs = finished_runs(smoke_outputs("p1"), "p1")
    card, paper = p1.STUDY.card(runs), p1.STUDY.paper_tables(runs)
    assert (card.verdict, card.columns) == ("single run", ("benign", "malignant"))
    assert [label for label, _ in card.samples][1:] == ["Model 0"]
    assert "the paper prints 82 %" in card.answer
    rows = dict(paper["table4"].rows)
    assert [c.paper for c in rows["Model 0, generated: benign"]] == [0.82, 0.79, 0.88, 0.83]
    assert [c.paper for c in rows["Model 0, hybrid: malignant"][1:]] == [0.84, 0.82, 0.83]
    assert "all 27 layers" in paper["table1"].note
    verdicts = {
        c.verdict
        for t in paper.values()
        for _, row in t.rows
        for c in row
        if c and not isinstance(c, str)
    }
    assert not verdicts & {"consistent", "inconsistent"}
