"The site's pages besides the library: studies and front page from the published runs, how-tos."

import json
import re
import shutil
from pathlib import Path

from reference import escape_cell
from simulation import detectable_accuracy, fill, simulate_small_sets

from medgan_nb.experiments.run import Run
from medgan_nb.experiments.study import Study
from medgan_nb.report.build import chosen, shown_run
from medgan_nb.report.page import with_verdict
from medgan_nb.studies.common.formatting import table_rows
from medgan_nb.studies.registry import STUDIES
from medgan_nb.viz.grid import save_figure

ROOT = Path(__file__).resolve().parent.parent


def published_runs() -> dict[str, list[Run]]:
    "The published runs that are shown, by study."
    return {name: chosen(study, ROOT / "nowhere")[0] for name, study in STUDIES.items()}


# studies

STUDIES_INDEX = """# Studies

Each page has the claim, what our published runs say about it, every table beside the paper's, and
the notebook.

```{toctree}
:maxdepth: 1

"""


def write_studies(source: Path, runs: dict[str, list[Run]]) -> None:
    "A page per study, and its notebook."
    folder, contents = source / "studies", ""
    folder.mkdir()
    for name, study in STUDIES.items():
        if runs[name]:
            text = study_page(study, runs[name])
            write_figures(study, runs[name], folder / name)
            text = fill(text, {"figures": figure_list(folder / name)})
        else:
            text = study_head(study) + (
                "No run of this study has been published yet, so nothing is said here about the "
                f"claim.\n\n{study_links(study)}"
            )
        (folder / f"{name}.md").write_text(text, encoding="utf-8")
        book = json.dumps(site_notebook(study, runs[name]))
        (folder / f"{name}_notebook.ipynb").write_text(book, encoding="utf-8")
        contents += f"{name}\nThe notebook of {name} <{name}_notebook>\n"
    (folder / "index.md").write_text(f"{STUDIES_INDEX}{contents}```\n", encoding="utf-8")


def study_head(study: Study) -> str:
    return f"# {study.name}: {study.title}\n\n**The paper's claim.** {study.claim}\n\n"


def study_links(study: Study) -> str:
    return (
        f"The notebook: [{study.notebook}]({study.name}_notebook.ipynb). Run it yourself: "
        f"`medgan-nb reproduce {study.name}`.\n\n"
    )


def study_page(study: Study, runs: list[Run]) -> str:
    "The claim, what the runs say, the verdicts, figures and tables of a study."
    tables = {
        title: table_rows(comparisons, study.labels)
        for title, comparisons in study.tables(runs).items()
    }
    data, preset = runs[0].config["data"], runs[0].config["params"]["preset"]
    first, *others = sentences(study.narrative(runs))
    blocks = [
        f"{study_head(study)}**What our runs say.** {first}\n",
        "".join(f"* {sentence}\n" for sentence in others),
        f"{study_links(study)}{len(runs)} published runs, preset {preset}, "
        f"on {data['name']} ({data['licence']}).\n",
        f"## Verdicts\n\n{markdown_rows(with_verdict(tables))}",
        "## Figures\n\n{{figures}}",
        "## Tables\n",
    ]
    for title, rows in tables.items():
        blocks.append(f"### {title.replace('_', ' ')}\n\n{markdown_rows(rows)}")
    return "\n".join(blocks)


def sentences(text: str) -> list[str]:
    "The sentences of a text."
    return re.split(r"(?<=[.!?]) (?=[A-Z0-9])", text)


