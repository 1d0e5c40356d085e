"""Mammograms: damaged, hostile and mixed-up files; texture and denoising against references."""

import builtins
import os
import struct
import time
import zlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from skimage.feature import graycomatrix, graycoprops
from skimage.filters import sobel

from medgan_nb.core.errors import ConfigError, DataError, MedganError
from medgan_nb.data.formats import dicom
from medgan_nb.data.leakage import find_leakage
from medgan_nb.data.splits import group_split
from medgan_nb.datasets import cbis_ddsm, inbreast, mini_mias
from medgan_nb.datasets.audit import check
from medgan_nb.datasets.breast import preprocess_breast
from medgan_nb.datasets.registry import load
from medgan_nb.evaluation import denoising
from medgan_nb.metrics import texture
from medgan_nb.simulation import mammogram

ANGLES = [0, np.pi / 4, np.pi / 2, 3 * np.pi / 4]


def breast(seed: int = 0, kind: str = "benign", size: int = 96) -> np.ndarray:
    "A simulated breast (size, size), uint8."
    case = mammogram.sample_case(kind, seed, "w")
    return mammogram.render([case], size).pixels[0, 0].numpy()


def one_line(error: MedganError, *names) -> str:
    "The message of an error, which must be one line that names these."
    text = str(error)
    assert "\n" not in text and "Traceback" not in text and len(text) < 700
    for name in names:
        assert name in text
    return text


# --- mini-MIAS


@pytest.fixture
def mias(tmp_path):
    "A small copy of mini-MIAS with three patients."
    top = tmp_path / "all-mias"
    top.mkdir()
    rows = []
    for k in range(6):
        pixels = np.zeros((120, 120), np.uint8)
        pixels[12:108, :96] = breast(k // 2)
        Image.fromarray(pixels[:, ::-1] if k % 2 == 0 else pixels).save(top / f"mdb{k + 1:03d}.pgm")
        rows.append(
            f"mdb{k + 1:03d} G " + ("NORM" if k % 2 else f"CIRC {'BM'[k % 4 // 2]} 700 512 60")
        )
    (top / "Info.txt").write_text("\n".join(rows) + "\n")
    return top


def test_mini_mias_by_name(mias):
    images = load("mini_mias", mias.parent, size=32)
    assert images.counts() == {"normal": 3, "benign": 2, "malignant": 1}
    assert sorted(set(images.groups)) == ["woman001", "woman002", "woman003"] and images.masks.any()
    again = load("mini_mias", mias, size=32)
    assert again.fingerprint == images.fingerprint


def test_a_changed_table_is_read_again(mias):
    before = load("mini_mias", mias, size=32)
    text = (mias / "Info.txt").read_text()
    (mias / "Info.txt").write_text(text.replace("mdb001 G CIRC B", "mdb001 G CIRC M"))
    os.utime(mias / "Info.txt", (1, 1))
    assert (
        load("mini_mias", mias, size=32).counts()["malignant"] == before.counts()["malignant"] + 1
    )


PGM = b"P5\n%d %d\n255\n"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"P5",
        b"P5\n120 120\n255\n" + bytes(50),
        PGM % (99999, 99999),
        PGM % (99999, 99999) + bytes(100),
        PGM % (0, 0),
        PGM % (-3, 5),
        b"P5\n120 120\n0\n" + bytes(14400),
        b"P2\n9 9\n255\nx x x",
        b"<html>not found</html>",
        PGM % (120, 120) + bytes(14400),
        bytes(range(256)) * 8,
    ],
    ids=range(12),
)
def test_hostile_pgm(mias, data):
    (mias / "mdb003.pgm").write_bytes(data)
    with pytest.raises(DataError) as error:
        mini_mias.load(mias, 32)
    one_line(error.value, "mdb003.pgm")


def test_check_names_every_damaged_file(mias):
    for name in ("mdb001.pgm", "mdb004.pgm"):
        (mias / name).write_bytes((mias / name).read_bytes()[:900])
    faults = [finding.message for finding in check(mias.parent) if finding.fault]
    assert len(faults) == 2 and all(
        name in " ".join(faults) for name in ("mdb001.pgm", "mdb004.pgm")
    )


