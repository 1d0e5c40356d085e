"""Keep the executed notebook of the run that a study's page shows: `python docs/keep.py p4
OUTPUTS`, once its runs are published.

Widget state, papermill's records, folders of this machine, and images of patients that may not be
redistributed (cells tagged `patients`) are left out.
"""

import json
import re
import sys
from base64 import b64decode, b64encode
from io import BytesIO
from pathlib import Path

from claims import ROOT, published_runs
from pages import static_outputs, tags
from PIL import Image

from medgan_nb.core.files import atomic_write
from medgan_nb.report.build import shown_run
from medgan_nb.studies.registry import STUDIES

LOCAL_PATH = re.compile(
    r"(?:/(?:home|root|Users|work|tmp|mnt|data|scratch)\b|(?<![A-Za-z])[A-Za-z]:\\)[^\s\"'\\,;)]*"
)
LOCAL_PARAMETER = re.compile(r"^(data_dir|outputs) = .*$", re.MULTILINE)
KERNEL = {"display_name": "python3", "language": "python", "name": "python3"}


def compress_picture(output: dict) -> dict:
    "An output with its picture in at most 256 colours: smaller, and grey levels stay the same."
    data = output.get("data", {})
    if "image/png" not in data:
        return output
    picture = Image.open(BytesIO(b64decode(data["image/png"]))).convert("RGB").quantize(256)
    file = BytesIO()
    picture.save(file, "PNG", optimize=True)
    return {**output, "data": data | {"image/png": b64encode(file.getvalue()).decode()}}


def clean_cell(cell: dict, real_images: bool) -> dict:
    "A cell without local folders and, if the images are real, without pictures of patients."
    text = LOCAL_PARAMETER.sub(r'\1 = ""', "".join(cell["source"]))
    cell = {**cell, "source": text, "metadata": {"tags": tags(cell)}}
    if cell["cell_type"] == "code":
        hidden = real_images and "patients" in tags(cell)
        outputs = [] if hidden else static_outputs(cell["outputs"])
        cell["outputs"] = [compress_picture(output) for output in outputs]
    return cell


def keep(name: str, outputs: Path) -> Path:
    "Copy the notebook; fails if it still names a folder of this machine."
    run = shown_run(STUDIES[name], published_runs()[name])
    book = json.loads((outputs / name / run.id / "executed.ipynb").read_text(encoding="utf-8"))
    real_images = not run.config["data"]["simulated"]
    cells = [clean_cell(cell, real_images) for cell in book["cells"]]
    book = {"cells": cells, "metadata": {"kernelspec": KERNEL}, "nbformat": 4, "nbformat_minor": 5}
    text = json.dumps(book, indent=1, ensure_ascii=False) + "\n"
    paths = LOCAL_PATH.findall(re.sub(r'"image/png": "[^"]*"', "", text))
    if paths:
        sys.exit(f"{run.id}: names folders of this machine: {paths[:3]}")
    return atomic_write(ROOT / "docs" / "executed" / f"{name}.ipynb", text)


if __name__ == "__main__":
    print(keep(sys.argv[1], Path(sys.argv[2])))