def markdown_rows(rows: list[dict]) -> str:
    "Rows of a table as Markdown; columns that are empty throughout are left out."
    if not rows:
        return "None.\n"
    columns = [name for name in rows[0] if any(row[name] not in (None, "") for row in rows)]
    lines = [columns, ["---"] * len(columns)]
    lines += [[markdown_value(row[name]) for name in columns] for row in rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def markdown_value(value) -> str:
    "A value as text for a table cell."
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else escape_cell(str(value))


# figures of a study


def write_figures(study: Study, runs: list[Run], folder: Path) -> None:
    "The figures of all runs, and those of the run that is shown."
    folder.mkdir()
    for title, figure in study.figures(runs).items():
        save_figure(figure, folder / f"{title}.png")
    for path in (shown_run(study, runs).folder / "figures").glob("*.png"):
        shutil.copy(path, folder)


def figure_list(folder: Path) -> str:
    "The figures in a folder as Markdown."
    text = ""
    for path in sorted(folder.glob("*.png")):
        caption = figure_caption(path.stem)
        text += f"### {caption}\n\n![{caption}]({folder.name}/{path.name})\n\n"
    return text


def figure_caption(stem: str) -> str:
    "`fig5_6_real_images` -> `Fig. 5 and 6 of the paper: real images`."
    numbers, title = re.fullmatch(r"(?:fig(\d+(?:_\d+)*)_)?(.+)", stem).groups()
    title = title.replace("_", " ")
    if not numbers:
        return title[0].upper() + title[1:]
    return f"Fig. {numbers.replace('_', ' and ')} of the paper: {title}"


# notebook of a study


def site_notebook(study: Study, runs: list[Run]) -> dict:
    "The executed notebook of a published run; if there is none, the stored one without outputs."
    candidates = [ROOT / "docs" / "executed" / f"{study.name}.ipynb"]
    candidates += [run.folder / "executed.ipynb" for run in runs]
    executed = [path for path in candidates if path.exists()]
    stored = ROOT / "papers" / f"{study.notebook}.ipynb"
    book = json.loads((executed or [stored])[0].read_text(encoding="utf-8"))
    cells = [cell for cell in book["cells"] if "papermill-error-cell-tag" not in tags(cell)]
    for cell in cells:
        cell["metadata"] = {}
        if cell["cell_type"] == "code":
            cell["outputs"] = static_outputs(cell.get("outputs", []))
    origin = "As it was executed for the published run."
    if not executed:
        origin = "The notebook as it is stored, without outputs; "
        origin += f"`medgan-nb reproduce {study.name}` runs it."
    first = "".join(cells[0]["source"]).rstrip()
    cells[0]["source"] = f"{first}\n\n*{origin} Source: `papers/{study.notebook}.ipynb`.*"
    kernel = {"display_name": "python3", "language": "python", "name": "python3"}
    return {**book, "cells": cells, "metadata": {"kernelspec": kernel}}


def tags(cell: dict) -> list[str]:
    return cell["metadata"].get("tags", [])


def static_outputs(outputs: list[dict]) -> list[dict]:
    "Outputs without messages on stderr, and without widgets that have a picture in their place."
    static = []
    for output in outputs:
        if output.get("name") == "stderr":
            continue
        if data := output.get("data"):
            if "image/png" in data:
                data = {kind: value for kind, value in data.items() if "widget" not in kind}
            output = {**output, "data": data, "metadata": {}}
        static.append(output)
    return static


# how-tos

ORDER = (
    "howto_own_images",
    "howto_dicom",
    "howto_small_sets",
    "howto_resume",
    "howto_gpu",
    "howto_memory",
    "howto_reader_study",
    "howto_cluster",
)


def write_howtos(source: Path) -> None:
    "The how-tos, with the results of the simulations that they quote."
    folder = source / "howto"
    folder.mkdir()
    values = simulate_small_sets(folder)
    values |= {f"power{n}": f"{detectable_accuracy(n):.0%}" for n in (40, 100)}
    names = [path.stem for path in sorted((ROOT / "docs").glob("howto_*.md"))]
    names.sort(key=lambda name: ORDER.index(name) if name in ORDER else len(ORDER))
    for name in names:
        text = (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8")
        (folder / f"{name}.md").write_text(fill(text, values), encoding="utf-8")
    contents = "\n".join(names)
    index = f"# How to\n\n```{{toctree}}\n:maxdepth: 1\n\n{contents}\n```\n"
    (folder / "index.md").write_text(index, encoding="utf-8")


# front page

FRONT_PICTURE = "p4/fig2_accuracy.png"
FRONT_CAPTION = "Test accuracy with and without synthetic images, beside the paper's numbers"


def write_front_page(source: Path, runs: dict[str, list[Run]]) -> None:
    "What the project is, a picture, two commands, and what was found about each paper."
    text = (ROOT / "docs" / "front.md").read_text(encoding="utf-8")
    picture = ""
    if (source / "studies" / FRONT_PICTURE).exists():
        picture = f"![{FRONT_CAPTION}](studies/{FRONT_PICTURE})"
    text = fill(text, {"claims": claims_table(runs), "picture": picture})
    (source / "index.md").write_text(text, encoding="utf-8")


def claims_table(runs: dict[str, list[Run]]) -> str:
    "Each paper's claim beside the first sentence of what our runs say."
    table = "| study | what | the paper's claim | what our runs say |\n|---|---|---|---|\n"
    for name, study in STUDIES.items():
        found = "no published run yet"
        if runs[name]:
            found = escape_cell(sentences(study.narrative(runs[name]))[0])
        link, claim = f"[{name}](studies/{name}.md)", escape_cell(study.claim)
        table += f"| {link} | {study.title} | {claim} | {found} |\n"
    return table
