"""A campaign of changed files over every format and every file of a run's folder.

Each changed file is read, or refused with a `MedganError` of one line, within five seconds of
processor time. MEDGAN_FUZZ says how many files (`make fuzz N=10000`), MEDGAN_SEED which.
"""

import faulthandler
import os
import random
import signal
import time
import warnings
from contextlib import contextmanager
from pathlib import Path

import pytest
from targets import Target, all_targets

from medgan_nb.core.errors import MedganError

N_FILES = int(os.environ.get("MEDGAN_FUZZ", 100))
SEED = int(os.environ.get("MEDGAN_SEED", 0))
SECONDS = 5.0
CASES = Path(__file__).parent / "cases"

pytestmark = [
    pytest.mark.skipif(not hasattr(signal, "SIGVTALRM"), reason="no timer of processor time here"),
    pytest.mark.xdist_group("fuzz"),
    pytest.mark.filterwarnings("ignore"),
]


@pytest.fixture(scope="module")
def targets(tmp_path_factory, smoke_run) -> list[Target]:
    faulthandler.enable()
    return all_targets(tmp_path_factory.mktemp("fuzz"), smoke_run)


class Hang(BaseException):
    "No `Exception`, so that nothing takes it for an error of a file."


@contextmanager
def time_limit(seconds: float):
    "Raise `Hang` after so many seconds of processor time."

    def stop(*_):
        raise Hang(f"more than {seconds:.0f} s")

    previous = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, previous)


def fault(target: Target, data: bytes) -> str | None:
    "What goes wrong when a target's file holds this; None if it is read, or refused as it should."
    target.path.write_bytes(data)
    target.after_write()
    try:
        started = time.process_time()
        with time_limit(4 * SECONDS), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            target.read()
    except MedganError as error:
        if not str(error).isprintable() or len(str(error)) > 2000:
            return f"message {str(error)[:200]!r}"
    except BaseException as error:
        return f"{type(error).__name__}: {str(error)[:300]}"
    finally:
        target.path.write_bytes(target.data)
        target.after_write()
    seconds = time.process_time() - started
    return f"{seconds:.1f} s" if seconds > SECONDS else None


def test_the_good_files_are_read(targets):
    for target in targets:
        target.path.write_bytes(target.data)
        target.after_write()
        target.read()


def test_changed_files_are_read_or_refused(targets, tmp_path):
    "A file that breaks the rule is kept; put it into cases/<target>/ and mend what it broke."
    faults = []
    for k in range(N_FILES):
        chance = random.Random(f"{SEED}-{k}")
        target = targets[k % len(targets)]
        data = target.change(target.data, chance)
        found = fault(target, data)
        if found:
            (tmp_path / f"{k}").write_bytes(data)
            faults.append(f"{target.name}, file {k} ({tmp_path / str(k)}): {found}")
    assert not faults, f"{len(faults)} of {N_FILES}:\n" + "\n".join(faults[:40])


@pytest.mark.parametrize(
    "case", sorted(CASES.glob("*/*")), ids=lambda path: f"{path.parent.name}-{path.name}"
)
def test_cases_that_once_broke_something(targets, case):
    (target,) = [t for t in targets if t.name.replace(" ", "_") == case.parent.name]
    assert fault(target, case.read_bytes()) is None
