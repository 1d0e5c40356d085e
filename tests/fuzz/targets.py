"Small good files of every kind the package reads, how each is changed, and what then reads it."

import io
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from matlab_files import write_structs
from mutations import (
    Mutation,
    change_bytes,
    change_card,
    change_checkpoint,
    change_json,
    change_text,
)
from PIL import Image
from run_folders import FILES, copy_run, rehash
from small_sources import CACHES, PLAN, noise_set, small_recipe, trained_source

from medgan_nb.app.generate import generate, open_source
from medgan_nb.app.reader_study.scores import ANSWERS, load_answers, load_key
from medgan_nb.app.runs import find_run, load_gan, load_synthetic_images
from medgan_nb.app.share import share
from medgan_nb.app.trial import _finished, _plan_once
from medgan_nb.core.errors import ConfigError
from medgan_nb.core.files import atomic_write, cache_dir, sha256_file, write_json
from medgan_nb.core.weights import PublishedFile, load_published_weights, required_tensors
from medgan_nb.data.formats.dicom import load_dicom, write_dicom
from medgan_nb.data.formats.images import load_image
from medgan_nb.data.formats.matlab import open_struct_array
from medgan_nb.datasets import cbis_ddsm, folder, mini_mias
from medgan_nb.experiments.status import format_status, run_statuses
from medgan_nb.report.build import report
from medgan_nb.studies.common.comparison import compare
from medgan_nb.studies.common.results import results_of
from medgan_nb.studies.registry import STUDIES
from medgan_nb.training.loop import train


@dataclass(frozen=True)
class Target:
    """A good file and what reads it.

    Attributes
    ----------
    name : str
        Of the target.
    path : Path
        Where the changed file is written.
    data : bytes
        The good file.
    change : callable
        Data and chance -> changed data.
    read : callable
        Reads the changed file; may raise a `MedganError` and nothing else.
    after_write : callable
        Called before it is read: makes the digests of other files right again.
    """

    name: str
    path: Path
    data: bytes
    change: Mutation
    read: Callable[[], object]
    after_write: Callable[[], None] = lambda: None


def image_targets(root: Path) -> list[Target]:
    noise = np.random.default_rng(0).integers(0, 256, (24, 32), dtype=np.uint8)
    images = {
        "grey.png": (noise, {}),
        "sixteen.png": (noise.astype(np.uint16) * 257, {}),
        "palette.png": (Image.fromarray(np.stack([noise] * 3, -1)).quantize(16), {}),
        "baseline.jpeg": (noise, {}),
        "progressive.jpeg": (noise, {"progressive": True}),
        "plain.tiff": (noise, {}),
        "lzw.tiff": (noise, {"compression": "tiff_lzw"}),
        "deflate.tiff": (noise, {"compression": "tiff_deflate"}),
        "jpeg.tiff": (noise, {"compression": "jpeg"}),
        "grey.bmp": (noise, {}),
        "grey.pgm": (noise, {}),
    }
    targets = []
    for name, (image, options) in images.items():
        buffer = io.BytesIO()
        image = image if isinstance(image, Image.Image) else Image.fromarray(image)
        format_name = {"pgm": "PPM"}.get(name.split(".")[1], name.split(".")[1].upper())
        image.save(buffer, format_name, **options)
        path = root / name
        targets.append(
            Target(name, path, buffer.getvalue(), change_bytes, lambda p=path: load_image(p))
        )
    text = b"P2 24 32 255\n" + b" ".join(b"%d" % value for value in noise.flat)
    path = root / "text.pgm"
    targets.append(Target("text.pgm", path, text, change_bytes, lambda: load_image(path)))
    return targets


def matlab_targets(root: Path) -> list[Target]:
    structs = [{"a": np.arange(6.0).reshape(2, 3), "b": f"text{k}"} for k in range(2)]

    def read(path):
        with open_struct_array(path, "data", ("a", "b"), 2) as field:
            return [field(name, row) for name in ("a", "b") for row in range(2)]

    targets = []
    for version in ("v5", "v7.3"):
        (root / version).mkdir()
        path = write_structs(root / version / "x.mat", "data", structs, version)
        data = path.read_bytes()
        targets.append(Target(f"mat {version}", path, data, change_bytes, lambda p=path: read(p)))
    return targets


def dicom_targets(root: Path) -> list[Target]:
    pixels = np.random.default_rng(0).integers(0, 4096, (24, 32)).astype(np.uint16)
    path = write_dicom(root / "image.dcm", pixels)
    return [Target("dicom", path, path.read_bytes(), change_bytes, lambda: load_dicom(path))]


