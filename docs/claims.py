"What the published runs say of the four papers' claims: the same words on README and front page."

from pathlib import Path

from reference import escape_cell

from medgan_nb.experiments.run import Run
from medgan_nb.report.build import chosen
from medgan_nb.studies.common.card import Card
from medgan_nb.studies.common.comparison import NOT_REPORTED
from medgan_nb.studies.registry import STUDIES

ROOT = Path(__file__).resolve().parent.parent


def published_runs() -> dict[str, list[Run]]:
    "The published runs that are shown, by study."
    return {name: chosen(study, ROOT / "nowhere")[0] for name, study in STUDIES.items()}


def published_cards(runs: dict[str, list[Run]]) -> list[Card]:
    "The card of each study over its published runs."
    return [study.card(runs[name]) for name, study in STUDIES.items()]


def verdict_word(card: Card) -> str:
    "The card's word; a study without published runs has none yet."
    return card.verdict if card.basis else "no published run yet"


def claims_table(cards: list[Card], link: str = "{0}") -> str:
    """A row a claim: the paper's, the word, and our sentence.

    Parameters
    ----------
    cards : list of Card
        Of all studies.
    link : str
        How a study's name is written; `{0}` is the name.
    """
    lines = ["| | the paper's claim | verdict | what our runs say |", "|---|---|---|---|"]
    for card in cards:
        answer = escape_cell(card.answer) if card.basis else ""
        answer = f"**Simulated images.** {answer}" if card.simulated and card.basis else answer
        cells = (link.format(card.study), escape_cell(card.claim), f"**{verdict_word(card)}**")
        lines.append(f"| {' | '.join((*cells, answer))} |")
    return "\n".join(lines)


def short_answer(cards: list[Card]) -> str:
    "How the four claims stand, in a sentence."
    by_word = {}
    for card in cards:
        if card.basis and card.verdict != NOT_REPORTED:
            word = f"{card.verdict} (simulated images)" if card.simulated else card.verdict
            by_word.setdefault(word, []).append(card.study)
    unpublished = [card.study for card in cards if not card.basis]
    parts = [f"{', '.join(names)} **{word}**" for word, names in by_word.items()]
    if unpublished:
        parts.append(f"{', '.join(unpublished)} not yet published")
    return f"Of the claims of the {len(cards)} papers, by our runs: {'; '.join(parts)}."
