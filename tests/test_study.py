"""Study notebooks as people run them: papermill, a killed and resumed sweep, a report read back."""

import csv
import json
import re
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).resolve().parent.parent
COMMAND = str(Path(sys.executable).parent / "medgan-nb")
NOTEBOOK = ROOT / "papers" / "p4_dcgan_chest_xray.ipynb"


def papermill(folder: Path, *parameters: str) -> subprocess.CompletedProcess:
    "Run the notebook from a folder that is not the project's; parameters as papermill takes them."
    words = [
        sys.executable,
        "-m",
        "papermill",
        str(NOTEBOOK),
        str(folder / "out.ipynb"),
        "--no-progress-bar",
        "-r",
        "outputs",
        str(folder / "outputs"),
        "-p",
        "preset",
        "smoke",
    ]
    for name, value in zip(parameters[::2], parameters[1::2], strict=True):
        words += ["-p", name, value]
    return subprocess.run(words, cwd=folder, capture_output=True, text=True)


def medgan(*words: str) -> subprocess.CompletedProcess:
    return subprocess.run([COMMAND, *words], capture_output=True, text=True, cwd=ROOT)


def runs(folder: Path) -> list[Path]:
    return sorted((folder / "outputs" / "p4").glob("n*"))


def cells_run(notebook: Path) -> int:
    "How many code cells of an executed notebook were run."
    return sum(bool(c.get("execution_count")) for c in json.loads(notebook.read_text())["cells"])


@pytest.fixture(scope="module")
def conditional(tmp_path_factory):
    "The smallest run of the conditional model."
    folder = tmp_path_factory.mktemp("from elsewhere, ünïcode")
    return folder, papermill(folder, "dataset_size", "100", "model", "cgan")


@pytest.mark.xdist_group("study")
def test_papermill_from_any_folder(conditional):
    folder, done = conditional
    assert done.returncode == 0, done.stderr
    (run,) = runs(folder)
    assert run.name.startswith("n100-cgan-s0-smoke-")
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["data"]["used"]["train"] == 100
    arms = {r["condition"]["arm"] for r in metrics["results"] if r["table"] == "accuracy"}
    assert arms == {
        "A",
        "A_weights",
        "A_oversample",
        "A_classic",
        "A_noise",
        "A_steps",
        "B",
        "B_steps",
    }
    for result in metrics["results"]:
        if result["metric"] == "accuracy":
            assert 0 <= result["ci_low"] <= result["value"] <= result["ci_high"] <= 1
            assert result["n"] == 240
        if result["metric"] in ("FD", "FID"):
            assert result["feature_network"]
            assert result["real_baseline"] is not None and result["copy_baseline"] is not None
    assert {
        "config.json",
        "log.jsonl",
        "weights.safetensors",
        "samples.png",
        "predictions.json",
    } <= {p.name for p in run.iterdir()}
    assert len(list((run / "synthetic").glob("*.png"))) == 40


@pytest.mark.xdist_group("study")
def test_the_same_configuration_is_not_run_again(conditional):
    folder, _ = conditional
    (run,) = runs(folder)
    before = (run / "metrics.json").read_bytes(), (run / "weights.safetensors").stat().st_mtime_ns
    assert papermill(folder, "dataset_size", "100", "model", "cgan").returncode == 0
    assert runs(folder) == [run]
    assert (
        (run / "metrics.json").read_bytes(),
        (run / "weights.safetensors").stat().st_mtime_ns,
    ) == before


@pytest.mark.parametrize(
    "name, value, message",
    [
        (
            "datset_size",
            "100",
            "unknown parameter datset_size; expected one of: preset, dataset, data_dir, "
            "dataset_size",
        ),
        ("dataset_size", "9000", "dataset_size is 9000; expected 1 to 600"),
    ],
)
def test_a_wrong_request_stops_in_the_first_cells(tmp_path, name, value, message):
    done = papermill(tmp_path, name, value)
    assert done.returncode != 0 and message in done.stderr
    assert runs(tmp_path) == []
    assert cells_run(tmp_path / "out.ipynb") <= 5


