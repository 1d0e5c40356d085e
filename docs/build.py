"""Build the site: `python docs/build.py [FOLDER]`. Puts the pages together in FOLDER/_proc and lets
Sphinx render them to FOLDER/_docs (the project's
own folder unless another is given); a warning is an error.

The library's pages are the notebooks of nbs/ with their stored outputs and nbdev's directives taken
out; a reference read from the source (without
importing it) stands at the end of each. The studies' pages and the front page are written from
outputs/published/.
"""

import shutil
import subprocess
import sys
from pathlib import Path

from pages import ROOT, front_page, howtos, library, studies_pages


def main(folder: Path = ROOT) -> int:
    "Write the pages, render them, say where the site is."
    source, target = folder / "_proc", folder / "_docs"
    for old in (source, target):
        shutil.rmtree(old, ignore_errors=True)
    source.mkdir(parents=True)
    shutil.copy(ROOT / "docs" / "conf.py", source)
    shutil.copy(ROOT / "docs" / "architecture.md", source)
    shutil.copytree(ROOT / "docs" / "_static", source / "_static")
    library(source)
    howtos(source)
    front_page(source, studies_pages(source))
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "sphinx",
            "-W",
            "--keep-going",
            "-q",
            "-b",
            "html",
            "-j",
            "2",
            "-d",
            str(source / "_doctrees"),
            str(source),
            str(target),
        ]
    )
    if done.returncode == 0:
        print(f"Open {target / 'index.html'}")
    return done.returncode


if __name__ == "__main__":
    sys.exit(main(*map(Path, sys.argv[1:2])))
