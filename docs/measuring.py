"""The page "How we measure": calibration cards, baselines, intervals and verdicts.

Every number is from the published runs.
"""

from collections.abc import Iterable
from pathlib import Path

from simulation import fill

from medgan_nb.datasets.catalogue import may_be_shown
from medgan_nb.experiments.run import Run
from medgan_nb.metrics.distortions import describe
from medgan_nb.report.build import shown_run
from medgan_nb.studies.common.calibration import ADMITTED
from medgan_nb.studies.common.comparison import Comparison
from medgan_nb.studies.common.results import Result, results_of
from medgan_nb.studies.registry import STUDIES


def write_measuring(source: Path, runs: dict[str, list[Run]]) -> None:
    "The page and its pictures."
    folder = source / "measuring"
    folder.mkdir()
    cards = list(published_cards(runs, folder))
    shown = next(card for card in cards if card["images"])
    values = {
        "cards": "\n".join(map(card_section, cards)),
        "picture": shown["images"],
        "caption": shown["caption"],
        "translation": translation(shown),
        "example": worked_example(runs),
        "variance": variance_words(runs),
    }
    text = (Path(__file__).parent / "measuring.md").read_text(encoding="utf-8")
    (source / "measuring.md").write_text(fill(text, values), encoding="utf-8")


# cards


def published_cards(runs: dict[str, list[Run]], folder: Path) -> Iterable[dict]:
    "The cards of each study whose published runs hold them, with the pictures of the shown run."
    for name, study in STUDIES.items():
        found = results_of(runs[name][:1], "calibration")
        results = [r for r in found if r.metric != "FD" or "distortion" in r.condition]
        if not results:
            continue
        run = shown_run(study, runs[name])
        pictures = {}
        for stem in (
            (CURVES, IMAGES) if may_be_shown(run.config["params"]["dataset"]) else (CURVES,)
        ):
            path = run.folder / "figures" / f"{stem}.png"
            if path.exists():
                (folder / f"{name}_{path.name}").write_bytes(path.read_bytes())
                pictures[stem] = f"measuring/{name}_{path.name}"
        data = run.config["data"]
        yield {
            "name": data["name"],
            "simulated": data["simulated"],
            "results": results,
            "curves": pictures.get(CURVES),
            "images": pictures.get(IMAGES),
            "caption": f"Images ({data['name']}) under each known damage; what a set damaged in "
            "this way scores stands in the table below",
        }


CURVES, IMAGES = "calibration", "calibration_images"


def label_of(result: Result) -> str:
    "`blur 1 px`, as `distorted_examples` calls it; a class that is left out by its name."
    kind, strength = result.condition["distortion"], result.condition.get("strength")
    return f"without {strength}" if isinstance(strength, str) else describe(kind, strength)


def distances(results: list[Result], network: str | None = None) -> dict[str, float]:
    "Distance of each distorted set by one network, the first one where none is named."
    network = network or results[0].feature_network
    rows = [r for r in results if r.metric == "FD" and r.feature_network == network]
    return {label_of(row): row.value for row in rows}


def card_section(card: dict) -> str:
    "The cards of one image set: what is admitted, the table, the curves."
    results = card["results"]
    networks = list(dict.fromkeys(result.feature_network for result in results))
    by_network = {network: distances(results, network) for network in networks}
    simulated = " (simulated: no patients)" if card["simulated"] else ""
    count = next(result.n for result in results if result.metric == "FD")
    lines = [f"### {card['name']}{simulated}\n"]
    lines += [f"* {admission(results, network)}" for network in networks]
    curves = f"![Distance against blur, noise and other damage]({card['curves']})\n"
    lines.append(f"\n{curves if card['curves'] else ''}")
    lines.append(f"| real images | {' | '.join(f'FD({name})' for name in networks)} |")
    lines.append("|---" * (1 + len(networks)) + "|")
    for which in by_network[networks[0]]:
        cells = [distance_cell(by_network[network], which) for network in networks]
        lines.append(f"| {which} | {' | '.join(cells)} |")
    return (
        "\n".join(lines)
        + f"\n\n{count} images on each side; without one class, as many as are left.\n"
    )