def test_a_killed_sweep_resumes_and_is_done(tmp_path):
    words = ["reproduce", "p4", "--preset", "smoke", "--outputs", str(tmp_path / "outputs")]
    process = subprocess.Popen(
        [COMMAND, *words],
        cwd=ROOT,
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    begun = time.monotonic()
    while (
        not list(tmp_path.glob("outputs/p4/*/stages/arm-A.json"))
        and time.monotonic() - begun < 180
        and process.poll() is None
    ):
        time.sleep(0.1)
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    for member in family:
        with suppress(psutil.NoSuchProcess):
            member.kill()
    process.wait()
    (run,) = runs(tmp_path)
    wait_until_free(run / ".lock")
    first = (run / "stages" / "arm-A.json").read_bytes()
    assert not (run / "metrics.json").exists()

    done = medgan(*words)
    assert done.returncode == 0, done.stderr
    page = tmp_path / "outputs" / "report" / "index.html"
    assert (
        str(page) in done.stdout
        and (run / "executed.ipynb").exists()
        and not (run / "running.ipynb").exists()
    )
    assert (run / "stages" / "arm-A.json").read_bytes() == first
    assert (
        str(tmp_path) not in (run / "executed.ipynb").read_text()
        and str(tmp_path) not in (run / "config.json").read_text()
    )

    drawn = {path: path.stat().st_mtime_ns for path in page.parent.rglob("*.*")}
    drawn.pop(page)
    again = medgan(*words)
    assert again.returncode == 0 and "1 of 1 runs already done" in again.stdout
    assert len(drawn) > 10 and {path: path.stat().st_mtime_ns for path in drawn} == drawn
    check_report(page)


def wait_until_free(lock: Path) -> None:
    "Wait until the kernel of a killed sweep has noticed and released its run."
    from filelock import FileLock, Timeout

    for _ in range(300):
        try:
            with FileLock(lock, timeout=0):
                return
        except Timeout:
            time.sleep(0.2)
    raise AssertionError(f"{lock} is still held")


def check_report(page: Path) -> None:
    "The report marks simulated images, does not compare them with the paper, and works offline."
    text = page.read_text()
    assert "simulated images" in text and text.count("data:image/png;base64") >= 5
    assert all(
        link.startswith(("data:", "#")) or re.fullmatch(r"p\d/\w+\.csv", link)
        for link in re.findall(r"(?:src|href)\s*=\s*['\"]?([^'\"\s>]+)", text)
    )
    with open(page.parent / "p4" / "accuracy.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    columns = (
        "condition,metric,paper,ours,ci_low,ci_high,ci_method,n_runs,"
        "real_baseline,copy_baseline,feature_network,pi_low,pi_high,p_value,p_holm,mde,verdict,note"
    )
    assert list(rows[0]) == columns.split(",")
    printed = {r["condition"]: r for r in rows if r["paper"]}
    assert {arm: r["paper"] for arm, r in printed.items()} == {"A": "71.31", "B": "74.68"}
    assert all(r["verdict"] == "not comparable (simulated data)" for r in printed.values())
    assert not any(
        r["verdict"] in ("consistent", "inconsistent")
        for path in page.parent.glob("p4/*.csv")
        for r in csv.DictReader(open(path, newline=""))
    )


def test_a_failed_run_is_named_without_a_traceback(tmp_path):
    words = ["-p", "preset=smoke", "-p", "dataset_size=2", "-p", "arms=paper"]
    done = medgan("sweep", "p4", *words, "--outputs", str(tmp_path / "outputs"))
    assert done.returncode == 1, done.stdout + done.stderr
    assert "failed: n2-dcgan-s0-smoke-" in done.stderr and "Traceback" not in done.stderr
    assert "cell In" not in done.stderr and "Error" not in done.stderr
    (failed,) = tmp_path.glob("outputs/p4/n2-*")
    assert (failed / "failed.ipynb").exists() and not (failed / "metrics.json").exists()


@pytest.mark.parametrize(
    "words, message",
    [
        (["reproduce", "p9"], "paper is 'p9'; expected one of: p1, p2, p3, p4"),
        (["reproduce", "p4", "--preset", "paper"], "give data_dir"),
        (["reproduce", "p4", "--data-dir", "/nowhere"], "/nowhere"),
        (["sweep", "p4", "-p", "seed"], "expected name=value"),
        (["sweep", "p4", "-p", "sed=1"], "unknown parameter sed"),
    ],
)
def test_a_wrong_command_is_one_line_and_exit_code_2(tmp_path, words, message):
    done = medgan(*words, "--outputs", str(tmp_path / "outputs"))
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("medgan-nb: ")]
    assert message in line and "Traceback" not in done.stderr
    assert not (tmp_path / "outputs").exists()
