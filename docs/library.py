"The library's pages: the notebooks of nbs/ by package, and an index of every public name."

import ast
import json
import re
from pathlib import Path

import networkx
from reference import anchor, entry, escape_cell, public_names, summary

from medgan_nb.viz.diagrams import flow_diagram
from medgan_nb.viz.grid import save_figure

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = {
    "core": ("Core", "Errors, random streams, device and precision, atomic files."),
    "data": (
        "Data",
        "Image sets, splits by patient, near-duplicates, file formats.",
    ),
    "simulation": ("Simulation", "Radiographs, mammograms and ultrasound echoes with known truth."),
    "datasets": (
        "Data sets",
        "One published set a page, and a folder of one's own.",
    ),
    "models": ("Models", "One architecture a page, with its number of parameters asserted."),
    "training": (
        "Training",
        "Losses, augmentation, and the loop that resumes bit for bit.",
    ),
    "metrics": (
        "Metrics",
        "Distances, coverage, texture, memorization, and a closed form of each.",
    ),
    "evaluation": (
        "Evaluation",
        "Classifiers and segmentation, statistics, privacy.",
    ),
    "experiments": (
        "Experiments",
        "Runs, sweeps and status: the engine, which knows no study.",
    ),
    "studies": ("Studies", "The four papers: parameters, evaluation, tables and cards of each."),
    "viz": ("Figures", "Image grids, curves, charts and diagrams, in one style."),
    "report": (
        "Report",
        "Finished runs as one page, beside the papers; the Gallery.",
    ),
    "app": ("Applications", "Widgets, launcher, trial on one's own images, sharing, reader study."),
    "cli": ("Command line", "The command `medgan-nb`."),
    "entry": ("Entry", "Where the command begins: what must not wait for the rest."),
    "layout": ("Layout", "Who may import whom, asserted."),
}
DIRECTIVE = re.compile(r"^\s*#\s*\|.*\n?", re.MULTILINE)
HIDDEN = re.compile(r"#\s*\|\s*(hide|default_exp)\b")
LINK = re.compile(r"\]\((\d+_[\w.]+)\.ipynb")  # to another notebook of nbs/
MODULE = re.compile(r"#\|\s*default_exp\s+([\w.]+)")
INTRODUCTION = """# Library

![The packages, each drawn right of those it builds on](layers.png)

The notebooks that the package is exported from: each explains one idea, shows it, and asserts what
must hold. A reference with signatures is at the end of each page.
[Architecture](../architecture.md) says how they belong together,
[promises](../promises.md) what may be relied on, and here is [every public name](../api.md).

| package | what it holds | pages |
|---|---|---|
"""
CONTENTS = """
```{{toctree}}
:hidden:

{pages}
../architecture
../promises
../api
```
"""


def write_library(source: Path) -> None:
    "A page per notebook of nbs/, one per package, and the index of public names."
    folder, modules, packages = source / "library", [], {}
    folder.mkdir()
    for path in sorted((ROOT / "nbs").glob("[0-9]*.ipynb")):
        book = json.loads(path.read_text(encoding="utf-8"))
        module = module_of(book)
        title, subtitle = heading(book)
        cells = [site_cell(cell) for cell in book["cells"]]
        book["cells"] = [cell for cell in cells if cell]
        if module:
            modules.append(module)
            book["cells"].append(reference_cell(module))
        book["metadata"] = {"kernelspec": book["metadata"]["kernelspec"]}  # no widget state
        page = page_name(path.stem)
        (folder / f"{page}.ipynb").write_text(json.dumps(book), encoding="utf-8")
        package = path.stem.partition("_")[2].partition(".")[0]
        packages.setdefault(package, []).append((page, title, subtitle))
    index = INTRODUCTION
    for package, pages in packages.items():
        write_package(folder, package, pages)
        title, sentence = PACKAGES[package]
        index += f"| [{title}]({package}.md) | {sentence} | {len(pages)} |\n"
    index += CONTENTS.format(pages="\n".join(packages))
    (folder / "index.md").write_text(index, encoding="utf-8")
    save_figure(layers_figure(), folder / "layers.png")
    write_index(source, modules)


