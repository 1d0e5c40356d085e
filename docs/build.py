"""Build the site: `python docs/build.py [FOLDER]`.

Puts the pages together in FOLDER/_proc and lets Sphinx render them to FOLDER/_docs (the project's
own folder unless another is given); a warning is an error. The library's pages are the notebooks of
nbs/ with their stored outputs and a reference read from the source; all other pages are written
from docs/ and outputs/published/.
"""

import shutil
import subprocess
import sys
from pathlib import Path

from claims import ROOT, published_cards, published_runs
from library import write_library
from measuring import write_measuring
from pages import write_front_page, write_gallery, write_howtos, write_studies

from medgan_nb.report.style import COMPONENTS


def main(folder: Path = ROOT) -> int:
    "Write the pages, render them, and print where the site is."
    source, target = folder / "_proc", folder / "_docs"
    for old in (source, target):
        shutil.rmtree(old, ignore_errors=True)
    source.mkdir(parents=True)
    for name in ("conf.py", "architecture.md", "promises.md"):
        shutil.copy(ROOT / "docs" / name, source)
    shutil.copytree(ROOT / "docs" / "_static", source / "_static")
    (source / "_static" / "components.css").write_text(COMPONENTS, encoding="utf-8")
    runs = published_runs()
    cards = published_cards(runs)
    write_library(source)
    write_howtos(source)
    write_measuring(source, runs)
    write_gallery(source, runs)
    write_studies(source, runs, cards)
    write_front_page(source, runs, cards)
    options = ["-W", "--keep-going", "-q", "-b", "html", "-j", "2", "-d", source / "_doctrees"]
    sphinx = [sys.executable, "-m", "sphinx", *options, source, target]
    done = subprocess.run(list(map(str, sphinx)))
    if done.returncode == 0:
        print(f"Open {target / 'index.html'}")
    return done.returncode


if __name__ == "__main__":
    sys.exit(main(*map(Path, sys.argv[1:2])))