def table_targets(root: Path) -> list[Target]:
    noise = np.random.default_rng(1).integers(0, 256, (24, 24), dtype=np.uint8)
    own, mias, cbis = root / "own", root / "mias", root / "cbis"
    for name in ("a/1.png", "a/2.png", "b/1.png"):
        (own / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise).save(own / name)
    mias.mkdir()
    Image.fromarray(noise).save(mias / "mdb001.pgm")
    name = "Mass-Training_P_00001_LEFT_CC"
    for file in (f"{name}/a/b/1-1.dcm", f"{name}_1/a/b/1-1.dcm"):
        write_dicom(cbis / "CBIS-DDSM" / file, noise.astype(np.uint16) * 16)
    groups = b"id,group\na/1.png,p1\na/2.png,p1\nb/1.png,p2\n"
    info = b"mdb001 G CIRC B 12 12 5\n"
    table = (
        b"image file path,pathology,ROI mask file path,cropped image file path\n"
        + f"{name}/1/2/0.dcm,BENIGN,{name}_1/1/2/1.dcm,{name}_1/1/3/0.dcm\n".encode()
    )
    cbis_table = cbis / "mass_case_description_train_set.csv"
    return [
        Target("groups.csv", own / "groups.csv", groups, change_text, lambda: folder.load(own, 16)),
        Target("Info.txt", mias / "Info.txt", info, change_text, lambda: mini_mias.load(mias, 16)),
        Target("cbis table", cbis_table, table, change_text, lambda: cbis_ddsm.load(cbis, 16)),
    ]


def reader_study_targets(root: Path) -> list[Target]:
    rows = [
        {"item": f"i{k}", "answer": ANSWERS[k % 2], "confidence": 3, "seconds": 1.5}
        for k in range(3)
    ]
    head = {"test": "t", "reader": "r", "simulated": False}
    answers = json.dumps(head | {"answers": rows}).encode()
    lines = "".join(json.dumps(head | row) + "\n" for row in rows).encode()
    columns = [*head, *rows[0]]
    table = "\n".join(
        [",".join(columns)] + [",".join(map(str, (head | row).values())) for row in rows]
    )
    truth = {"i0": ANSWERS[0], "i1": ANSWERS[1]}
    key = {"truth": truth, "images": {"i0": "a", "i1": "b"}, "test": "t", "secret": "00ff"}
    files = {
        "answers.json": (answers, change_json, load_answers),
        "answers.jsonl": (lines, change_json, load_answers),
        "answers.csv": (table.encode(), change_text, load_answers),
        "t.key.json": (json.dumps(key).encode(), change_json, load_key),
    }
    return [
        Target(name, root / name, data, change, lambda p=root / name, read=read: read(p))
        for name, (data, change, read) in files.items()
    ]


def run_targets(root: Path, smoke_run: Path) -> list[Target]:
    "Files of a run: read by status, the report, and what opens a run."

    def tables(runs):
        return {"all": [compare(result) for result in results_of(runs)]}

    study = replace(STUDIES["p4"], tables=tables, figures=lambda _: {}, narrative=lambda _: "")
    outputs = root / "outputs"
    run = copy_run(smoke_run, outputs, 7)

    def read():
        for row in run_statuses(outputs, ["p4"]):
            line = format_status(row)
            assert line.isprintable()
        page = report([study], outputs).read_text(encoding="utf-8")
        assert "<img src=x" not in page
        find_run(run)

    read()
    made = outputs / "report" / "p4" / "contents.json"
    names = [*FILES, "leases/1.json", "executed.ipynb"]
    return [Target("run contents.json", made, made.read_bytes(), change_json, read)] + [
        Target(
            f"run {name}",
            run / name,
            (run / name).read_bytes(),
            change_json,
            read,
            (lambda: rehash(run)) if name == "config.json" else (lambda: None),
        )
        for name in names
    ]


def weights_targets(root: Path, smoke_run: Path) -> list[Target]:
    "Weights, checkpoint and list of synthetic images of a run."
    torch.set_num_threads(1)
    run = copy_run(smoke_run, root / "with_weights", 8)
    recipe, images = small_recipe(), noise_set()
    words = {"kimg": 0.016, "seed": 0, "precision": "fp32", "bar": False, "ticks": 2}
    train(recipe, images, folder=run, **words)
    weights = (run / "weights.safetensors").read_bytes()
    kept = []
    interrupted = root / "training"
    checkpoint = interrupted / "checkpoint.safetensors"

    def keep(state, log):
        if checkpoint.exists():
            kept.append(checkpoint.read_bytes())

    train(recipe, images, folder=interrupted, save_seconds=0.0, hooks=[keep], **words)

    def resume():
        for path in interrupted.glob("*"):
            if path != checkpoint:
                path.unlink()
        train(recipe, images, folder=interrupted, **words)

    def open_gan():
        load_gan(find_run(run)).sample(2)

    synthetic = run / "synthetic"
    synthetic.mkdir()
    for k in range(2):
        Image.fromarray(images.pixels[k, 0].numpy()).save(synthetic / f"{k}.png")
    listed = b"file,class,seed,number\n0.png,a,0,0\n1.png,b,0,1\n"
    files = [
        ("weights", run / "weights.safetensors", weights, change_checkpoint, open_gan),
        ("checkpoint", checkpoint, kept[-1], change_checkpoint, resume),
        (
            "list.csv",
            synthetic / "list.csv",
            listed,
            change_text,
            lambda: load_synthetic_images(find_run(run)),
        ),
    ]
    return [Target(*file) for file in files]


