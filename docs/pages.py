"""The pages of the site: library from nbs/, studies and front page from outputs/published/, how-tos
from docs/.
"""

import json
import re
import shutil
from pathlib import Path

from reference import anchor, cell, entry, first_line, public
from simulation import small_sets

from medgan_nb.report.build import chosen, shown_run
from medgan_nb.report.page import with_verdict
from medgan_nb.studies.common.formatting import table_rows
from medgan_nb.studies.registry import STUDIES
from medgan_nb.viz.grid import save_figure

ROOT = Path(__file__).resolve().parent.parent
GROUPS = {
    "core": "Core",
    "data": "Data",
    "simulation": "Simulation",
    "datasets": "Data sets",
    "models": "Models",
    "training": "Training",
    "metrics": "Metrics",
    "evaluation": "Evaluation",
    "experiments": "Experiments",
    "studies": "Studies",
    "viz": "Figures",
    "report": "Report",
    "app": "Applications",
    "cli": "Command line",
    "layout": "Layout",
}
DIRECTIVE = re.compile(r"^\s*#\s*\|.*\n?", re.MULTILINE)


# library


def library(source: Path) -> None:
    "A page a notebook of nbs/, grouped, and an index of every public name."
    folder, index, groups = source / "library", [], {}
    folder.mkdir()
    for path in sorted((ROOT / "nbs").glob("[0-9]*.ipynb")):
        book = json.loads(path.read_text(encoding="utf-8"))
        name = path.stem.replace(".", "_")
        book["cells"] = [made for part in book["cells"] if (made := shown(part))]
        module = next(
            (
                m
                for c in json.loads(path.read_text(encoding="utf-8"))["cells"]
                if (m := exported_to(c))
            ),
            None,
        )
        if module:
            index += [(node.name, module, first_line(node)) for node in public(module_file(module))]
            book["cells"].append(markdown(reference(module)))
        book["metadata"] = {"kernelspec": book["metadata"]["kernelspec"]}  # no widget state
        (folder / f"{name}.ipynb").write_text(json.dumps(book), encoding="utf-8")
        groups.setdefault(group_of(path.stem), []).append(name)
    toc = "\n".join(
        f"```{{toctree}}\n:caption: {title}\n:maxdepth: 1\n\n" + "\n".join(names) + "\n```\n"
        for title, names in groups.items()
    )
    text = (
        "# Library\n\nThe notebooks that the package is exported from: each explains one idea, "
        "shows it, and asserts what must hold. A reference with signatures "
        f"stands at the end of each page, and [every public name](../api.md) in one list.\n\n{toc}"
    )
    (folder / "index.md").write_text(text, encoding="utf-8")
    api(source, index)


def shown(part: dict) -> dict | None:
    """A cell as a reader sees it: hidden and housekeeping cells left out, nbdev's directives taken
    out of the rest.
    """
    text = "".join(part["source"])
    if part["cell_type"] == "code" and re.search(r"#\s*\|\s*(hide|default_exp)\b", text):
        return None
    if part["cell_type"] == "code" and not DIRECTIVE.sub("", text).strip():
        return None
    return {
        **part,
        "source": (DIRECTIVE.sub("", text) if part["cell_type"] == "code" else text).strip("\n"),
        "metadata": {},
    }


def exported_to(part: dict) -> str | None:
    "The module a notebook exports, if this is the cell that says so."
    found = re.search(r"#\|\s*default_exp\s+([\w.]+)", "".join(part["source"]))
    return found and found[1]


def module_file(module: str) -> Path:
    return ROOT / "medgan_nb" / (module.replace(".", "/") + ".py")


def group_of(stem: str) -> str:
    "The package of a notebook, `405_training.losses`."
    return GROUPS[stem.partition("_")[2].partition(".")[0]]


def markdown(text: str) -> dict:
    return {"cell_type": "markdown", "metadata": {}, "source": text, "id": "reference"}


def reference(module: str) -> str:
    "The reference of a module as one Markdown cell."
    entries = "\n".join(entry(module, node) for node in public(module_file(module)))
    return f"## Reference: `medgan_nb.{module}`\n\n{entries}"


