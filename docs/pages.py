"The site's pages besides the library: studies, gallery, how-tos and front page."

import csv
import json
import re
import shutil
from pathlib import Path

from claims import ROOT, claims_table, short_answer
from hero import HERO, hero
from PIL import Image
from reference import escape_cell
from simulation import detectable_accuracy, fill, simulate_small_sets

from medgan_nb.experiments.run import Run
from medgan_nb.experiments.study import Study
from medgan_nb.report.build import shown_run
from medgan_nb.report.card import card_html
from medgan_nb.report.gallery import gallery_entries, gallery_html
from medgan_nb.report.paper_table import paper_table_html
from medgan_nb.studies.common.card import Card
from medgan_nb.studies.common.formatting import COLUMNS, table_rows
from medgan_nb.studies.registry import STUDIES
from medgan_nb.viz.grid import save_figure

# studies

STUDIES_INDEX = """# Studies

Four papers, each with its claim, what our published runs say about it, and the notebook that makes
those runs.

```{toctree}
:hidden:

"""
WIDE = "---\nhtml_theme.sidebar_secondary.remove: true\n---\n"


def write_studies(source: Path, runs: dict[str, list[Run]], cards: list[Card]) -> None:
    "A page per study, its notebook, and all cards on one page."
    folder, contents = source / "studies", ""
    folder.mkdir()
    for (name, study), card in zip(STUDIES.items(), cards):
        text = study_page(study, runs[name], card, folder)
        (folder / f"{name}.md").write_text(text, encoding="utf-8")
        book = json.dumps(site_notebook(study, runs[name]))
        (folder / f"{name}_notebook.ipynb").write_text(book, encoding="utf-8")
        contents += f"{name}\nThe notebook of {name} <{name}_notebook>\n"
    shown = sorted(cards, key=lambda card: not card.basis)
    text = f"{WIDE}{STUDIES_INDEX}{contents}```\n\n"
    text += "\n\n".join(f"{raw(card_html(card))}\n{study_links(card.study)}" for card in shown)
    (folder / "index.md").write_text(text, encoding="utf-8")


def raw(html: str) -> str:
    "HTML as a block of a Markdown page."
    return f"```{{raw}} html\n{html}\n```\n"


def study_links(name: str) -> str:
    return (
        f"[All tables and figures of {name}](/studies/{name}.md) · "
        f"[its notebook](/studies/{name}_notebook.ipynb) · "
        f"run it yourself: `medgan-nb reproduce {name}`\n"
    )


def study_page(study: Study, runs: list[Run], card: Card, folder: Path) -> str:
    "The card, the paper's tables, the figures, and all else in folds."
    title = f"{WIDE}# {study.name}: {study.title}\n\n{raw(page_card(card))}\n"
    links = (
        f"The notebook: [{study.notebook}]({study.name}_notebook.ipynb). "
        f"Run it yourself: `medgan-nb reproduce {study.name}`.\n\n"
    )
    if not runs:
        return f"{title}{links}No run of this study has been published yet.\n"
    blocks = [title, links]
    blocks += [raw(paper_table_html(table)) for table in study.paper_tables(runs).values()]
    write_figures(study, runs, folder / study.name)
    blocks.append(f"## Figures\n\n{figure_section(folder / study.name)}")
    blocks.append(f"## Details\n\n{len(runs)} published runs; the card rests on {card.basis}.\n")
    said = "".join(f"* {sentence}\n" for sentence in sentences(study.narrative(runs)))
    blocks.append(fold("What the runs say, in full", said))
    for name, comparisons in study.tables(runs).items():
        rows = table_rows(comparisons, study.labels)
        write_csv(folder / study.name / f"{name}.csv", rows)
        link = f"[{name}.csv]({study.name}/{name}.csv)\n\n"
        blocks.append(fold(f"Table: {name.replace('_', ' ')}", link + markdown_rows(rows)))
    return "\n".join(blocks)


def page_card(card: Card) -> str:
    "The card of a study on its own page, which says its title already."
    return f'<div class="own-page">{card_html(card)}</div>'


def fold(summary: str, text: str) -> str:
    "A section that is closed at first."
    return f"{raw(f'<details><summary>{summary}</summary>')}\n{text}\n{raw('</details>')}"


def write_csv(path: Path, rows: list[dict]) -> None:
    "All columns of a table."
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)


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