def write_package(folder: Path, package: str, pages: list[tuple[str, str, str]]) -> None:
    "The page of a package: what it holds, and a line on each of its notebooks."
    title, sentence = PACKAGES[package]
    lines = [f"# {title}\n\n{sentence}\n\n| page | what it does |\n|---|---|"]
    lines += [f"| [{name}]({page}.ipynb) | {escape_cell(about)} |" for page, name, about in pages]
    names = "\n".join(page for page, _, _ in pages)
    lines.append(f"\n```{{toctree}}\n:hidden:\n\n{names}\n```\n")
    (folder / f"{package}.md").write_text("\n".join(lines), encoding="utf-8")


def heading(book: dict) -> tuple[str, str]:
    "Title and subtitle of a notebook."
    title, _, subtitle = "".join(book["cells"][0]["source"]).partition("\n\n> ")
    return title.removeprefix("# ").strip(), " ".join(subtitle.split())


def page_name(stem: str) -> str:
    "A notebook's name as that of a page: Sphinx takes what follows a dot for an ending."
    return stem.replace(".", "_")


def layers_figure():
    "The packages and what each builds on, as 99_layout asserts it; what others imply is left out."
    book = json.loads((ROOT / "nbs" / "99_layout.ipynb").read_text(encoding="utf-8"))
    source = next(
        text
        for text in ("".join(cell["source"]) for cell in book["cells"])
        if text.startswith("MAY = ")
    )
    may = ast.literal_eval(ast.parse(source).body[0].value)
    graph = networkx.DiGraph((used, name) for name, all_used in may.items() for used in all_used)
    edges = networkx.transitive_reduction(graph).edges
    order = list(networkx.lexicographical_topological_sort(graph))
    figure = flow_diagram({name: name for name in order}, [(a, b, "") for a, b in edges])
    for text in figure.axes[0].texts:
        text.set_fontsize(7.5)  # the longest name fits its box
    return figure


def module_of(book: dict) -> str | None:
    "The module that a notebook exports."
    names = (MODULE.search("".join(cell["source"])) for cell in book["cells"])
    return next((match[1] for match in names if match), None)


def site_cell(cell: dict) -> dict | None:
    "A cell without nbdev's directives; None for a hidden or empty one."
    text = "".join(cell["source"])
    if cell["cell_type"] == "code":
        if HIDDEN.search(text):
            return None
        text = DIRECTIVE.sub("", text)
        if not text.strip():
            return None
    else:
        text = LINK.sub(lambda match: f"]({page_name(match[1])}.ipynb", text)
    return {**cell, "source": text.strip("\n"), "metadata": {}}


def module_path(module: str) -> Path:
    return ROOT / "medgan_nb" / (module.replace(".", "/") + ".py")


def reference_cell(module: str) -> dict:
    "The reference of a module as one Markdown cell."
    entries = "\n".join(entry(module, node) for node in public_names(module_path(module)))
    source = f"## Reference: `medgan_nb.{module}`\n\n{entries}"
    return {"cell_type": "markdown", "metadata": {}, "source": source, "id": "reference"}


def write_index(source: Path, modules: list[str]) -> None:
    "Every public name in one table, in alphabetical order."
    rows = {}
    for module in modules:
        for node in public_names(module_path(module)):
            link = f"[{node.name}](#{anchor(module, node.name)})"
            row = f"| {link} | `medgan_nb.{module}` | {escape_cell(summary(node))} |"
            rows[node.name.lower(), module, node.name] = row
    head = "# Every public name\n\n| name | module | what it is |\n|---|---|---|\n"
    table = "\n".join(rows[key] for key in sorted(rows))
    (source / "api.md").write_text(f"{head}{table}\n", encoding="utf-8")
