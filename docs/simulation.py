"What a Fréchet distance means on small sets: a simulation, run each time the site is built."

from pathlib import Path

import numpy as np
from scipy.stats import binom, binomtest

from medgan_nb.metrics.fid import frechet_distance
from medgan_nb.metrics.kid import kid
from medgan_nb.metrics.memorization import authenticity
from medgan_nb.viz.curves import curve_with_band
from medgan_nb.viz.grid import save_figure

COUNTS, DIM, REPEATS = (50, 100, 250, 500), 512, 5
METRICS = {"FD": frechet_distance, "KID": kid, "AuthPct": authenticity}
SCALES = {"KID": 1000}
GENERATORS = ("perfect", "copying")


def sample_features(n: int, rng: np.random.Generator) -> np.ndarray:
    "n rows of Gaussian features with a decaying spectrum and a total variance of 100."
    spectrum = np.arange(1, DIM + 1) ** -0.8
    return rng.normal(size=(n, DIM)) * np.sqrt(100 * spectrum / spectrum.sum())


def measure(n: int, seed: int) -> dict[tuple[str, str], float]:
    "Each metric of a perfect generator and of one that copies its n training images."
    rng = np.random.default_rng([n, seed])
    train = sample_features(n, rng)
    perfect = sample_features(n, rng)
    copying = train + rng.normal(size=train.shape) * 0.01
    return {
        (name, generator): SCALES.get(name, 1) * metric(train, generated)
        for generator, generated in zip(GENERATORS, (perfect, copying))
        for name, metric in METRICS.items()
    }


def detectable_accuracy(n: int) -> float:
    """The accuracy that a reader study of n images distinguishes from guessing with a power of
    80 % (two-sided binomial test, p < 0.05).
    """
    critical = next(k for k in range(n // 2, n + 1) if binomtest(k, n).pvalue < 0.05)
    accuracies = np.arange(0.5, 1, 0.005)
    return next(p for p in accuracies if binom.sf(critical - 1, n, p) >= 0.8)


def simulate_small_sets(folder: Path) -> dict[str, str]:
    "Run the simulation and write its figure; the table and numbers that the text quotes."
    values = {}
    for n in COUNTS:
        repeats = [measure(n, seed) for seed in range(REPEATS)]
        values[n] = {key: np.array([row[key] for row in repeats]) for key in repeats[0]}
    save_figure(draw_curves(values), folder / "small_sets.png")
    mean = {n: {key: value.mean() for key, value in row.items()} for n, row in values.items()}
    return {
        "table": markdown_table(values),
        "dim": str(DIM),
        "repeats": str(REPEATS),
        "at50": f"{mean[50]['FD', 'perfect']:.0f}",
        "at500": f"{mean[500]['FD', 'perfect']:.0f}",
        "copy100": f"{mean[100]['FD', 'copying']:.2g}",
        "at100": f"{mean[100]['FD', 'perfect']:.0f}",
    }


def draw_curves(values: dict):
    "Fréchet distance against the number of images, with the range over repeats."
    curves = {}
    for generator in GENERATORS:
        distances = np.stack([values[n]["FD", generator] for n in COUNTS])
        curves[f"{generator} generator"] = (distances.mean(1), distances.min(1), distances.max(1))
    ylabel = f"Fréchet distance ({DIM} features)"
    return curve_with_band(np.array(COUNTS), curves, "images on each side", ylabel)


def markdown_table(values: dict) -> str:
    "Mean and standard deviation over repeats, one row per number of images."
    keys = [(metric, generator) for metric in METRICS for generator in GENERATORS]
    scales = {name: f" x {scale}" for name, scale in SCALES.items()}
    heads = [f"{metric}{scales.get(metric, '')}, {generator}" for metric, generator in keys]
    lines = [["images", *heads], ["---"] * (1 + len(keys))]
    for n in COUNTS:
        cells = [f"{values[n][k].mean():.3g} ± {values[n][k].std(ddof=1):.1g}" for k in keys]
        lines.append([str(n), *cells])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def fill(text: str, values: dict[str, str]) -> str:
    "A text with its {{placeholders}} replaced."
    for key, value in values.items():
        text = text.replace("{{" + key + "}}", value)
    return text
