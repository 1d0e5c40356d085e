"The script for a GPU runs whole on a CPU, at toy size."

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def test_gpu_script_runs_whole_on_a_cpu(tmp_path):
    "Every part gives its answer."
    words = [sys.executable, ROOT / "benchmarks" / "gpu.py", tmp_path, "--toy", "--minutes", "0.05"]
    done = subprocess.run(list(map(str, words)), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    said = json.loads((tmp_path / "summary.json").read_text())
    assert said["tests"]["exit"] == 0 and said["speed"]["exit"] == 0
    assert said["steps"]["seconds a kimg"] > 0
    for n in (50, 20):
        assert said[f"ADA, {n} images"]["kimg"] > 0
        assert (tmp_path / f"ada_{n}" / "samples.png").is_file()
