"""The reference of a module, read from its source: signatures, and docstrings with their sections
as tables.
"""

import ast
import re
from pathlib import Path

SECTION = re.compile(r"^(Parameters|Attributes|Returns|Raises|Yields|Notes)\n-{3,}\n", re.MULTILINE)


def public(path: Path) -> list[ast.AST]:
    "Public functions and classes of a module, in its own order."
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return [
        node
        for node in tree.body
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_")
    ]


def anchor(module: str, name: str) -> str:
    "The target of a name, for links."
    kind = "class-" if name[0].isupper() else ""  # Audit and audit are two names, but one target
    return f"api-{module}-{kind}{name}".replace(".", "-").replace("_", "-").lower()


def signature(node: ast.AST) -> str:
    "A definition without its body, broken into lines where it is long."
    if isinstance(node, ast.ClassDef):
        init = next(
            (n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"), None
        )
        fields = [ast.unparse(n) for n in node.body if isinstance(n, ast.AnnAssign)]
        inside = (
            ast.unparse(init.args).removeprefix("self").removeprefix(", ")
            if init
            else ", ".join(fields)
        )
        return fold(f"{node.name}({inside})")
    returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    return fold(f"{node.name}({ast.unparse(node.args)}){returns}")


def fold(text: str, width: int = 96) -> str:
    "Break a long signature after commas."
    lines = [""]
    for word in re.split(r"(?<=,) ", text):
        if lines[-1] and len(lines[-1]) + len(word) > width:
            lines.append("    ")
        lines[-1] += ("" if not lines[-1].strip() else " ") + word
    return "\n".join(lines)


def first_line(node: ast.AST) -> str:
    "What a docstring says in its first paragraph."
    return " ".join((ast.get_docstring(node) or "").split("\n\n")[0].split())


def entry(module: str, node: ast.AST, level: str = "###") -> str:
    "One name of the reference as Markdown."
    parts = SECTION.split(ast.get_docstring(node) or "")
    out = [
        f"({anchor(module, node.name)})=\n{level} {node.name}\n",
        f"```python\n{signature(node)}\n```\n",
        formulas(parts[0]),
    ]
    for title, body in zip(parts[1::2], parts[2::2]):
        out.append(f"**{title}**\n\n{definitions(body) if title != 'Notes' else formulas(body)}")
    if isinstance(node, ast.ClassDef):
        methods = [
            n
            for n in node.body
            if isinstance(n, ast.FunctionDef)
            and not n.name.startswith("_")
            and ast.get_docstring(n)
        ]
        out += [f"**{n.name}**`({arguments(n)})`: {first_line(n)}\n" for n in methods]
    return "\n".join(out) + "\n"


def arguments(node: ast.FunctionDef) -> str:
    "Arguments of a method without self."
    return ast.unparse(node.args).removeprefix("self").removeprefix(", ")


def definitions(body: str) -> str:
    "The items of a section of a numpydoc docstring as a table."
    rows = []
    for block in re.split(r"\n(?=\S)", body.strip("\n")):
        head, *text = block.split("\n")
        name, _, kind = head.partition(" : ")
        rows.append(
            f"| {cell(f'`{name.strip()}`')} | {cell(kind)} | "
            f"{cell(' '.join(line.strip() for line in text))} |"
        )
    return "| | | |\n|---|---|---|\n" + "\n".join(rows) + "\n"


def cell(text: str) -> str:
    "Text that a table cell can hold."
    return formulas(text).replace("|", "\\|")


def formulas(text: str) -> str:
    """Docstrings are plain text: what Markdown would take for emphasis or HTML outside of backticks
    is escaped.
    """
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(
        part if part.startswith("`") else re.sub(r"([*_<>\[\]$])", r"\\\1", part) for part in parts
    )
