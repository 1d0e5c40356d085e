"""The OASBUD file in both formats, whole and damaged: loaded, or refused in one line."""

import socket
from dataclasses import replace

import h5py
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from matlab_files import write_oasbud, write_structs

from medgan_nb.core.errors import DataError, MedganError
from medgan_nb.data.leakage import find_leakage
from medgan_nb.data.splits import group_split
from medgan_nb.data.ultrasound import bmode, envelope
from medgan_nb.data.ultrasound_images import Lesion, bmode_images, lesion_image_set
from medgan_nb.datasets import oasbud, registry
from medgan_nb.datasets.audit import check
from medgan_nb.simulation.ultrasound_rf import simulated_lesions

VERSIONS = ("v5", "v7.3")
DEPTH = 64


def lesion_structs(malignant: int = 1) -> list[dict]:
    "A hundred lesions in the published layout, 64 samples deep; lesions 11 and 51 have one id."
    rng = np.random.default_rng(0)
    structs = []
    for k in range(100):
        mask = np.zeros((DEPTH, 510), np.uint8)
        mask[20:40, 100 + k : 300] = 1
        frames = [
            np.tile(rng.integers(-900, 900, (DEPTH, 1)), (1, 510)).astype(np.int16)
            for _ in range(2)
        ]
        sick = k % 2 == 0 or k in (1, 3)
        structs.append(
            {
                "id": f"p{10 if k == 50 else k:02d}",
                "rf1": frames[0],
                "rf2": frames[1],
                "roi1": mask,
                "roi2": mask,
                "birads": "5" if sick else "4a",
                "class": np.array([[malignant if sick else 1 - malignant]], np.uint8),
            }
        )
    return structs


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict:
    "A good file in each format."
    folder = tmp_path_factory.mktemp("oasbud")
    paths = {version: folder / version / "OASBUD.mat" for version in VERSIONS}
    for version, path in paths.items():
        path.parent.mkdir()
        write_structs(path, "data", lesion_structs(), version)
    return paths


def assert_refused(path, *words) -> str:
    "The one line with which a file is refused."
    with pytest.raises(DataError) as error:
        oasbud.load(path, 16)
    text = str(error.value)
    assert text.startswith(str(path)) and "\n" not in text and len(text) < len(str(path)) + 500
    for word in words:
        assert word in text, text
    return text


@pytest.mark.parametrize("version", VERSIONS)
def test_both_formats_give_the_same_set(files, version):
    images = oasbud.load(files[version].parent, 32)
    assert images.counts() == {"benign": 48 * 2, "malignant": 52 * 2} and not images.simulated
    assert images.masks.flatten(1).any(1).all() and len(set(images.groups)) == 99
    assert images.fingerprint == oasbud.load(files["v5"], 32).fingerprint
    assert "not the published file" in images.notes[0] and "99 different ids" in images.notes[1]


@pytest.mark.parametrize("version", VERSIONS)
def test_simulated_lesions_come_back_and_are_marked(tmp_path, version):
    lesions = [
        replace(lesion, views=tuple((rf, mark(mask)) for rf, mask in lesion.views))
        for lesion in simulated_lesions(depths=(320,))
    ]
    path = tmp_path / "OASBUD.mat"
    write_oasbud(path, lesions, version, malignant=0, text="simulated by medgan_nb")
    images = oasbud.load(tmp_path, 32)
    assert images.simulated and images.fingerprint == lesion_image_set(lesions, 32).fingerprint


def mark(mask: torch.Tensor) -> torch.Tensor:
    "A mask that is not empty: lesions that begin below the frame get a mark in their place."
    return mask if mask.any() else mask.index_fill(0, torch.arange(100, 200), True)


@pytest.mark.parametrize("version", VERSIONS)
def test_either_value_of_class_may_be_the_malignant_one(files, tmp_path, version):
    path = write_structs(tmp_path / "turned.mat", "data", lesion_structs(malignant=0), version)
    assert oasbud.load(path, 32).fingerprint == oasbud.load(files[version], 32).fingerprint


