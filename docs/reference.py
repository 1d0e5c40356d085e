"""The reference of a module, read from its source without importing it: signatures, and docstrings
with their sections as tables.
"""

import ast
import re
from pathlib import Path

SECTION = re.compile(r"^(Parameters|Attributes|Returns|Raises|Yields|Notes)\n-{3,}\n", re.MULTILINE)
MARKUP = re.compile(r"([*_<>\[\]$])")


def public_names(path: Path) -> list[ast.AST]:
    "Public functions and classes of a module, in its own order."
    tree = ast.parse(path.read_text(encoding="utf-8"))
    definitions = [node for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))]
    return [node for node in definitions if not node.name.startswith("_")]


def anchor(module: str, name: str) -> str:
    "The target of a name, for links; a class and a function may differ in case only."
    kind = "class-" if name[0].isupper() else ""
    return f"api-{module}-{kind}{name}".replace(".", "-").replace("_", "-").lower()


def summary(node: ast.AST) -> str:
    "The first paragraph of a docstring."
    return " ".join((ast.get_docstring(node) or "").split("\n\n")[0].split())


def entry(module: str, node: ast.AST) -> str:
    "One name of the reference as Markdown."
    description, *sections = SECTION.split(ast.get_docstring(node) or "")
    blocks = [
        f"({anchor(module, node.name)})=\n### {node.name}\n",
        f"```python\n{signature(node)}\n```\n",
        escape_markup(description),
    ]
    for title, body in zip(sections[::2], sections[1::2]):
        content = escape_markup(body) if title == "Notes" else section_table(body)
        blocks.append(f"**{title}**\n\n{content}")
    if isinstance(node, ast.ClassDef):
        blocks += [f"**{m.name}**`({arguments(m)})`: {summary(m)}\n" for m in methods(node)]
    return "\n".join(blocks) + "\n"


def signature(node: ast.AST) -> str:
    "A definition without its body, broken into lines if it is long."
    if isinstance(node, ast.FunctionDef):
        returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
        return fold(f"{node.name}({ast.unparse(node.args)}){returns}")
    for member in node.body:
        if isinstance(member, ast.FunctionDef) and member.name == "__init__":
            return fold(f"{node.name}({arguments(member)})")
    fields = [ast.unparse(member) for member in node.body if isinstance(member, ast.AnnAssign)]
    return fold(f"{node.name}({', '.join(fields)})")


def methods(node: ast.ClassDef) -> list[ast.FunctionDef]:
    "Public methods with a docstring."
    functions = [member for member in node.body if isinstance(member, ast.FunctionDef)]
    return [f for f in functions if not f.name.startswith("_") and ast.get_docstring(f)]


def arguments(node: ast.FunctionDef) -> str:
    "Arguments of a method without self."
    return ast.unparse(node.args).removeprefix("self").removeprefix(", ")


def fold(text: str, width: int = 96) -> str:
    "Break a long signature after commas."
    lines = [""]
    for word in re.split(r"(?<=,) ", text):
        if lines[-1] and len(lines[-1]) + len(word) > width:
            lines.append("    ")
        lines[-1] += ("" if not lines[-1].strip() else " ") + word
    return "\n".join(lines)


def section_table(body: str) -> str:
    "The items of a section of a NumPy docstring as a table."
    rows = []
    for item in re.split(r"\n(?=\S)", body.strip("\n")):
        head, *lines = item.split("\n")
        name, _, kind = head.partition(" : ")
        text = " ".join(line.strip() for line in lines)
        cells = [escape_cell(cell) for cell in (f"`{name.strip()}`", kind, text)]
        rows.append(f"| {' | '.join(cells)} |")
    return "| | | |\n|---|---|---|\n" + "\n".join(rows) + "\n"


def escape_cell(text: str) -> str:
    "Text that a table cell can hold."
    return escape_markup(text).replace("|", "\\|")


def escape_markup(text: str) -> str:
    "Plain text in which Markdown and HTML outside of backticks are escaped."
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(part if part.startswith("`") else MARKUP.sub(r"\\\1", part) for part in parts)