words = st.sampled_from(
    [
        "mdb001",
        "mdb002",
        "mdb999",
        "mdb1",
        "G",
        "D",
        "X",
        "NORM",
        "CIRC",
        "CALC",
        "LUMP",
        "B",
        "M",
        "U",
        "0",
        "512",
        "1024",
        "1025",
        "-1",
        "1e3",
        "nan",
        "*NOTE 3*",
        "<script>",
        "\x00",
        "é",
        "9" * 400,
    ]
)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(st.lists(words, max_size=9).map(" ".join), max_size=8))
def test_any_table_of_abnormalities(tmp_path, lines):
    path = tmp_path / "Info.txt"
    path.write_bytes("\n".join(lines).encode())
    try:
        annotations = mini_mias.load_info(path)
    except DataError as error:
        one_line(error, "Info.txt")
        return
    for annotation in annotations.values():
        assert annotation.tissue in mini_mias.TISSUES and annotation.label in (0, 1, 2)
        for abnormality in annotation.abnormalities:
            assert abnormality.circle is None or max(abnormality.circle) <= 1024
        mini_mias.abnormality_mask(annotation, 64)


def split_patients(images, share: float, split_seed: int) -> dict:
    "A split of whole patients, stratified by the most severe class that a patient has."
    worst = {patient: images.labels[images.groups == patient].max() for patient in images.groups}
    stratified = replace(images, labels=[worst[patient] for patient in images.groups])
    splits = group_split(stratified, {"train": share, "test": 1 - share}, split_seed)
    return {name: images.select(np.isin(images.ids, part.ids)) for name, part in splits.items()}


def assert_no_shared_patient(splits: dict) -> None:
    assert find_leakage(**splits) == []
    assert not set(splits["train"].groups) & set(splits["test"].groups)


def test_patients_are_in_one_split():
    images = mammogram.load(32, 60)
    for split_seed in range(5):
        splits = split_patients(images, 0.75, split_seed)
        assert_no_shared_patient(splits)
        assert 26 <= len(splits["test"]) <= 34 and min(splits["test"].counts().values()) > 3


def test_real_mini_mias(real_data):
    if not mini_mias.detect(real_data):
        pytest.skip("MEDGAN_DATA holds no all-mias")
    images = load("mini_mias", real_data, size=64)
    assert images.counts() == mini_mias.PUBLISHED_COUNTS and len(set(images.groups)) == 161
    for split_seed in range(5):
        assert_no_shared_patient(split_patients(images, 0.8, split_seed))
    chest_wall, air = (images.pixels[:, 0, :, k].float().mean().item() for k in (0, -1))
    assert chest_wall > 4 * air


# --- DICOM


def dicom_bytes(
    pixels: np.ndarray, syntax: str | None = None, frame: bytes | None = None, **tags
) -> bytes:
    "A DICOM file of these pixels; `frame` is their encoding in a compressed transfer syntax."
    pydicom = pytest.importorskip("pydicom")
    import io

    meta = pydicom.dataset.FileMetaDataset()
    meta.TransferSyntaxUID = syntax or pydicom.uid.ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = (
        "1.2.840.10008.5.1.4.1.1.7",
        "1.2.3",
    )
    dataset = pydicom.dataset.FileDataset("x", {}, file_meta=meta, preamble=b"\0" * 128)
    values = dict(
        Rows=pixels.shape[0],
        Columns=pixels.shape[1],
        BitsAllocated=16,
        BitsStored=12,
        HighBit=11,
        PixelRepresentation=0,
        SamplesPerPixel=1,
        PhotometricInterpretation="MONOCHROME2",
        PatientID="p1",
    )
    for name, value in {**values, **tags}.items():
        setattr(dataset, name, value)
    dataset.PixelData = pixels.tobytes() if frame is None else pydicom.encaps.encapsulate([frame])
    dataset["PixelData"].VR = "OW" if frame is None else "OB"
    dataset["PixelData"].is_undefined_length = frame is not None
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def raw_image(seed: int = 0) -> np.ndarray:
    "A simulated breast of 12 bits, with a black border."
    pixels = breast(seed).astype(np.uint16)
    return np.pad(np.where(pixels > 0, 300 + 14 * pixels, 0), ((8, 8), (0, 12))).astype(np.uint16)


