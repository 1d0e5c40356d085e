"""What a GPU is asked: does it work, how fast is it, and what does study 2 reach at full size?

    python benchmarks/gpu.py OUT --data-dir DIR [--peer CHECKOUT] [--minutes 40]
    python benchmarks/gpu.py OUT --toy      # all of it at 32 px on simulated images; a CPU will do

Three parts, each with its answer in OUT/summary.json as soon as it is there:

tests     tests/test_cuda.py, by pytest
speed     StyleGAN2 with ADA, 256 px, batch 32, phase by phase beside the peer in one process
          (stylegan2.py; the peer is a checkout of NVlabs/stylegan2-ada-pytorch), and the most
          memory that steps of our training took
training  study 2's ADA, preset paper, on 500 and on 100 images, each for half of the time left:
          log.jsonl, checkpoint, samples (first ones, not chosen), distance and memorization.
          Begun again with the same OUT it goes on from the last checkpoint, a minute old at most.
"""

import argparse
import importlib.util
import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch

from medgan_nb.core.errors import MedganError
from medgan_nb.core.files import write_json
from medgan_nb.data.dataset import ImageSet
from medgan_nb.metrics.calibration import calibration_card
from medgan_nb.metrics.features import FeatureNetwork, extract_features, feature_network
from medgan_nb.metrics.fid import frechet_distance
from medgan_nb.metrics.memorization import authenticity
from medgan_nb.studies.p2.study import PRESETS, build_recipe, configure
from medgan_nb.training.loop import Trained, train, train_step
from medgan_nb.training.recipe import Recipe
from medgan_nb.training.step import init_state
from medgan_nb.viz.grid import image_grid, save_figure

HERE = Path(__file__).resolve().parent
SIZES = (500, 100)
NETWORK = "efficientnet_lite2"
FULL = {"size": 256, "batch-size": 32, "rounds": 3}
TOY = {"size": 32, "batch-size": 4, "rounds": 1, "channel-base": 256, "channel-max": 32}


class OutOfTimeError(Exception):
    "The time of a training is over; its last checkpoint is in its folder."


def run_tests() -> dict:
    "Whether the CUDA tests pass."
    if importlib.util.find_spec("pytest") is None:
        return {"said": "pytest is not installed: not run"}
    words = [sys.executable, "-m", "pytest", "-q", HERE.parent / "tests" / "test_cuda.py"]
    done = subprocess.run(list(map(str, words)), capture_output=True, text=True)
    return {"exit": done.returncode, "said": done.stdout.strip().splitlines()[-1:]}


def time_steps(out: Path, peer: Path | None, device: str, options: dict) -> dict:
    "Seconds of each phase, ours and the peer's in turn."
    table = out / "speed.json"
    words = [sys.executable, HERE / "stylegan2.py", *([peer] if peer else []), "--json", table]
    for name, value in {"device": device, **options}.items():
        words += [f"--{name}", value]
    words += ["--phases", "Gmain,Dmain,Dreg,Greg,ema,gen,Gmain@bgc,Dmain@bgc,Dreg@bgc"]
    done = subprocess.run(list(map(str, words)), capture_output=True, text=True)
    if done.returncode:
        return {"exit": done.returncode, "said": done.stderr.strip().splitlines()[-1:]}
    return {"exit": 0, "table": table.name, **json.loads(table.read_text())}


def train_speed(recipe: Recipe, images: ImageSet, device: str, steps: int) -> dict:
    "Seconds for a thousand images, all regularizers and ADA included, and the most memory."
    state = init_state(recipe, 0, device, "auto")
    state.total_steps = 10**6
    images, on_gpu = images.to(state.device), state.device.type == "cuda"
    for step in range(2 * steps):
        if step == steps:
            if on_gpu:
                torch.cuda.synchronize()
                torch.cuda.reset_peak_memory_stats()
            start = time.perf_counter()
        train_step(state, images, 0)
    if on_gpu:
        torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    peak = torch.cuda.max_memory_allocated() / 2**30 if on_gpu else None
    return {"seconds a kimg": 1000 * seconds / (steps * recipe.batch_size), "peak GiB": peak}


def train_until(
    recipe: Recipe, images: ImageSet, kimg: float, folder: Path, device: str, seconds: float
) -> Trained:
    "Train for a time, or to the end; gives what it is then, without the optimisers."
    ends, kept = time.monotonic() + seconds, {}

    def stop(state, log):
        kept["trained"] = Trained(recipe, state.G_ema, state.D, log, state.kimg, state.seconds)
        if time.monotonic() >= ends:
            raise OutOfTimeError

    options = dict(kimg=kimg, folder=folder, device=device, ticks=4000, hooks=[stop], bar=False)
    try:
        return train(recipe, images, **options)
    except OutOfTimeError:
        return replace(kept["trained"], G=kept["trained"].G.eval())