def api(source: Path, index: list[tuple[str, str, str]]) -> None:
    "Every public name in one table."
    rows = "\n".join(
        f"| [{name}](#{anchor(module, name)}) | `medgan_nb.{module}` | {cell(text)} |"
        for name, module, text in sorted(index, key=lambda row: row[0].lower())
    )
    (source / "api.md").write_text(
        f"# Every public name\n\n| name | module | what it is |\n|---|---|---|\n{rows}\n",
        encoding="utf-8",
    )


# studies


def studies_pages(source: Path) -> dict[str, tuple]:
    "A page a study, and its notebook; returns for the front page what each study's runs are."
    folder, found = source / "studies", {}
    folder.mkdir()
    for name, study in STUDIES.items():
        runs, _ = chosen(study, ROOT / "nowhere")
        found[name] = (study, runs)
        (folder / f"{name}.md").write_text(study_page(study, runs, folder), encoding="utf-8")
        notebook(study, runs, folder)
    toc = "\n".join(f"{name}\nThe notebook of {name} <{name}_notebook>" for name in found)
    (folder / "index.md").write_text(
        "# Studies\n\nEach page holds the claim, what our published runs say about it, every "
        "table beside the paper's, and the notebook.\n\n"
        f"```{{toctree}}\n:maxdepth: 1\n\n{toc}\n```\n",
        encoding="utf-8",
    )
    return found


def study_page(study, runs: list, folder: Path) -> str:
    "The claim, the reading, the verdicts, figures and tables of a study."
    head = f"# {study.name}: {study.title}\n\n**The paper's claim.** {study.claim}\n\n"
    link = (
        f"The notebook: [{study.notebook}]({study.name}_notebook.ipynb). Run it yourself: "
        f"`medgan-nb reproduce {study.name}`.\n\n"
    )
    if not runs:
        return head + (
            "No run of this study has been published yet, so nothing is said here about the "
            f"claim.\n\n{link}"
        )
    tables = {
        name: table_rows(comparisons, study.labels)
        for name, comparisons in study.tables(runs).items()
    }
    data, preset = runs[0].config["data"], runs[0].config["params"]["preset"]
    verdicts = with_verdict(tables)
    first, *more = sentences(study.narrative(runs))
    said = first + "\n\n" + "".join(f"* {sentence}\n" for sentence in more)
    text = (
        f"{head}**What our runs say.** {said}\n{link}{len(runs)} published runs, preset {preset}, "
        f"on {data['name']} ({data['licence']}).\n\n## Verdicts\n\n{table(verdicts)}\n"
        "## Figures\n\n"
    )
    pictures = folder / study.name
    pictures.mkdir()
    for title, figure in study.figures(runs).items():
        save_figure(figure, pictures / f"{title}.png")
    for picture in sorted((shown_run(study, runs).folder / "figures").glob("*.png")):
        shutil.copy(picture, pictures)
    for picture in sorted(pictures.glob("*.png")):
        words = caption(picture.stem)
        text += f"### {words}\n\n![{words}]({study.name}/{picture.name})\n\n"
    return (
        text
        + "## Tables\n\n"
        + "".join(
            f"### {name.replace('_', ' ')}\n\n{table(rows)}\n" for name, rows in tables.items()
        )
    )


def sentences(text: str) -> list[str]:
    "A text cut after its sentences."
    return re.split(r"(?<=[.!?]) (?=[A-Z0-9])", text)


def caption(stem: str) -> str:
    """A figure's heading from the name of its file: `fig5_6_real_images` is `Fig. 5 and 6 of the
    paper: real images`.
    """
    numbers, words = re.fullmatch(r"(?:fig(\d+(?:_\d+)*)_)?(.+)", stem).groups()
    words = words.replace("_", " ")
    return (
        f"Fig. {numbers.replace('_', ' and ')} of the paper: {words}"
        if numbers
        else words[0].upper() + words[1:]
    )


def table(rows: list[dict]) -> str:
    "Rows of a report as Markdown; columns that are empty throughout are left out."
    if not rows:
        return "None.\n"
    columns = [c for c in rows[0] if any(row[c] not in (None, "") for row in rows)]

    def value(v):
        return "" if v is None else f"{v:.4g}" if isinstance(v, float) else cell(str(v))

    lines = ["| " + " | ".join(value(row[c]) for c in columns) + " |" for row in rows]
    return (
        "| "
        + " | ".join(columns)
        + " |\n|"
        + "---|" * len(columns)
        + "\n"
        + "\n".join(lines)
        + "\n"
    )


