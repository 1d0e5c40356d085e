"""Each notebook of nbs/ is a test: its cells run in order and its assertions hold."""

import os
from pathlib import Path
from unittest.mock import patch

import pytest
from nbdev.test import test_nb as run_notebook

NBS = Path(__file__).resolve().parent.parent / "nbs"


@pytest.mark.parametrize("path", sorted(NBS.glob("*.ipynb")), ids=lambda path: path.stem)
def test_notebook(path, monkeypatch):
    monkeypatch.chdir(NBS)
    with patch.dict(
        os.environ, IN_TEST="1"
    ):  # what a notebook sets in the environment ends with it
        passed, _ = run_notebook(
            path, skip_flags=["notest", "slow", "cuda"], do_print=False, basepath=NBS
        )
    assert passed, f"{path.name}: a cell failed; its traceback is above"
