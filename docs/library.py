"The library's pages: the notebooks of nbs/ by package, and an index of every public name."

import json
import re
from pathlib import Path

from reference import anchor, entry, escape_cell, public_names, summary

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = {
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
HIDDEN = re.compile(r"#\s*\|\s*(hide|default_exp)\b")
MODULE = re.compile(r"#\|\s*default_exp\s+([\w.]+)")
INTRODUCTION = """# Library

The notebooks that the package is exported from: each explains one idea, shows it, and asserts what
must hold. A reference with signatures is at the end of each page, and
[every public name](../api.md) in one list. [Architecture](../architecture.md) says how they belong
together.

"""


def write_library(source: Path) -> None:
    "A page per notebook of nbs/, grouped by package, and the index of public names."
    folder, modules, packages = source / "library", [], {}
    folder.mkdir()
    for path in sorted((ROOT / "nbs").glob("[0-9]*.ipynb")):
        book = json.loads(path.read_text(encoding="utf-8"))
        module = module_of(book)
        cells = [site_cell(cell) for cell in book["cells"]]
        book["cells"] = [cell for cell in cells if cell]
        if module:
            modules.append(module)
            book["cells"].append(reference_cell(module))
        book["metadata"] = {"kernelspec": book["metadata"]["kernelspec"]}  # no widget state
        page = path.stem.replace(".", "_")
        (folder / f"{page}.ipynb").write_text(json.dumps(book), encoding="utf-8")
        package = path.stem.partition("_")[2].partition(".")[0]
        packages.setdefault(PACKAGES[package], []).append(page)
    contents = [
        f"```{{toctree}}\n:caption: {title}\n:maxdepth: 1\n\n" + "\n".join(pages) + "\n```\n"
        for title, pages in packages.items()
    ]
    (folder / "index.md").write_text(INTRODUCTION + "\n".join(contents), encoding="utf-8")
    write_index(source, modules)


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