def notebook(study, runs: list, folder: Path) -> None:
    """The executed notebook of the run that is shown, or the notebook as it is stored, which says
    so.
    """
    kept = [
        path
        for path in [ROOT / "docs" / "executed" / f"{study.name}.ipynb"]
        + [run.folder / "executed.ipynb" for run in runs]
        if path.exists()
    ]
    path = kept[0] if kept else ROOT / "papers" / f"{study.notebook}.ipynb"
    book = json.loads(path.read_text(encoding="utf-8"))
    book["metadata"] = {
        "kernelspec": {"display_name": "python3", "language": "python", "name": "python3"}
    }
    cells = [
        {**part, "metadata": {}}
        for part in book["cells"]
        if "papermill-error-cell-tag" not in part["metadata"].get("tags", [])
    ]
    said = (
        "As it was executed for the published run."
        if kept
        else "The notebook as it is stored, without outputs; "
        f"`medgan-nb reproduce {study.name}` runs it."
    ) + f" Source: `papers/{study.notebook}.ipynb`."
    first = "".join(cells[0]["source"])
    cells[0]["source"] = first.rstrip() + f"\n\n*{said}*"
    for part in cells:
        part["outputs"] = (
            [calm(out) for out in part.get("outputs", []) if out.get("name") != "stderr"]
            if part["cell_type"] == "code"
            else None
        )
        if part["outputs"] is None:
            del part["outputs"]
    book["cells"] = cells
    (folder / f"{study.name}_notebook.ipynb").write_text(json.dumps(book), encoding="utf-8")


def calm(output: dict) -> dict:
    "An output without what only a running notebook can show."
    data = output.get("data")
    return (
        output
        if data is None
        else {
            **output,
            "data": {k: v for k, v in data.items() if "widget" not in k or "image/png" not in data},
            "metadata": {},
        }
    )


# front page and how-tos

FIRST = (
    "howto_own_images",
    "howto_dicom",
    "howto_small_sets",
    "howto_resume",
    "howto_gpu",
    "howto_memory",
    "howto_reader_study",
    "howto_cluster",
)


def howtos(source: Path) -> None:
    "The how-tos, with the simulation that one of them speaks of."
    folder = source / "howto"
    folder.mkdir()
    numbers = small_sets(folder)
    names = sorted(
        (path.stem for path in (ROOT / "docs").glob("howto_*.md")),
        key=lambda name: (FIRST.index(name) if name in FIRST else len(FIRST), name),
    )
    for path in [ROOT / "docs" / f"{name}.md" for name in names]:
        text = path.read_text(encoding="utf-8")
        for key, value in numbers.items():
            text = text.replace("{{" + key + "}}", value)
        (folder / path.name).write_text(text, encoding="utf-8")
    toc = "\n".join(names)
    (folder / "index.md").write_text(
        f"# How to\n\n```{{toctree}}\n:maxdepth: 1\n\n{toc}\n```\n", encoding="utf-8"
    )


FRONT, FRONT_SAYS = (
    "p4/fig2_accuracy.png",
    "Test accuracy with and without synthetic images, ten runs each, beside the paper's numbers",
)


def front_page(source: Path, found: dict[str, tuple]) -> None:
    "What it is, a picture, two commands, and what was found about each paper."
    rows = "\n".join(
        f"| [{name}](studies/{name}.md) | {study.title} | {cell(study.claim)} | "
        f"{finding(study, runs)} |"
        for name, (study, runs) in found.items()
    )
    picture = f"![{FRONT_SAYS}](studies/{FRONT})" if (source / "studies" / FRONT).exists() else ""
    missing = [name for name, (_, runs) in found.items() if not runs]
    gap = f"No runs are published yet for {', '.join(missing)}.\n\n" if missing else ""
    text = (ROOT / "docs" / "front.md").read_text(encoding="utf-8")
    for key, value in {
        "claims": (
            "| study | what | the paper's claim | what our runs say "
            f"|\n|---|---|---|---|\n{rows}\n\n{gap}"
        ),
        "picture": picture,
    }.items():
        text = text.replace("{{" + key + "}}", value)
    (source / "index.md").write_text(text, encoding="utf-8")


def finding(study, runs: list) -> str:
    "The verdict on a study's claim and the sentence it rests on."
    if not runs:
        return "no published run yet"
    return cell(sentences(study.narrative(runs))[0])