def test_class_that_contradicts_birads_is_refused(tmp_path):
    turned = [row | {"birads": "3" if row["birads"] == "5" else "5"} for row in lesion_structs()]
    assert_refused(
        write_structs(tmp_path / "OASBUD.mat", "data", turned),
        "BI-RADS is 3.00 against 5.00",
        "cannot be told",
    )


@pytest.mark.parametrize("version", VERSIONS)
def test_cut_at_two_hundred_places(files, tmp_path, version):
    whole, path = files[version].read_bytes(), tmp_path / "OASBUD.mat"
    for at in np.linspace(0, len(whole) - 1, 200).astype(int):
        path.write_bytes(whole[:at])
        assert_refused(path)


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    places=st.lists(
        st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), min_size=1, max_size=5
    )
)
@pytest.mark.parametrize("version", VERSIONS)
def test_changed_bytes_are_read_or_refused_in_one_line(files, tmp_path, version, places):
    whole = bytearray(files[version].read_bytes())
    for share, change in places:
        whole[int(share * min(len(whole), 20_000))] ^= change
    path = tmp_path / "OASBUD.mat"
    path.write_bytes(whole)
    try:
        oasbud.verify_file(path)
    except DataError as error:
        assert str(error).startswith(str(path)) and "\n" not in str(error)


FLAWS = {
    "transposed": (
        {"rf1": np.ones((510, DEPTH), np.int16)},
        "data(7).rf1: shape (510, 64), a transposed frame",
    ),
    "nan": ({"rf2": np.full((DEPTH, 510), np.nan)}, "data(7).rf2: 32640 of 32640 values are NaN"),
    "silent line": (
        {"rf1": np.tile(np.arange(510) != 3, (DEPTH, 1)).astype(np.int16)},
        "data(7).rf1: 1 lines are all zero",
    ),
    "too short": ({"rf1": np.ones((20, 510))}, "data(7).rf1: shape (20, 510)"),
    "text for echoes": ({"rf1": "echoes"}, "data(7).rf1: str"),
    "mask of another size": (
        {"roi1": np.ones((DEPTH, 511), np.uint8)},
        "data(7).roi1: shape (64, 511); expected (64, 510)",
    ),
    "mask of grey": ({"roi2": np.full((DEPTH, 510), 0.5)}, "data(7).roi2: values beside 0 and 1"),
    "empty mask": ({"roi2": np.zeros((DEPTH, 510), np.uint8)}, "data(7).roi2: marks nothing"),
    "class 2": ({"class": np.array([[2]])}, "data(7).class: [2]; expected 0 or 1"),
    "no birads": ({"birads": "x"}, "data(7).birads: 'x'"),
    "51 of 49": ({"class": np.array([[0]])}, "class: 49 of value 0, 51 of value 1"),
}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("case", FLAWS)
def test_what_a_field_may_not_hold(tmp_path, version, case):
    fields, said = FLAWS[case]
    table = lesion_structs()
    table[6] |= fields
    assert_refused(write_structs(tmp_path / "OASBUD.mat", "data", table, version), said)


def test_object_arrays_and_other_structures(tmp_path):
    table = lesion_structs()
    table[6]["rf1"] = np.array([{"a": 1}, "b"], object)
    assert_refused(write_structs(tmp_path / "cells.mat", "data", table), "data(7).rf1: cell array")
    assert_refused(
        write_structs(tmp_path / "other.mat", "lesions", lesion_structs()), "has no variable data"
    )
    assert_refused(
        write_structs(tmp_path / "few.mat", "data", lesion_structs()[:99]),
        "expected a struct array of 100",
    )
    assert_refused(
        write_structs(
            tmp_path / "less.mat", "data", [{"id": row["id"]} for row in lesion_structs()], "v7.3"
        ),
        "expected also rf1",
    )