@pytest.fixture
def put(tmp_path):
    "Write bytes under a name below a fresh folder and return the path."

    def write(data: bytes, name: str = "image.dcm"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return path

    return write


def refused(path, *words):
    with pytest.raises(DataError) as error:
        dicom.load_dicom(path)
    return one_line(error.value, path.name, *words)


def test_cut_anywhere(put):
    whole = dicom_bytes(raw_image(), WindowCenter=2000, WindowWidth=3000)
    for at in {*range(0, 700, 23), *np.linspace(0, len(whole) - 2, 60).astype(int)}:
        refused(put(whole[:at]))


def test_any_byte_changed_is_read_or_refused(put):
    whole, rng = (
        dicom_bytes(raw_image(), WindowCenter=2000, WindowWidth=3000),
        np.random.default_rng(0),
    )
    for _ in range(300):
        data = bytearray(whole)
        for at in rng.integers(0, 700, rng.integers(1, 4)):
            data[at] = rng.integers(256)
        try:
            image = dicom.load_dicom(put(bytes(data)))
            assert image.pixels.dtype in (np.uint8, np.uint16) and image.pixels.ndim == 2
        except DataError as error:
            one_line(error, "image.dcm")


def test_bombs(put):
    small = raw_image()
    start = time.perf_counter()
    refused(put(dicom_bytes(small, Rows=65535, Columns=65535)), "65535 x 65535 pixels")
    refused(put(dicom_bytes(small, NumberOfFrames="100000")), "100000 frames")
    whole = dicom_bytes(small)
    at = whole.index(b"\x08\x00", 132 + 100) if b"\x08\x00" in whole[232:] else len(whole)
    head = whole[:at].replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.1.99")
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    bomb = packer.compress(bytes(1 << 26)) + packer.flush()
    refused(put(head + bomb))
    pydicom = pytest.importorskip("pydicom")
    rle = struct.pack("<16L", 2, 64, 66, *[0] * 13) + b"\x81\x00\x81\x00"
    refused(put(dicom_bytes(small, str(pydicom.uid.RLELossless), rle)), "truncated or corrupt")
    assert time.perf_counter() - start < 20


def test_deflated_is_refused_before_it_is_unpacked(put):
    pydicom = pytest.importorskip("pydicom")
    path = put(dicom_bytes(raw_image(), str(pydicom.uid.DeflatedExplicitVRLittleEndian)))
    refused(path, "is deflated", "dcmconv")


def test_transfer_syntax_that_is_not_what_is_there(put):
    pydicom = pytest.importorskip("pydicom")
    for syntax in (pydicom.uid.JPEGBaseline8Bit, pydicom.uid.JPEG2000, pydicom.uid.RLELossless):
        refused(
            put(dicom_bytes(raw_image(), str(syntax), frame=raw_image().tobytes())),
            "truncated or corrupt",
        )
    refused(
        put(dicom_bytes(raw_image(), "1.2.3.4", frame=b"x" * 10)), "1.2.3.4", "expected a known one"
    )


def test_a_syntax_without_a_decoder_says_what_to_install(put):
    pydicom = pytest.importorskip("pydicom")
    if pydicom.pixels.get_decoder(pydicom.uid.JPEGLSLossless).is_available:
        pytest.skip("a JPEG-LS decoder is installed")
    refused(
        put(dicom_bytes(raw_image(), str(pydicom.uid.JPEGLSLossless), frame=b"x" * 10)),
        "pip install pylibjpeg[all]",
    )


def test_rle_is_read(put):
    pydicom = pytest.importorskip("pydicom")
    path = put(dicom_bytes(raw_image(), WindowCenter=2000, WindowWidth=3000))
    dataset = pydicom.dcmread(path)
    dataset.compress(pydicom.uid.RLELossless)
    dataset.save_as(path)
    assert np.array_equal(dicom.load_dicom(path).pixels, raw_image())


def test_header_that_lies(put):
    pytest.importorskip("pydicom")
    cases = {
        "BitsAllocated": 32,
        "BitsStored": 0,
        "SamplesPerPixel": 3,
        "Rows": 0,
        "PhotometricInterpretation": "YBR_FULL",
    }
    for name, value in cases.items():
        refused(put(dicom_bytes(raw_image(), **{name: value})))
    refused(
        put(dicom_bytes(raw_image(), WindowCenter=2000, WindowWidth=-5)), "a width of at least 1"
    )
    refused(
        put(dicom_bytes(raw_image(), WindowCenter=2000, WindowWidth=5, RescaleSlope=0)),
        "positive slope",
    )
    refused(put(dicom_bytes(raw_image(), Rows=500)), "truncated or corrupt")


def test_bits_that_are_not_stored_do_not_count(put):
    overlay = raw_image() | (
        np.uint16(1 << 15) * (np.indices(raw_image().shape).sum(0) % 7 == 0).astype(np.uint16)
    )
    assert np.array_equal(dicom.load_dicom(put(dicom_bytes(overlay))).pixels, raw_image())


def test_without_pydicom(put, monkeypatch):
    path, real = put(b"\0" * 128 + b"DICM" + bytes(100), "mine/image.dcm"), builtins.__import__

    def blocked(name, *args, **kwargs):
        if name.split(".")[0] == "pydicom":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", blocked)
    for read in (
        lambda: dicom.load_dicom(path),
        lambda: load("dicom_mammogram", path.parent),
    ):
        with pytest.raises(ConfigError) as error:
            read()
        one_line(error.value, "pip install 'medgan_nb[dicom]'")


def test_sixteen_bits_and_window_arrive(put):
    light = raw_image()
    path = put(
        dicom_bytes(light, WindowCenter=2048, WindowWidth=4096, PatientID="p7"), "mine/a.dcm"
    )
    put(
        dicom_bytes(
            4095 - light,
            WindowCenter=2048,
            WindowWidth=4096,
            PatientID="p7",
            PhotometricInterpretation="MONOCHROME1",
        ),
        "mine/b.dcm",
    )
    images = load("dicom_mammogram", path.parent, size=64)
    assert images.pixels.dtype == torch.uint16 and list(images.groups) == ["patient0001"] * 2
    first, second = images.pixels[:, 0].numpy().astype(int)
    assert len(np.unique(first)) > 400 and np.abs(first - second).max() <= 32
    wanted = preprocess_breast(light, 64, window=(0, 4095)).pixels.astype(int)
    assert np.abs(first - wanted).max() <= 32


def test_check_reads_dicom_as_dicom(put):
    put(dicom_bytes(raw_image()), "mine/benign/a.dcm")
    bad = put(dicom_bytes(raw_image())[:3000], "mine/benign/b.dcm")
    faults = [finding for finding in check(bad.parent.parent) if finding.fault]
    assert [finding.dataset for finding in faults] == ["dicom_mammogram"]
    assert "b.dcm" in faults[0].message
    bad.unlink()
    assert not any(finding.fault for finding in check(bad.parent.parent))


# --- archives


def test_inbreast_by_name(put):
    lines = ["Patient ID;Patient age;Laterality;View;Acquisition date;File Name;ACR;Bi-Rads"]
    for k in range(4):
        path = put(
            dicom_bytes(raw_image(k)),
            f"INbreast Release 1.0/AllDICOMs/{100 + k}_aa{k // 2}_MG_L_CC_ANON.dcm",
        )
        lines.append(f"removed;removed;L;CC;201001;{100 + k};;{(1, 2, '4c', 6)[k]}")
    (path.parent.parent / "INbreast.csv").write_text("\n".join(lines))
    images = load("inbreast", path.parents[2], size=32)
    assert list(images.labels) == [0, 1, 2, 2] and list(images.groups) == [
        "aa0",
        "aa0",
        "aa1",
        "aa1",
    ]
    assert inbreast.detect(path.parents[2]) and "410" in images.notes[0]


def test_cbis_ddsm_by_name_and_the_published_leak_is_no_fault(put, tmp_path):
    head = "patient_id,pathology,image file path\n"
    for k, (kind, part, patient) in enumerate(
        [("mass", "train", 1), ("calc", "train", 2), ("mass", "test", 3), ("calc", "test", 1)]
    ):
        name = f"{kind.title()}-{'Training' if part == 'train' else 'Test'}_P_0000{patient}_LEFT_CC"
        put(dicom_bytes(raw_image(k)), f"CBIS-DDSM/{name}/a/b/1-1.dcm")
        (tmp_path / f"{kind}_case_description_{part}_set.csv").write_text(
            head
            + "".join(
                f"P_0000{patient},{p},{name}/1.2/3/000000.dcm\n"
                for p in ("BENIGN", "MALIGNANT")[: 1 + k % 2]
            )
        )
    images = load("cbis_ddsm", tmp_path, size=32)
    assert len(images) == 4 and images.counts() == {"benign": 2, "malignant": 2}
    assert "1 patients have images in train and in test" in " ".join(images.notes)
    findings = check(tmp_path)
    assert any("P_00001" in finding.message for finding in findings) and not any(
        finding.fault for finding in findings
    )
    assert cbis_ddsm.detect(tmp_path) and set(images.groups[images.splits == "train"]) & set(
        images.groups[images.splits == "test"]
    )


def lesion(shape: tuple[int, int], *area: slice) -> np.ndarray:
    "A mask (H, W), uint8 of 0 and 255, of a rectangle."
    mask = np.zeros(shape, np.uint8)
    mask[area] = 255
    return mask


@pytest.fixture
def cbis(put, tmp_path):
    "A copy of CBIS-DDSM in its newer layout: an image with two lesions and one with none."
    names = ("Mass-Training_P_00001_LEFT_CC", "Mass-Training_P_00002_LEFT_CC")
    for k, name in enumerate(names):
        put(dicom_bytes(raw_image(k)), f"CBIS-DDSM/{name}/a/b/1-1.dcm")
    eight = dict(BitsAllocated=8, BitsStored=8, HighBit=7)
    put(
        dicom_bytes(lesion(raw_image().shape, slice(40, 60), slice(20, 40)), **eight),
        f"CBIS-DDSM/{names[0]}_1/a/b/1-1.dcm",
    )
    put(dicom_bytes(raw_image()[40:60, 20:40]), f"CBIS-DDSM/{names[0]}_1/a/b/1-2.dcm")
    put(dicom_bytes(raw_image()[60:70, 20:40]), f"CBIS-DDSM/{names[0]}_2/a/b/1-1.dcm")
    put(
        dicom_bytes(lesion(raw_image().shape, slice(60, 70), slice(20, 40)), **eight),
        f"CBIS-DDSM/{names[0]}_2/a/b/1-2.dcm",
    )
    rows = [
        f"{name}/1/2/000000.dcm,{pathology},{name}_{k}/1/2/000001.dcm,{name}_{k}/1/3/000000.dcm"
        for name, k, pathology in (
            (names[0], 1, "BENIGN"),
            (names[0], 2, "MALIGNANT"),
            (names[1], 1, "BENIGN"),
        )
    ]
    (tmp_path / "mass_case_description_train_set.csv").write_text(
        "\n".join(["image file path,pathology,ROI mask file path,cropped image file path", *rows])
    )
    return tmp_path


def test_masks_of_cbis_ddsm_are_told_by_content(cbis):
    images = load("cbis_ddsm", cbis, size=32)
    whole = lesion(raw_image().shape, slice(40, 70), slice(20, 40)) > 0
    assert (
        np.array_equal(
            images.masks[0, 0].numpy(), preprocess_breast(raw_image(), 32).transform_mask(whole)
        )
        and not images.masks[1].any()
    )
    assert list(images.labels) == [1, 0] and not any(
        "without a mask" in note for note in images.notes
    )
    assert not any(finding.fault for finding in check(cbis))


@pytest.mark.parametrize("path", ["x" * 300, "a/" * 3000, "a\0b"])
def test_an_endless_path_in_the_table_is_refused(cbis, path):
    table = cbis / "mass_case_description_train_set.csv"
    name = "Mass-Training_P_00001_LEFT_CC"
    row = f"{name}/{path}/1.dcm,BENIGN,{path}/2.dcm,{name}_1/{path}/3.dcm"
    table.write_text(f"{table.read_text()}\n{row}\n")
    with pytest.raises(DataError):
        load("cbis_ddsm", cbis, size=32)
    check(cbis)


def test_a_damaged_or_hostile_mask_is_named(cbis):
    path = cbis / "CBIS-DDSM/Mass-Training_P_00001_LEFT_CC_1/a/b/1-1.dcm"
    whole = path.read_bytes()
    path.write_bytes(whole[:3000])
    with pytest.raises(DataError) as error:
        load("cbis_ddsm", cbis, size=32)
    one_line(error.value, "1-1.dcm", "truncated")
    assert [finding.message for finding in check(cbis) if finding.fault][0].startswith(str(path))
    path.write_bytes(
        dicom_bytes(
            lesion((60, 300), slice(10, 20), slice(10, 20)),
            BitsAllocated=8,
            BitsStored=8,
            HighBit=7,
        )
    )
    assert any("other proportions" in note for note in load("cbis_ddsm", cbis, size=32).notes)
    path.unlink()
    assert any(
        "a lesion folder without a mask" in note for note in load("cbis_ddsm", cbis, size=32).notes
    )
    table = cbis / "mass_case_description_train_set.csv"
    table.write_text(table.read_text().replace("_1/1/2/000001.dcm", "_1/../../../../etc/passwd", 1))
    with pytest.raises(DataError) as error:
        load("cbis_ddsm", cbis, size=32)
    one_line(error.value, "leads outside")


def test_mini_ddsm_by_name(put, tmp_path):
    from medgan_nb.data.formats.images import write_png

    for k, (name, case) in enumerate(
        (("Normal", "A_1001_1"), ("Cancer", "B_0045_1"), ("Cancer", "B_0045_1"))
    ):
        path = (
            tmp_path
            / "MINI-DDSM-Complete-PNG-16"
            / name
            / case[2:6]
            / f"{case}.{'LEFT' if k < 2 else 'RIGHT'}_MLO.png"
        )
        write_png(path, raw_image(k) * np.uint16(16))
    outline = lesion(raw_image().shape, slice(40, 60), slice(20, 40))
    outline[42:58, 22:38] = 0
    write_png(path.with_name(f"{path.stem}_Mask.png"), outline)
    images = load("mini_ddsm", tmp_path, size=32)
    assert (
        list(images.groups) == ["case1001", "case0045", "case0045"]
        and images.pixels.dtype == torch.uint16
    )
    assert np.array_equal(
        images.masks[2, 0].numpy(),
        preprocess_breast(raw_image(2), 32).transform_mask(
            lesion(raw_image().shape, slice(40, 60), slice(20, 40)) > 0
        ),
    )
    assert [finding.dataset for finding in check(tmp_path)] == ["mini_ddsm"]


def test_a_patients_name_in_a_file_goes_no_further(put, tmp_path):
    for k in range(3):
        put(dicom_bytes(raw_image(k), PatientID="Doe^Jane" if k < 2 else "Roe"), f"mine/{k}.dcm")
    images = load("dicom_mammogram", tmp_path / "mine", size=32)
    assert list(images.groups) == ["patient0001", "patient0001", "patient0002"]
    assert not any("Doe" in str(value) for value in vars(images).values())


cells = st.sampled_from(
    [
        "Mass-Training_P_00001_LEFT_CC/1.dcm",
        "Mass-Training_P_00001_LEFT_CC_1/1.dcm",
        "../x",
        "/etc/passwd",
        "BENIGN",
        "MALIGNANT",
        "",
        '"',
        '"a\nb"',
        "\x00",
        "é",
        "a" * 5000,
        "=1+1",
        "P_1",
    ]
)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(st.lists(cells, max_size=6).map(",".join), max_size=6), st.booleans())
def test_any_table_of_lesions(tmp_path, lines, headed):
    head = ["image file path,pathology,ROI mask file path,cropped image file path"] * headed
    (tmp_path / "calc_case_description_test_set.csv").write_text(
        "\n".join(head + lines), encoding="utf-8"
    )
    try:
        assert all(image.label in (0, 1) for image in cbis_ddsm.table_images(tmp_path))
        cbis_ddsm.list_mammograms(tmp_path)
    except DataError as error:
        one_line(error)


