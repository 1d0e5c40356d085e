"""BUSI as users have it: faults in one line or a counted note, splits, and the published set."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medgan_nb.core.errors import DataError
from medgan_nb.data.duplicates import candidate_pairs, merge_near_duplicates, thumbnail
from medgan_nb.data.files import load_all
from medgan_nb.data.formats.images import load_image, write_png
from medgan_nb.data.leakage import IMAGE_SPLIT, find_leakage
from medgan_nb.data.splits import fixed_test_split, group_split
from medgan_nb.datasets import busi
from medgan_nb.datasets.audit import audit, check, check_dataset
from medgan_nb.datasets.registry import load

REAL = Path(os.environ.get("MEDGAN_DATA") or "/nowhere")
needs_real = pytest.mark.skipif(
    not busi.detect(REAL), reason="MEDGAN_DATA holds no Dataset_BUSI_with_GT"
)
SPLIT_COUNTS = {
    "train 500": (280, 135, 85),
    "train 250": (140, 68, 42),
    "train 100": (56, 27, 17),
    "train 50": (28, 14, 8),
    "test": (157, 75, 48),
}
LESION = np.zeros((32, 48), np.uint8)
LESION[8:20, 16:30] = 255
WEB_PAGE = b"<!DOCTYPE html><title>404</title>"


@pytest.fixture
def copy(tmp_path):
    "A copy of the published layout with six images of each class, made of blocks of noise."
    rng, root = np.random.default_rng(0), tmp_path / "Dataset_BUSI_with_GT"
    for name in busi.CLASSES:
        for k in range(1, 7):
            blocks = rng.integers(0, 256, (8, 12), dtype=np.uint8)
            write_png(root / name / f"{name} ({k}).png", np.kron(blocks, np.ones((4, 4), np.uint8)))
            write_png(root / name / f"{name} ({k})_mask.png", LESION * (name != "normal"))
    return root


def assert_refused(copy, *words) -> None:
    "Loading and checking both say so: one line with the words."
    with pytest.raises(DataError) as error:
        busi.load(copy.parent, size=16)
    message = str(error.value)
    assert "\n" not in message and len(message) < len(str(copy)) + 300
    assert all(word in message for word in words), message
    assert any(
        finding.fault and words[0] in finding.message
        for finding in check_dataset(busi.DATASET, copy.parent)
    )


# --- what a copy may and may not be


@pytest.mark.parametrize(
    "path, data, words",
    [
        ("benign/benign (1)_mask.png", None, ("has no mask", "benign (1).png")),
        (
            "malignant/malignant (2)_mask.png",
            LESION * 0,
            ("marks nothing", "malignant (2)_mask.png"),
        ),
        (
            "benign/benign (3)_mask.png",
            LESION[:16, :24],
            ("24 x 16 pixels, its image has 48 x 32", "benign (3)_mask.png"),
        ),
        (
            "benign/benign (3)_mask_1.png",
            LESION.T,
            ("32 x 48 pixels, its image has 48 x 32", "benign (3)_mask_1.png"),
        ),
        (
            "normal/normal (1)_mask.png",
            LESION,
            ("marks 168 pixels of a normal image", "normal (1)_mask.png"),
        ),
        ("malignant/malignant (4).png", None, ("a mask without its image", "malignant (4).png")),
        (
            "malignant/benign (9).png",
            LESION,
            ("expected a name like malignant (1).png", "benign (9).png"),
        ),
        (
            "benign/benign (1)-copy.png",
            LESION,
            ("expected a name like benign (1).png", "benign (1)-copy.png"),
        ),
        (
            "benign/Benign (7).png",
            LESION,
            ("expected a name like benign (1).png", "Benign (7).png"),
        ),
        (
            "benign/benign (1)_mask_b.png",
            LESION,
            ("expected a name like benign (1).png", "benign (1)_mask_b.png"),
        ),
        ("benign/scan.jpeg", WEB_PAGE, ("expected a name like benign (1).png", "scan.jpeg")),
        ("benign/benign (2).png", WEB_PAGE, ("is a web page", "benign (2).png")),
        ("benign/benign (2)_mask.png", WEB_PAGE, ("is a web page", "benign (2)_mask.png")),
        (
            "normal/normal (5).png",
            LESION.astype(np.uint16) * 200,
            ("uint16 pixels; expected 8 bits", "normal (5).png"),
        ),
    ],
)
def test_fault_in_a_file(copy, path, data, words):
    (copy / path).unlink(missing_ok=True)
    if isinstance(data, bytes):
        (copy / path).write_bytes(data)
    elif data is not None:
        write_png(copy / path, data)
    assert_refused(copy, *words)


def test_transparent_mask_is_refused(copy):
    glass = np.stack([LESION] * 4, -1)
    Image.fromarray(glass).save(copy / "benign/benign (1)_mask.png")
    assert_refused(copy, "transparent pixels", "benign (1)_mask.png")


@pytest.mark.parametrize(
    "change, words",
    [
        (
            lambda root: shutil.rmtree(root / "normal"),
            ("class folders are benign, malignant; expected",),
        ),
        (
            lambda root: (root / "cyst").mkdir(),
            ("class folders are benign, cyst, malignant, normal",),
        ),
        (
            lambda root: [path.unlink() for path in (root / "normal").iterdir()],
            ("no images in it", "normal"),
        ),
        (
            lambda root: root.rename(root.parent / "BUSI"),
            ("no Dataset_BUSI_with_GT in it (found BUSI)",),
        ),
    ],
)
def test_fault_in_a_folder(copy, change, words):
    change(copy)
    assert_refused(copy, *words)


def test_counted_notes(copy):
    (copy / "benign/readme.txt").touch()
    (copy / "normal/old").mkdir()
    (copy / "normal/Thumbs.db").touch()
    (copy / "normal/normal (2)_mask.png").unlink()
    shutil.copy(copy / "benign/benign (2).png", copy / "malignant/malignant (7).png")
    shutil.copy(copy / "benign/benign (2)_mask.png", copy / "malignant/malignant (7)_mask.png")
    images = busi.load(copy, size=16)
    assert images.notes[:4] == (
        "6 benign, 7 malignant, 6 normal; published are 437 benign, 210 malignant, 133 normal",
        "2 other files or folders are skipped (readme.txt, ...)",
        busi.NO_PATIENTS_NOTE,
        "one image in two classes: benign (2) = malignant (7)",
    )
    assert not images.masks[images.labels == 2].any()
    assert images.groups[list(images.ids).index("malignant (7)")] == "benign (2)"
    faults = [finding.message for finding in check(copy.parent) if finding.fault]
    assert "one image under two classes: benign (2), malignant (7)" in faults
    assert "all/benign: 6 images; published are 437" in faults


def test_lesion_cropped_away_is_noted(copy):
    corner = np.zeros_like(LESION)
    corner[:4, :4] = 255
    write_png(copy / "benign/benign (4)_mask.png", corner)
    cropped, whole = busi.load(copy, size=16), busi.load(copy, size=16, resize_mode="stretch")
    assert any(
        note.startswith("1 lesions lie outside the square of resize_mode=crop")
        for note in cropped.notes
    )
    assert not any("lesions lie outside" in note for note in whole.notes)


@pytest.mark.parametrize("mode", ["1", "L", "RGB", "RGBA", "P"])
def test_masks_of_every_mode_are_united(copy, mode):
    left = np.zeros_like(LESION)
    left[:, :10] = 255
    Image.fromarray(left).convert(mode).save(copy / "benign/benign (5)_mask_1.png")
    images = busi.load(copy, size=32, resize_mode="stretch")
    mask = images.masks[list(images.ids).index("benign (5)"), 0].numpy()
    assert mask[:, :6].all() and mask[12, 15] and not mask[:, 22:].any()


def test_images_go_by_number_and_name(copy):
    for ending in ("", "_mask"):
        shutil.copy(
            copy / f"benign/benign (6){ending}.png", copy / f"benign/benign (10){ending}.png"
        )
    images = busi.load(copy, size=16)
    assert list(images.ids[:7]) == [f"benign ({k})" for k in (1, 2, 3, 4, 5, 6, 10)]


def test_too_few_groups_for_the_splits(copy):
    images = busi.load(copy, size=16)
    with pytest.raises(DataError, match="class benign has 6 groups; expected at least 7"):
        group_split(images, dict.fromkeys("abcdefg", 1 / 7), split_seed=0)


def test_groups_do_not_depend_on_size_or_resize_mode(copy):
    marked = load_image(copy / "benign/benign (1).png").copy()
    marked[16, ::4] = 255
    write_png(copy / "benign/benign (8).png", marked)
    write_png(copy / "benign/benign (8)_mask.png", LESION)
    sets = [
        busi.load(copy, size, resize_mode, equalize)
        for size, resize_mode, equalize in (
            (16, "crop", "none"),
            (64, "pad", "none"),
            (32, "stretch", "hist"),
        )
    ]
    assert len(set(sets[0].groups)) == 18
    assert all(list(images.groups) == list(sets[0].groups) for images in sets)


# --- the published set


@pytest.fixture(scope="module")
def real():
    return load("busi", REAL, size=64, resize_mode="stretch")


@needs_real
def test_real_copy_has_no_fault(real):
    findings = check_dataset(busi.DATASET, REAL)
    assert not any(finding.fault for finding in findings)
    assert real.counts() == busi.PUBLISHED_COUNTS
    assert "one image in two classes: benign (433) = malignant (145) (as published)" in real.notes


@needs_real
def test_real_near_duplicates_are_about_as_many_as_published(real):
    result = audit("busi", REAL)
    groups = result.near_duplicates
    assert abs(sum(map(len, groups)) - 330) <= 5 and abs(len(groups) - 149) <= 6
    assert result.n_conflicting_groups == 8 and ("benign (433)", "malignant (145)") in groups


@needs_real
@pytest.mark.parametrize("split", ["group", "image"])
def test_real_splits_have_the_published_shares(real, split):
    for seed in range(5):
        splits = {
            n: fixed_test_split(real, busi.N_TEST, n, split_seed=seed, split=split)
            for n in (500, 250, 100, 50)
        }
        train, test = {n: splits[n]["train"] for n in splits}, splits[500]["test"]
        sets = {f"train {n}": train[n] for n in train} | {"test": test}
        assert {name: tuple(s.counts().values()) for name, s in sets.items()} == SPLIT_COUNTS
        assert len({pair["test"].fingerprint for pair in splits.values()}) == 1
        assert set(train[50].ids) < set(train[100].ids) < set(train[250].ids)
        again = fixed_test_split(real, busi.N_TEST, 100, split_seed=seed, split=split)
        assert again["train"].fingerprint == train[100].fingerprint
        leakage = find_leakage(**splits[500])
        assert bool(leakage) == (split == "image") == (IMAGE_SPLIT in test.notes)


@needs_real
def test_real_groups_at_other_thresholds(real):
    paths = [file.path for file in busi.list_image_files(REAL)]
    pairs = candidate_pairs(np.stack(load_all(paths, lambda path: thumbnail(load_image(path)))))
    strict, loose = pairs.groups(6, 0.9), pairs.groups(16, 0.25)
    assert 50 <= sum(map(len, strict)) <= 75 and sum(map(len, loose)) > 345
    assert len(set(merge_near_duplicates(real, loose).groups)) < len(set(real.groups))
