"An installed package, not a checkout: its commands work in any folder."

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy as np
import pytest

from medgan_nb.data.formats.images import write_png
from medgan_nb.simulation.ultrasound_bmode import load as simulated_ultrasound

ROOT = Path(__file__).resolve().parent.parent
PACKAGED = (
    "settings.ini",
    "setup.py",
    "MANIFEST.in",
    "README.md",
    "LICENSE",
    "papers",
    "medgan_nb",
)


def call(*words, cwd: Path, timeout: int = 600) -> str:
    "What a command prints; it must end well. Nothing of this checkout is on its path."
    env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "MEDGAN_DATA")}
    done = subprocess.run(
        list(map(str, words)), cwd=cwd, env=env, capture_output=True, text=True, timeout=timeout
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    "The bin folder of a new environment with the wheel; its requirements are this environment's."
    source = tmp_path_factory.mktemp("source")
    ignore = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints")
    for name in PACKAGED:
        path = ROOT / name
        if path.is_dir():
            shutil.copytree(path, source / name, ignore=ignore)
        else:
            shutil.copy(path, source)
    wheels, venv = tmp_path_factory.mktemp("wheels"), tmp_path_factory.mktemp("venv")
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    call(*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", wheels, source, cwd=wheels)
    call(sys.executable, "-m", "venv", "--without-pip", venv, cwd=wheels)
    (wheel,) = wheels.glob("*.whl")
    call(*pip, "--python", venv / "bin" / "python", "install", "--no-deps", wheel, cwd=wheels)
    (site,) = venv.glob("lib/python*/site-packages")
    (site / "requirements.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    return venv / "bin"


def test_the_installed_package_is_the_one_that_runs(installed, tmp_path):
    lines = (
        "import medgan_nb",
        "from medgan_nb.experiments.study import papers_folder",
        "print(medgan_nb.__file__, papers_folder())",
    )
    said = call(installed / "python", "-c", "; ".join(lines), cwd=tmp_path).split()
    package, papers = (Path(path) for path in said)
    assert installed.parent in package.parents and papers == package.parent / "papers"
    assert (papers / "trial.ipynb").is_file() and (papers / "reference" / "4-claims.csv").is_file()


def test_reproduce_in_any_folder(installed, tmp_path):
    call(installed / "medgan-nb", "reproduce", "p4", "--preset", "smoke", cwd=tmp_path)
    assert (tmp_path / "outputs" / "report" / "index.html").is_file()
    assert len(list((tmp_path / "outputs" / "p4").glob("*/metrics.json"))) >= 1


def test_trial_generate_and_share_in_any_folder(installed, tmp_path):
    "Forty images of one class: it says what cannot be answered, and still generates."
    images = simulated_ultrasound(size=64, seed=0).of_class("benign")
    for k, pixels in enumerate(images.pixels[:40, 0].numpy()):
        write_png(tmp_path / "mine" / "benign" / f"p{k // 2}_{k}.png", np.asarray(pixels))
    command = installed / "medgan-nb"
    words = ("trial", "mine", "--hours", "0.005", "--group-by", "p([0-9]+)_")
    said = call(command, *words, cwd=tmp_path)
    assert "there is one class, benign" in said
    (page,) = (tmp_path / "outputs" / "trial").glob("*/trial.html")
    run = page.parent.name
    made = call(
        command, "generate", run, "--out", "new", "--n", "20", "--data-dir", "mine", cwd=tmp_path
    )
    assert "20 images in new" in made
    assert len(list((tmp_path / "new").rglob("*.png"))) == 20
