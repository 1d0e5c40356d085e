"""Build the site: `python docs/build.py`. Puts the pages together in _proc/ and lets Sphinx render them to _docs/; a warning is an error.

The library's pages are the notebooks of nbs/ with their stored outputs and nbdev's directives taken out; a reference read from the source (without
importing it) stands at the end of each. The studies' pages and the front page are written from outputs/published/.
"""
import shutil
import subprocess
import sys
from pathlib import Path

from pages import ROOT, front_page, howtos, library, studies_pages

SOURCE, TARGET = ROOT / "_proc", ROOT / "_docs"


def main() -> int:
    "Write the pages, render them, say where the site is."
    for folder in (SOURCE, TARGET):
        shutil.rmtree(folder, ignore_errors=True)
    SOURCE.mkdir()
    shutil.copy(ROOT / "docs" / "conf.py", SOURCE)
    shutil.copytree(ROOT / "docs" / "_static", SOURCE / "_static")
    library(SOURCE)
    howtos(SOURCE)
    front_page(SOURCE, studies_pages(SOURCE))
    done = subprocess.run([sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", "-j", "2", "-d", str(SOURCE / "_doctrees"),
                           str(SOURCE), str(TARGET)])
    if done.returncode == 0:
        print(f"Open {TARGET / 'index.html'}")
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