def distance_cell(rows: dict[str, float], which: str) -> str:
    "`507 (1.7 x clean)`."
    if which not in rows or which in ("clean", "copies"):
        return f"{rows[which]:.0f}" if which in rows else ""
    return f"{rows[which]:.0f} ({rows[which] / rows['clean']:.1f} x clean)"


def admission(results: list[Result], network: str) -> str:
    "Whether a network may measure on these images, what its probe tells apart, what is open."
    own = [result for result in results if result.feature_network == network]
    by_metric = {result.metric: result for result in own}
    verdict = by_metric[ADMITTED]
    words = "is **admitted**" if verdict.value else "is **refused**"
    recalls = [
        f"{result.condition['class']} {result.value:.0%}"
        for result in own
        if result.metric == "probe recall"
    ]
    dead = by_metric["dead features (share)"].value
    text = f"`{network}` {words}. "
    if recalls:
        text += f"A linear classifier on its features recognizes {', '.join(recalls)}. "
    text += f"{dead:.0%} of its features never vary."
    return f"{text} {verdict.note.capitalize()}." if verdict.note else text


def translation(card: dict) -> str:
    "What distances on a set look like, in words."
    results = card["results"]
    rows = distances(results)
    steps = [f"**{rows[which]:.0f}** {words}" for which, words in STEPS.items() if which in rows]
    return f"By `{results[0].feature_network}`, {', '.join(steps)}."


STEPS = {
    "clean": "is what other real images score",
    "blur 1 px": "what real images score after a blur of one pixel",
    "blur 2 px": "after a blur of two",
    "noise sd 0.1": "with faint noise",
    "noise sd 0.2": "with strong noise",
    "copies": "what a generator scores that hands out its training images",
}


# examples


def claim_comparison(runs: dict[str, list[Run]]) -> tuple[str, Comparison] | None:
    "A paper's difference beside ours, with interval, prediction interval and detectable effect."
    for name, study in STUDIES.items():
        for comparisons in study.tables(runs[name]).values() if runs[name] else ():
            for comparison in comparisons:
                result = comparison.result
                known = (comparison.paper, result.ci_low, result.pi_low, result.mde)
                if None not in known:
                    return name, comparison
    return None


def worked_example(runs: dict[str, list[Run]]) -> str:
    "Interval, prediction interval and detectable effect of one published difference."
    found = claim_comparison(runs)
    if found is None:
        return "No published difference has a prediction interval yet.\n"
    name, comparison = found
    result = comparison.result
    return (
        f"The paper of [{name}](studies/{name}.md) reports a change of **{comparison.paper:+.2f}** "
        f"{result.metric}. We trained {result.n_runs} times:\n\n"
        "| question | answer |\n|---|---|\n"
        f"| What is the mean change? | {result.value:+.1f} "
        f"(95 % interval {result.ci_low:+.1f} to {result.ci_high:+.1f}) |\n"
        "| Where would one more run land? | between "
        f"{result.pi_low:+.1f} and {result.pi_high:+.1f} (95 % prediction interval) |\n"
        "| What true change would an experiment of this size have found in 80 % of cases? | "
        f"{result.mde:.1f} |\n"
        f"| What may be said? | **{comparison.verdict}** |\n"
    )


def variance_words(runs: dict[str, list[Run]]) -> str:
    "Where the scatter of one arm comes from, in the first study that reports it."
    for name, study in STUDIES.items():
        rows = study.tables(runs[name]).get("variance", []) if runs[name] else []
        sources = {}
        for row in (comparison.result for comparison in rows):
            if "source" in row.condition and row.value is not None:
                sources.setdefault(row.condition.get("arm"), {})[row.condition["source"]] = (
                    row.value
                )
        if sources:
            arm, parts = next(iter(sources.items()))
            listed = ", ".join(f"{source} {value:.1f}" for source, value in parts.items())
            link = f"[{name}](studies/{name}.md)"
            return f"In {link}, arm {arm}, standard deviations in points: {listed}."
    return "No published study reports its parts yet."