def shared_targets(root: Path) -> list[Target]:
    "A folder that is passed on, and images generated from it."
    source = trained_source(root / "trained")
    share(source, root / "shared", accept_risk="a test", n_samples=2)
    weights = root / "shared" / "generator.safetensors"

    def sample():
        source = open_source(root / "shared")
        assert source.generator.sample(2).shape == (2, 1, 32, 32)
        assert all(name.isprintable() for name in source.generator.classes)

    targets = [Target("shared", weights, weights.read_bytes(), change_checkpoint, sample)]
    images = root / "images"
    generate(source, images, 4, bar=False)
    files = {name: (images / name).read_bytes() for name in ("generate.json", "manifest.csv")}

    def resume():
        try:
            generate(source, images, 6, bar=False)
        except ConfigError:
            generate(source, images, 6, force=True, bar=False)

    for name, other, change in (
        ("generate.json", "manifest.csv", change_json),
        ("manifest.csv", "generate.json", change_text),
    ):

        def restore(other=other):
            atomic_write(images / other, files[other])

        targets.append(Target(name, images / name, files[name], change, resume, restore))
    return targets


def cache_targets(root: Path) -> list[Target]:
    "What the cache keeps, made again where it is damaged."
    changes = {
        "features": change_checkpoint,
        "calibration": change_card,
        "prepared": change_bytes,
    }
    targets = []
    for kind, change in changes.items():
        before = set((cache_dir() / kind).glob("*"))
        CACHES[kind](root)
        (path,) = set((cache_dir() / kind).glob("*")) - before
        read = CACHES[kind]
        targets.append(
            Target(f"cache {kind}", path, path.read_bytes(), change, lambda read=read: read(root))
        )
    network = torch.nn.Linear(3, 2)
    torch.save(network.state_dict(), root / "w.pth")
    published = PublishedFile("https://none.invalid/w.pth", sha256_file(root / "w.pth"))

    def weights():
        read = load_published_weights(published, required_tensors(network), root)
        assert torch.equal(read["weight"], network.weight)

    weights()
    for name, change in (("w.pth.json", change_json), ("w.pth.safetensors", change_bytes)):
        path = root / name
        other = root / ("w.pth.safetensors" if name.endswith("json") else "w.pth.json")
        content = other.read_bytes()

        def restore(other=other, content=content):
            other.write_bytes(content)

        targets.append(Target(name, path, path.read_bytes(), change, weights, restore))
    return targets


def trial_targets(root: Path, smoke_run: Path) -> list[Target]:
    "A folder that looks like that of a finished trial, and the plan beside it."
    run = copy_run(smoke_run, root / "outputs", 7)
    folder = root / "outputs" / "trial" / run.name
    folder.parent.mkdir()
    run.rename(folder)
    config = json.loads((folder / "config.json").read_text()) | {"paper": "trial"}
    write_json(folder / "config.json", config)
    rehash(folder)
    write_json(folder / "trial.json", {"decision": {"word": "no", "sentence": "s"}})
    (folder / "trial.html").write_text("page")
    write_json(plan := folder.parent / "plan-x.json", PLAN.to_dict())

    def read():
        for row in run_statuses(root / "outputs", ["trial"]):
            assert format_status(row).isprintable()
        _finished(find_run(folder))

    def again():
        rehash(folder)

    files = [("config.json", again), ("metrics.json", lambda: None), ("trial.json", lambda: None)]
    targets = [
        Target(f"trial {name}", folder / name, (folder / name).read_bytes(), change_json, read, f)
        for name, f in files
    ]
    data = plan.read_bytes()
    make = PLAN.to_dict
    return [*targets, Target("plan", plan, data, change_json, lambda: _plan_once(plan, make))]


def all_targets(root: Path, smoke_run: Path) -> list[Target]:
    "Every target, in folders of their own."
    makers = {
        "images": image_targets,
        "matlab": matlab_targets,
        "dicom": dicom_targets,
        "tables": table_targets,
        "reader_study": reader_study_targets,
        "shared": shared_targets,
        "cache": cache_targets,
    }
    targets = []
    for name, make in makers.items():
        (root / name).mkdir()
        targets += make(root / name)
    (root / "trials").mkdir()
    targets += trial_targets(root / "trials", smoke_run)
    return targets + run_targets(root, smoke_run) + weights_targets(root, smoke_run)