# --- texture and denoising


def test_texture_is_scikit_image():
    images = mammogram.load(48, 5).batch().numpy()
    levels = np.rint((images + 1) * 127.5).astype(np.uint8) // 8
    found = texture.glcm_features(images)
    for name in texture.GLCM_FEATURES:
        wanted = [
            graycoprops(graycomatrix(image[0], [1, 3], ANGLES, 32, True, True), name).mean()
            for image in levels
        ]
        assert np.allclose(found[name], wanted, atol=1e-9)
    for image, edges in zip(images, texture.sobel_magnitude(images)):
        assert np.allclose(edges[0], np.sqrt(2) * sobel(image[0]), atol=1e-6)
        kernel = np.array([1, 2, 1]) / 4
        gy = sum(
            kernel[k] * (image[0, 2:, k : k + 46] - image[0, :-2, k : k + 46]) for k in range(3)
        )
        gx = sum(
            kernel[k] * (image[0, k : k + 46, 2:] - image[0, k : k + 46, :-2]) for k in range(3)
        )
        assert np.allclose(edges[0, 1:-1, 1:-1], np.hypot(gx, gy), atol=1e-6)


def test_air_does_not_count():
    images = mammogram.load(48, 4).batch().numpy()
    masks = texture.foreground_mask(images)
    wider = np.pad(images, ((0, 0), (0, 0), (0, 20), (0, 40)), constant_values=-1)
    for name, values in texture.texture_features(wider).items():
        if not name.startswith("sobel"):
            assert np.allclose(values, texture.glcm_features(images, masks)[name])
    assert not (masks & (images < -0.9999)).any() or (masks & (images < -0.9999)).mean() < 0.01
    with pytest.raises(DataError):
        texture.texture_features(np.full((2, 1, 16, 16), -1.0))


