"""What a Frechet distance means on small sets: a simulation, run each time the site is built."""

from pathlib import Path

import numpy as np
from scipy.stats import binom, binomtest

from medgan_nb.metrics.fid import frechet_distance
from medgan_nb.metrics.kid import kid
from medgan_nb.metrics.memorization import authenticity
from medgan_nb.viz.curves import curve_with_band
from medgan_nb.viz.grid import save_figure

COUNTS, DIM, REPEATS = (50, 100, 250, 500), 512, 5


def features(n: int, rng: np.random.Generator) -> np.ndarray:
    "n rows of Gaussian features with a decaying spectrum and a total variance of 100."
    spectrum = np.arange(1, DIM + 1) ** -0.8
    return rng.normal(size=(n, DIM)) * np.sqrt(100 * spectrum / spectrum.sum())


def one(n: int, seed: int) -> dict[str, float]:
    """An honest generator (fresh draws of the same distribution) and a copying one, measured
    against n training images.
    """
    rng = np.random.default_rng([n, seed])
    train = features(n, rng)
    fakes = {"honest": features(n, rng), "copy": train + rng.normal(size=train.shape) * 0.01}
    measured = {
        "FD": frechet_distance,
        "KD": lambda a, b: 1000 * kid(a, b),
        "auth": authenticity,
    }
    return {
        f"{what} {who}": measure(train, fake)
        for who, fake in fakes.items()
        for what, measure in measured.items()
    }


def detectable(n: int) -> str:
    """The true accuracy that a reading test of n images shows to differ from guessing with a power
    of 80 %, at p < 0.05 on both sides.
    """
    critical = next(k for k in range(n // 2, n + 1) if binomtest(k, n).pvalue < 0.05)
    return f"{next(p for p in np.arange(0.5, 1, 0.005) if binom.sf(critical - 1, n, p) >= 0.8):.0%}"


def small_sets(folder: Path) -> dict[str, str]:
    "Run it; write the curve; give the table and the numbers that the text speaks of."
    found = {n: [one(n, seed) for seed in range(REPEATS)] for n in COUNTS}
    values = {
        n: {key: np.array([row[key] for row in rows]) for key in rows[0]}
        for n, rows in found.items()
    }

    def band(key):
        return tuple(
            np.array([f(values[n][key]) for n in COUNTS]) for f in (np.mean, np.min, np.max)
        )

    figure = curve_with_band(
        np.array(COUNTS),
        {
            "a perfect generator": band("FD honest"),
            "one that copies its training set": band("FD copy"),
        },
        "images on each side",
        f"Fréchet distance ({DIM} features)",
    )
    save_figure(figure, folder / "small_sets.png")
    lines = [
        "| images | FD, perfect | FD, copying | KD x 1000, perfect | KD x 1000, copying | "
        "AuthPct, perfect | AuthPct, copying |",
        "|---|---|---|---|---|---|---|",
    ]
    for n in COUNTS:
        keys = ("FD honest", "FD copy", "KD honest", "KD copy", "auth honest", "auth copy")
        lines.append(
            f"| {n} | "
            + " | ".join(
                f"{values[n][key].mean():.3g} ± {values[n][key].std(ddof=1):.1g}" for key in keys
            )
            + " |"
        )
    at = {n: values[n]["FD honest"].mean() for n in COUNTS}
    return {
        "table": "\n".join(lines),
        "dim": str(DIM),
        "repeats": str(REPEATS),
        "at50": f"{at[50]:.0f}",
        "at500": f"{at[500]:.0f}",
        "copy100": f"{values[100]['FD copy'].mean():.2g}",
        "at100": f"{at[100]:.0f}",
        "power40": detectable(40),
        "power100": detectable(100),
    }