def test_what_is_no_matlab_file(tmp_path):
    for name, content, said in (
        ("page.mat", b"<!DOCTYPE html><p>404", "is a web page"),
        ("empty.mat", b"", "is empty"),
        ("lfs.mat", b"version https://git-lfs.github.com/spec/v1", "Git LFS pointer"),
        ("zip.mat", b"PK\3\4" + bytes(600), "no MATLAB file"),
        ("pickle.mat", b"\x80\x04cposix\nsystem\n(S'touch /tmp/x'\ntR.", "no MATLAB file"),
    ):
        (tmp_path / name).write_bytes(content)
        assert_refused(tmp_path / name, said)
    with pytest.raises(DataError, match="no OASBUD.mat in it"):
        oasbud.load(tmp_path, 32)


@pytest.mark.parametrize(
    "link", [h5py.ExternalLink("secret.h5", "/rf"), h5py.SoftLink("/data/rf1")]
)
def test_links_are_not_followed(files, tmp_path, monkeypatch, link):
    (tmp_path / "OASBUD.mat").write_bytes(files["v7.3"].read_bytes())
    with h5py.File(tmp_path / "OASBUD.mat", "r+") as file:
        del file["data/rf1"]
        file["data/rf1"] = link
    with h5py.File(tmp_path / "secret.h5", "w") as file:
        file["rf"] = np.ones((510, DEPTH))
    opened = []
    monkeypatch.setattr(
        h5py.h5f, "open", lambda *a, real=h5py.h5f.open, **k: opened.append(a[0]) or real(*a, **k)
    )
    assert_refused(tmp_path / "OASBUD.mat", "/data/rf1: a", "link; expected none")
    assert not any(b"secret" in name for name in opened)


def test_by_name_checked_and_split(files, tmp_path, monkeypatch):
    monkeypatch.setenv("MEDGAN_CACHE", str(tmp_path / "cache"))
    folder = files["v5"].parent
    images = registry.load("oasbud", folder, size=32)
    assert images.fingerprint == registry.load("oasbud", folder, size=32).fingerprint
    splits = group_split(images, {"train": 0.8, "test": 0.2}, 0)
    assert find_leakage(**splits) == [] and 36 <= len(splits["test"]) <= 40
    assert len(splits["train"]) + len(splits["test"]) == 200
    assert [finding.fault for finding in check(folder)] == [False]
    (tmp_path / "OASBUD.mat").write_bytes(files["v5"].read_bytes()[:-99])
    findings = check(tmp_path)
    assert [finding.fault for finding in findings] == [True]
    assert "OASBUD.mat" in findings[0].message and "image" not in findings[0].message


def test_fetch_without_a_connection(tmp_path, monkeypatch):
    def offline(*args, **kwargs):
        raise OSError("offline")

    monkeypatch.setattr(socket, "getaddrinfo", offline)
    monkeypatch.setattr(socket.socket, "connect", offline)
    for proxy in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(proxy, raising=False)
    with pytest.raises(
        MedganError, match="not there and not fetched from doi.org/10.5281/zenodo.545928"
    ):
        registry.fetch("oasbud", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_memory_of_a_long_set_is_that_of_a_frame():
    import tracemalloc

    def frames():
        for k in range(30):
            yield (
                np.random.default_rng(k).integers(-900, 900, (1000, 510)).astype(np.int16),
                np.ones((1000, 510), np.uint8),
            )

    tracemalloc.start()
    pixels, masks = bmode_images(frames(), 64)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert pixels.shape == masks.shape == (30, 1, 64, 64) and peak < 4 * 1000 * 510 * 8


def test_depth_is_the_axis_before_the_last():
    t = torch.arange(400.0).view(-1, 1)
    echo = torch.exp(-(((t - 200) / 20) ** 2)) * torch.cos(
        2 * torch.pi * t / 4 + torch.arange(30.0)
    )
    assert (envelope(echo) - torch.exp(-(((t - 200) / 20) ** 2))).abs().max() < 1e-4
    assert bmode(echo[None]).shape[-1] == 30 and isinstance(bmode(echo.numpy()), np.ndarray)
    lesion = Lesion("a", "3", False, ((echo, echo > 0.5),))
    assert lesion.views[0][0].shape == (400, 30)
