"""The picture that README and front page open with: real images beside generated ones, by method.

Drawn from the cards of the published runs: `python docs/readme.py` writes it to docs/_static/.
"""

import io
from pathlib import Path

import numpy as np
from PIL import Image

from medgan_nb.studies.common.card import Card
from medgan_nb.viz.sheet import sample_sheet, sheet_png

HERO = Path(__file__).parent / "_static" / "hero.png"


def hero(cards: list[Card]) -> tuple[bytes, str]:
    "The picture as PNG, and what it shows."
    shown = [card for card in cards if card.samples and not card.simulated]
    card = max(shown, key=lambda card: len(card.samples))
    labels = "; ".join(label for label, _ in card.samples)
    sheet = sample_sheet(card.samples, card.columns)
    return sheet_png(sheet), f"{card.study}, {card.title}: {labels}"


def same_picture(a: bytes, b: bytes) -> bool:
    "Whether two PNG files show the same pixels."
    first, second = (np.asarray(Image.open(io.BytesIO(data)).convert("RGB")) for data in (a, b))
    return np.array_equal(first, second)
