"""What the tests share: one thread a test process, and the folder of real images where there is
one.
"""

import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from filelock import FileLock

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "agg")
ROOT = Path(__file__).resolve().parent.parent
NETWORK_LOG = "network.log"


FIRST = (
    "test_sweep_kills",
    "test_browse",
    "test_kills",
    "test_p2",
    "test_p3",
    "test_wheel",
    "test_p1",
    "test_site",
    "test_fuzz",
    "test_study",
    "test_notebooks",
)
COSTLY = ("test_p1", "test_p2", "test_p3", "test_report", "test_wheel")  # a module shares its runs


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Long tests first, so that the workers end together; tests that share a costly run stay on one
    worker.
    """
    for item in items:
        if item.module.__name__ in COSTLY and not item.get_closest_marker("xdist_group"):
            item.add_marker(pytest.mark.xdist_group(item.module.__name__))
    items.sort(
        key=lambda item: (
            FIRST.index(item.module.__name__) if item.module.__name__ in FIRST else len(FIRST)
        )
    )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    "A run of simulated images turns its process offline; that ends with the test that opened it."
    before = {name: os.environ[name] for name in ("MEDGAN_OFFLINE",) if name in os.environ}
    try:
        return (yield)
    finally:
        os.environ.pop("MEDGAN_OFFLINE", None)
        os.environ.update(before)


def pytest_collection_finish(session):
    "Stop where the version of pytest-xdist does not know how this pytest names a group of tests."
    grouped = [item for item in session.items if item.get_closest_marker("xdist_group")]
    if session.config.getoption("loadgroup", False) and grouped:
        assert "@" in grouped[0].nodeid, "tests of a group would be spread over the workers"


def shared_folder(tmp_path_factory) -> Path:
    "A temporary folder that all workers of this session share."
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory):
    "Tests keep prepared images, weights and calibrations in a cache of their own."
    os.environ["MEDGAN_CACHE"] = str(shared_folder(tmp_path_factory) / "cache")


@pytest.fixture
def real_data() -> Path:
    "The folder named by MEDGAN_DATA; tests that need it are skipped by name without it."
    if not os.environ.get("MEDGAN_DATA"):
        pytest.skip("MEDGAN_DATA names no folder of real images")
    return Path(os.environ["MEDGAN_DATA"])


def listened_to(outputs: Path) -> dict[str, str]:
    """An environment in which names that are looked up, and addresses outside this machine, are
    written to a log in this folder.
    """
    (outputs / NETWORK_LOG).touch()
    paths = [str(ROOT / "tests" / "network"), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    path = os.pathsep.join(filter(None, paths))
    return os.environ | {"PYTHONPATH": path, "MEDGAN_NETWORK_LOG": str(outputs / NETWORK_LOG)}


@pytest.fixture(scope="session")
def smoke_outputs(tmp_path_factory) -> Callable[[str], Path]:
    """Gives the outputs folder of a finished run of a study, preset smoke, on simulated images; it
    is made once a session, listened to.
    """
    return partial(_smoke_outputs, shared_folder(tmp_path_factory))


def _smoke_outputs(base: Path, paper: str) -> Path:
    outputs, made = base / f"smoke-{paper}", base / f"smoke-{paper}.made"
    with FileLock(base / f"smoke-{paper}.lock"):
        if not made.exists():
            outputs.mkdir()
            words = ("reproduce", paper, "--preset", "smoke", "--jobs", "1")
            command = [str(Path(sys.executable).parent / "medgan-nb"), *words]
            done = subprocess.run(
                [*command, "--outputs", str(outputs)],
                capture_output=True,
                text=True,
                env=listened_to(outputs),
            )
            assert done.returncode == 0, done.stderr
            made.touch()
    return outputs


@pytest.fixture(scope="session")
def smoke_run(smoke_outputs) -> Path:
    """The folder of a finished run of p4, preset smoke, on simulated films; MEDGAN_SMOKE_RUN names
    one made before.
    """
    if os.environ.get("MEDGAN_SMOKE_RUN"):
        return Path(os.environ["MEDGAN_SMOKE_RUN"])
    return next(smoke_outputs("p4").glob("p4/n*"))
