"""Write what README takes from the published runs: `python docs/readme.py`.

The hero picture goes to docs/_static/hero.png, the table of claims between the markers
`<!-- claims -->` and `<!-- /claims -->`.
"""

import re
from pathlib import Path

from claims import claims_table, published_cards, published_runs
from hero import HERO, hero

from medgan_nb.core.files import atomic_write

README = Path(__file__).resolve().parent.parent / "README.md"
BLOCK = "<!-- {0} -->\n{1}\n<!-- /{0} -->"


def readme_text(text: str) -> str:
    "README with the picture's words and the table as the published runs give them."
    runs = published_runs()
    cards = published_cards(runs)
    picture = f"![{hero(cards)[1]}](docs/_static/{HERO.name})"
    for name, content in {"hero": picture, "claims": claims_table(cards)}.items():
        block = BLOCK.format(name, content)
        text = re.sub(BLOCK.format(name, ".*?"), lambda _, b=block: b, text, flags=re.DOTALL)
    return text


if __name__ == "__main__":
    runs = published_runs()
    atomic_write(HERO, hero(published_cards(runs))[0])
    atomic_write(README, readme_text(README.read_text(encoding="utf-8")))
    print(f"wrote {README.name} and {HERO.name}")