def test_a_thousand_images_take_less_than_a_minute():
    images = mammogram.load(128, 50).batch().numpy()
    start = time.process_time()
    texture.texture_features(images)
    assert 10 * (time.process_time() - start) < 60


def test_simulated_mammograms_are_quick():
    start = time.process_time()
    mammogram.load(64, 40)
    assert 4 * (time.process_time() - start) < 15


def test_noise_sigma_is_that_of_scikit_image():
    pytest.importorskip("pywt")
    from skimage.restoration import estimate_sigma

    flat = 0.5 + np.random.default_rng(0).normal(0, 0.05, (256, 256))
    sigma = denoising.noise_sigma(2 * flat[None, None] - 1)[0] / 2
    assert abs(sigma / estimate_sigma(flat) - 1) < 0.05


def test_every_method_on_images_that_could_break_it():
    rng = np.random.default_rng(0)
    kinds = [
        np.full((1, 1, 32, 32), -1.0),
        np.ones((1, 1, 32, 32)),
        rng.uniform(-1, 1, (1, 1, 33, 47)),
        np.where(rng.random((1, 1, 32, 32)) < 0.5, -1.0, 1.0),
    ]
    for images in kinds:
        for method in denoising.METHODS:
            treated = denoising.denoise(images, method)
            assert (
                treated.shape == images.shape
                and np.isfinite(treated).all()
                and np.abs(treated).max() <= 1
            )
