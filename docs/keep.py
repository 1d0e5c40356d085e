"""Keep the executed notebook of the run that a study's page shows: `python docs/keep.py p4
OUTPUTS`, once its runs are published.

Widget state, papermill's bookkeeping, folders of this machine, and pictures of patients that may
not be passed on (cells tagged `patients`) do not go along.
"""

import json
import re
import sys
from base64 import b64decode, b64encode
from io import BytesIO
from pathlib import Path

from pages import ROOT, calm
from PIL import Image

from medgan_nb.core.files import atomic_write
from medgan_nb.report.build import chosen, shown_run
from medgan_nb.studies.registry import STUDIES

PRIVATE = re.compile(
    r"(?:/(?:home|root|Users|work|tmp|mnt|data|scratch)\b|(?<![A-Za-z])[A-Za-z]:\\)[^\s\"'\\,;)]*"
)


def light(output: dict) -> dict:
    """An output with its picture in at most 256 colours: grey images stay as they are, and it takes
    fewer bytes.
    """
    data = output.get("data", {})
    if "image/png" not in data:
        return output
    small = BytesIO()
    Image.open(BytesIO(b64decode(data["image/png"]))).convert("RGB").quantize(256).save(
        small, "PNG", optimize=True
    )
    return {**output, "data": data | {"image/png": b64encode(small.getvalue()).decode()}}


def keep(name: str, outputs: Path) -> Path:
    "Copy the notebook; fails if a path of this machine is left in it."
    runs, source = chosen(STUDIES[name], ROOT / "nowhere")
    run = shown_run(STUDIES[name], runs)
    book = json.loads((outputs / name / run.id / "executed.ipynb").read_text(encoding="utf-8"))
    cells = []
    for cell in book["cells"]:
        text = re.sub(
            r"^(data_dir|outputs) = .*$", r'\1 = ""', "".join(cell["source"]), flags=re.MULTILINE
        )
        cells.append(
            {**cell, "source": text, "metadata": {"tags": cell["metadata"].get("tags", [])}}
        )
        if cell["cell_type"] == "code":
            hidden = (
                "patients" in cells[-1]["metadata"]["tags"] and not run.config["data"]["simulated"]
            )
            cells[-1]["outputs"] = (
                []
                if hidden
                else [light(calm(o)) for o in cell["outputs"] if o.get("name") != "stderr"]
            )
    book = {
        "cells": cells,
        "metadata": {
            "kernelspec": {"display_name": "python3", "language": "python", "name": "python3"}
        },
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    text = json.dumps(book, indent=1, ensure_ascii=False) + "\n"
    left = PRIVATE.findall(re.sub(r'"image/png": "[^"]*"', "", text))
    if left:
        sys.exit(f"{run.id}: names folders of this machine: {left[:3]}")
    return atomic_write(ROOT / "docs" / "executed" / f"{name}.ipynb", text)


if __name__ == "__main__":
    print(keep(sys.argv[1], Path(sys.argv[2])))