def figure_section(folder: Path) -> str:
    "The paper's figures, two in a row where they are not wide, and all others in a fold."
    paths = sorted(folder.glob("*.png"), key=figure_order)
    papers = [path for path in paths if FIGURE.fullmatch(path.stem)[1]]
    others = [path for path in paths if path not in papers]
    text = figure_grid(papers or others)
    return text + fold("More figures", figure_grid(others)) if papers and others else text


FIGURE = re.compile(r"(?:fig(\d+(?:_\d+)*)_)?(.+)")
WIDE_ASPECT = 1.9


def figure_order(path: Path) -> tuple[list[int], str]:
    "In the paper's order: `fig2` before `fig10`."
    numbers, title = FIGURE.fullmatch(path.stem).groups()
    return [int(number) for number in (numbers or "999").split("_")], title


def figure_grid(paths: list[Path]) -> str:
    "Figures with their captions as Markdown; rows of images take the whole width."
    text = ""
    for path in paths:
        caption = figure_caption(path.stem)
        width, height = Image.open(path).size
        shape = "wide" if width > WIDE_ASPECT * height else "half"
        text += (
            f"```{{figure}} {path.parent.name}/{path.name}\n:alt: {caption}\n:figclass: {shape}\n\n"
            f"{caption}\n```\n\n"
        )
    return f"::::{{container}} figures\n{text}::::\n"


def figure_caption(stem: str) -> str:
    "`fig5_6_real_images` -> `Fig. 5 and 6 of the paper: real images`."
    numbers, title = FIGURE.fullmatch(stem).groups()
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

TASKS = {
    "howto_own_images": "I have 100 images of my own: is a GAN worth it?",
    "howto_small_sets": "I have few images: what does an FID mean?",
    "howto_dicom": "My images are DICOM files",
    "howto_reader_study": "I want radiologists to tell real from generated",
    "howto_resume": "My run was interrupted, or must be",
    "howto_gpu": "I have a GPU",
    "howto_cluster": "I have a cluster, or several machines",
    "howto_memory": "It runs out of memory",
    "howto_new_model": "I want to add a model",
    "howto_new_metric": "I want to add a metric",
}
HOWTO_INDEX = """# How to

![Fréchet distance of two generators against the number of images](small_sets.png)

*Why small sets need care: even a perfect generator scores far from zero at 50 images (simulated).*

{tasks}

```{{toctree}}
:hidden:

{pages}
```
"""


def write_howtos(source: Path) -> None:
    "The how-tos, with the results of the simulations that they quote."
    folder = source / "howto"
    folder.mkdir()
    values = simulate_small_sets(folder)
    values |= {f"power{n}": f"{detectable_accuracy(n):.0%}" for n in (40, 100)}
    for name in TASKS:
        text = (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8")
        (folder / f"{name}.md").write_text(fill(text, values), encoding="utf-8")
    tasks = "\n".join(f"* [{task}]({name}.md)" for name, task in TASKS.items())
    index = HOWTO_INDEX.format(tasks=tasks, pages="\n".join(TASKS))
    (folder / "index.md").write_text(index, encoding="utf-8")


# gallery

GALLERY = f"""{WIDE}# Gallery

What the generators of the published runs make. Nobody has chosen: the first samples of the first
seed of each condition, in their own pixels. For your own runs,
`medgan_nb.report.gallery.write_gallery_page` writes the same page.

"""


def write_gallery(source: Path, runs: dict[str, list[Run]]) -> None:
    "The page, and its sprites under _static/gallery."
    entries = []
    for name, study in STUDIES.items():
        entries += gallery_entries(study, runs[name])
        for run in runs[name]:
            if (run.folder / "gallery").is_dir():
                target = source / "_static" / "gallery" / name / run.folder.name / "gallery"
                shutil.copytree(run.folder / "gallery", target)
    text = GALLERY + raw(gallery_html(entries, "_static/gallery/"))
    (source / "gallery.md").write_text(text, encoding="utf-8")


# front page


def write_front_page(source: Path, runs: dict[str, list[Run]], cards: list[Card]) -> None:
    "What the project is, a picture, the answer, two commands, and the four claims."
    png, words = hero(cards)
    (source / "_static" / HERO.name).write_bytes(png)
    values = {
        "hero": f"![{words}](_static/{HERO.name})",
        "words": f"{words}.",
        "answer": short_answer(cards),
        "claims": claims_table(cards, "[{0}](studies/{0}.md)"),
    }
    text = (ROOT / "docs" / "front.md").read_text(encoding="utf-8")
    (source / "index.md").write_text(fill(text, values), encoding="utf-8")
