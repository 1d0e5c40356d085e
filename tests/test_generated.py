"""What is generated matches what it is generated from: export and clean change nothing."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SHIPPED = [ROOT / "medgan_nb" / "weights" / "simulated_ultrasound_64.safetensors"]
KEPT = ("settings.ini", "setup.py", "README.md", "nbs", "papers", "medgan_nb")


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    "The tracked parts of the project in another folder."
    target = tmp_path_factory.mktemp("project")
    for name in KEPT:
        source = ROOT / name
        ignore = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints")
        shutil.copytree(source, target / name, ignore=ignore) if source.is_dir() else shutil.copy(
            source, target
        )
    return target


def run(code: str, folder: Path) -> None:
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(folder)): p.read_bytes()
        for p in sorted(folder.rglob("*"))
        if p.is_file() and "__pycache__" not in p.parts
    }


def test_export_leaves_no_diff(copy):
    kept = {str(path.relative_to(ROOT / "medgan_nb")) for path in SHIPPED}
    before = {name: data for name, data in files(copy / "medgan_nb").items() if name not in kept}
    shutil.rmtree(copy / "medgan_nb")
    (copy / "medgan_nb").mkdir()
    shutil.copy(ROOT / "medgan_nb" / "__init__.py", copy / "medgan_nb")
    run("from nbdev.doclinks import nbdev_export; nbdev_export()", copy)
    after = files(copy / "medgan_nb")
    assert sorted(before) == sorted(after)
    assert [name for name in before if before[name] != after[name]] == []


@pytest.mark.parametrize("folder", ["nbs", "papers"])
def test_clean_leaves_no_diff(copy, folder):
    before = files(copy / folder)
    run(f"from nbdev.clean import nbdev_clean; nbdev_clean('{folder}')", copy)
    after = files(copy / folder)
    assert [name for name in before if before[name] != after[name]] == []


def test_every_package_is_in_the_wheel():
    from setuptools import find_packages

    folders = {
        p.parent.relative_to(ROOT).as_posix().replace("/", ".")
        for p in (ROOT / "medgan_nb").rglob("*.py")
    }
    assert folders == set(find_packages(str(ROOT), include=["medgan_nb", "medgan_nb.*"]))


def test_nothing_is_tracked_that_is_large_or_private():
    tracked = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True
    ).stdout.split("\0")
    paths = [ROOT / name for name in tracked if name and (ROOT / name).is_file()]
    paths = [path for path in paths if path not in SHIPPED]
    assert [p.name for p in paths if p.stat().st_size > 1_000_000] == []
    assert [
        p.name
        for p in paths
        if p.suffix in (".safetensors", ".pth", ".pt", ".pkl", ".npz", ".mat", ".dcm")
    ] == []