def admitted_network(
    data: dict[str, ImageSet], device: str, every: int
) -> tuple[FeatureNetwork | None, str]:
    "The network that judges, once its calibration card passes; else none, and why."
    test, pool = (data[name].select(range(0, len(data[name]), every)) for name in ("test", "pool"))
    try:
        network = feature_network(NETWORK)
    except MedganError as error:
        return None, str(error)
    card = calibration_card(
        network,
        test.batch(),
        pool.batch(),
        pool.labels,
        pool.classes,
        reference_labels=test.labels,
        groups=pool.groups,
        reference_groups=test.groups,
        device=device,
    )
    return (network, "") if card.passes else (None, "; ".join(card.refusals))


def judge(
    trained: Trained, data: dict[str, ImageSet], network: FeatureNetwork, device: str
) -> dict:
    "Samples against held-out and training images, at the same count."
    images, test = data["train"], data["test"]
    n = min(len(test), len(images))
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[:n]
    known_images = images.select(order.numpy())
    y = torch.as_tensor(known_images.labels) if trained.recipe.n_classes else None
    fake = extract_features(network, trained.sample(n, 0, y, batch_size=32), device=device)
    real = extract_features(network, test.select(range(n)).batch(), device=device)
    known = extract_features(network, known_images.batch(), device=device)
    return {
        f"FD({NETWORK})": frechet_distance(real, fake),
        "real baseline": frechet_distance(real, known),
        "images on each side": n,
        "AuthPct": authenticity(known, fake),
    }


def train_and_judge(
    out: Path,
    n: int,
    given: dict,
    device: str,
    seconds: float,
    judged_by: tuple[FeatureNetwork | None, str],
) -> dict:
    "Study 2's ADA on n images."
    config, data = configure(given | {"model": "stylegan2_ada", "dataset_size": n})
    images, settings = data["train"], config["settings"]
    recipe = build_recipe("stylegan2_ada", settings, len(images.classes))
    folder = out / f"ada_{n}"
    trained = train_until(recipe, images, settings["gan_kimg"], folder, device, seconds)
    y = torch.arange(len(images.classes)).repeat_interleave(8)
    samples = trained.sample(len(y), 0, y if recipe.n_classes else None, batch_size=8)
    title = f"{n} training images, {trained.kimg:.0f} kimg: first samples, {images.classes}"
    save_figure(image_grid(samples, columns=8, title=title), folder / "samples.png")
    last = trained.log[-1] if trained.log else {}
    network, refusal = judged_by
    measured = judge(trained, data, network, device) if network else {"no distance": refusal}
    return {
        "kimg": trained.kimg,
        "seconds": trained.seconds,
        "ADA p": last.get("ada_p"),
        **measured,
    }


def parse_options() -> argparse.Namespace:
    "The command line."
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--data-dir", default="", help="holds Dataset_BUSI_with_GT")
    parser.add_argument("--peer", type=Path)
    parser.add_argument("--minutes", type=float, default=40.0)
    parser.add_argument("--toy", action="store_true", help="32 px, simulated images, seconds")
    return parser.parse_args()


def main() -> None:
    "All three parts, each written when it is done."
    options, started = parse_options(), time.monotonic()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and not options.toy:
        sys.exit("no CUDA device here; run it where there is one, or with --toy")
    preset, steps, sizes = ("smoke", 2, (50, 20)) if options.toy else ("paper", 32, SIZES)
    given = {"preset": preset, "data_dir": options.data_dir}
    name = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    summary = {"device": name, "torch": torch.__version__}

    def keep(key: str, value) -> None:
        summary[key] = value
        print(f"{key}: {value}", flush=True)
        write_json(options.out / "summary.json", summary)

    keep("tests", run_tests())
    keep("speed", time_steps(options.out, options.peer, device, TOY if options.toy else FULL))
    _, data = configure(given | {"model": "stylegan2_ada", "dataset_size": sizes[-1]})
    settings = PRESETS[preset] | {"batch_size": (TOY if options.toy else FULL)["batch-size"]}
    recipe = build_recipe("stylegan2_ada", settings, len(data["train"].classes))
    keep("steps", train_speed(recipe, data["train"], device, steps))
    judged_by = admitted_network(data, device, 12 if options.toy else 1)
    for k, n in enumerate(sizes):
        left = 60 * options.minutes - (time.monotonic() - started)
        seconds = max(0.0, left / (len(sizes) - k) - 30)
        keep(f"ADA, {n} images", train_and_judge(options.out, n, given, device, seconds, judged_by))


if __name__ == "__main__":
    main()
