"""Image files and folders that are not what they should be: each is read by the stated rule or
refused by name.
"""

import io
import os
import shutil
import struct
import subprocess
import sys
import time
import zlib

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile

from medgan_nb.core.errors import ConfigError, DataError, MedganError
from medgan_nb.data.files import list_images, load_all
from medgan_nb.data.formats.images import MAX_PIXELS, load_image, load_mask, write_png
from medgan_nb.data.transforms import preprocess, to_square
from medgan_nb.datasets import chest_xray, folder
from medgan_nb.datasets.audit import check

IMAGE = (np.add.outer(np.arange(40), np.arange(48)) * 255 // 86).astype(np.uint8)


def encode(image, format="PNG", **options) -> bytes:
    "An image (or array) as the bytes of a file."
    buffer = io.BytesIO()
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    image.save(buffer, format=format, **options)
    return buffer.getvalue()


def assert_refused(path, *words) -> str:
    "The message with which a file is refused: one line that names the file and holds the words."
    with pytest.raises(DataError) as error:
        load_image(path)
    text = str(error.value)
    assert text.startswith(str(path)) and "\n" not in text and len(text) < len(str(path)) + 400
    for word in words:
        assert word in text
    return text


@pytest.fixture
def write_file(tmp_path):
    "Write bytes under a name in a fresh folder and return the path."

    def write(data: bytes, name: str = "image.png"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return path

    return write


@pytest.fixture
def chest(tmp_path):
    "A small copy of the chest X-ray layout made of noise."
    rng = np.random.default_rng(0)
    for split in ("train", "val", "test"):
        for k in range(3):
            for name in (
                f"NORMAL/IM-{len(split)}{k:03d}-0001",
                f"PNEUMONIA/person{k}{len(split)}_virus_1",
            ):
                pixels = rng.integers(0, 256, (20, 24), dtype=np.uint8)
                write_png(tmp_path / "chest_xray" / split / f"{name}.png", pixels)
    return tmp_path / "chest_xray"


# --- damaged files


@pytest.mark.parametrize("share", [0.02, 0.3, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("format", ["PNG", "JPEG", "BMP", "TIFF", "PPM"])
def test_truncated(write_file, format, share):
    data = encode(IMAGE, format)
    assert_refused(write_file(data[: int(len(data) * share)]))


def test_truncated_stays_refused_when_a_library_turns_tolerance_on(write_file, monkeypatch):
    path = write_file(encode(IMAGE, "JPEG")[:-200], "cut.jpeg")
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    with pytest.raises(ConfigError, match="LOAD_TRUNCATED_IMAGES"):
        load_image(path)


@pytest.mark.parametrize(
    "text", ["<!DOCTYPE html><html>", "\n <HTML><body>", "\ufeff<html>", "<?xml version='1.0'?>"]
)
def test_web_page_saved_as_jpeg(write_file, text):
    assert_refused(write_file(text.encode(), "image.jpeg"), "is a web page")


def test_pointer_empty_and_text(write_file):
    assert_refused(
        write_file(b"version https://git-lfs.github.com/spec/v1\noid sha256:0"), "git lfs pull"
    )
    assert_refused(write_file(b""), "is empty")
    assert_refused(write_file(b"no image at all"), "cannot be decoded")


def test_formats_that_are_not_allowed(write_file):
    for format in ("GIF", "WEBP", "ICO"):
        assert_refused(
            write_file(encode(IMAGE, format), f"image.{format.lower()}"), "cannot be decoded"
        )


def test_wrong_ending_does_no_harm(write_file):
    assert np.array_equal(load_image(write_file(encode(IMAGE), "image.jpeg")), IMAGE)


# --- what a file may hold


def test_eight_and_sixteen_bits(write_file):
    assert np.array_equal(load_image(write_file(encode(IMAGE))), IMAGE)
    image16 = IMAGE.astype(np.uint16) * 257 ^ 5
    for format in ("PNG", "TIFF", "PPM"):
        loaded = load_image(write_file(encode(image16, format)))
        assert loaded.dtype == np.uint16 and np.array_equal(loaded, image16)
    assert np.array_equal(
        load_image(write_file(encode(IMAGE.astype(np.int32) * 200, "TIFF"))),
        IMAGE.astype(np.uint16) * 200,
    )


def test_integers_that_do_not_fit_and_floats(write_file):
    assert_refused(write_file(encode(IMAGE.astype(np.int32) * 1000, "TIFF")), "expected 0 to 65535")
    assert_refused(write_file(encode(IMAGE.astype(np.int32) - 9, "TIFF")), "grey values from -9")
    assert_refused(write_file(encode(IMAGE.astype(np.float32), "TIFF")), "stored as F")


def test_one_bit_and_palette(write_file):
    assert np.array_equal(load_image(write_file(encode(IMAGE > 99))), (IMAGE > 99) * np.uint8(255))
    grey_palette = Image.fromarray(IMAGE).convert("P")
    assert np.array_equal(load_image(write_file(encode(grey_palette))), IMAGE)
    colours = Image.fromarray(np.stack([IMAGE, IMAGE // 2, IMAGE // 4], -1)).quantize(16)
    assert np.array_equal(
        load_image(write_file(encode(colours))), np.asarray(colours.convert("RGB").convert("L"))
    )


def test_grey_in_rgb_is_that_grey(write_file):
    assert np.array_equal(load_image(write_file(encode(np.stack([IMAGE] * 3, -1)))), IMAGE)


def test_alpha(write_file):
    opaque, partial_alpha = np.full_like(IMAGE, 255), IMAGE
    assert np.array_equal(
        load_image(write_file(encode(np.stack([IMAGE] * 3 + [opaque], -1)))), IMAGE
    )
    pair = Image.merge("LA", [Image.fromarray(a) for a in (IMAGE, opaque)])
    assert np.array_equal(load_image(write_file(encode(pair))), IMAGE)
    assert_refused(write_file(encode(np.stack([IMAGE] * 3 + [partial_alpha], -1))), "transparent")
    assert_refused(
        write_file(encode(Image.merge("LA", [Image.fromarray(a) for a in (IMAGE, partial_alpha)]))),
        "transparent",
    )


def test_transparent_colour_key(write_file):
    assert_refused(write_file(encode(IMAGE, transparency=int(IMAGE[3, 3]))), "transparent")
    assert np.array_equal(
        load_image(write_file(encode(np.minimum(IMAGE, 254), transparency=255))),
        np.minimum(IMAGE, 254),
    )
    image16 = IMAGE.astype(np.uint16) * 257
    assert_refused(write_file(encode(image16, transparency=int(image16[3, 3]))), "transparent")
    assert_refused(
        write_file(encode(Image.fromarray(IMAGE).convert("P"), transparency=0)), "transparent"
    )


def test_cmyk_and_other_colours(write_file):
    ink = Image.fromarray(np.stack([IMAGE] * 4, -1), "CMYK")
    assert_refused(
        write_file(encode(ink, "JPEG"), "ink.jpeg"), "stored as CMYK", "convert it first"
    )
    assert_refused(
        write_file(encode(Image.fromarray(np.stack([IMAGE] * 3, -1)).convert("LAB"), "TIFF")),
        "stored as LAB",
    )


def png(width, height, depth, colour, rows: bytes) -> bytes:
    "A PNG file by hand, for kinds that Pillow does not write."

    def chunk(name, data):
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def test_deep_colour_is_not_cut_to_eight_bits(write_file):
    rows = b"".join(b"\0" + os.urandom(16 * 6) for _ in range(16))
    assert_refused(write_file(png(16, 16, 16, 2, rows)), "16 bits a channel")
    assert_refused(
        write_file(b"P6 16 16 65535\n" + os.urandom(16 * 16 * 6), "image16.ppm"),
        "16 bits a channel",
    )


def test_exif_rotation(write_file):
    expected = {
        1: IMAGE,
        2: IMAGE[:, ::-1],
        3: IMAGE[::-1, ::-1],
        6: np.rot90(IMAGE, -1),
        8: np.rot90(IMAGE),
    }
    for orientation, rotated in expected.items():
        exif = Image.Exif()
        exif[274] = orientation
        assert np.array_equal(load_image(write_file(encode(IMAGE, exif=exif))), rotated)
        assert np.array_equal(load_image(write_file(encode(IMAGE, "TIFF", exif=exif))), rotated)


def test_frames(write_file):
    frames = [Image.fromarray(IMAGE), Image.fromarray(IMAGE[::-1].copy())]
    for format in ("TIFF", "PNG"):
        assert_refused(
            write_file(encode(frames[0], format, save_all=True, append_images=frames[1:])),
            "several frames",
        )


@pytest.fixture
def quick():
    "Fails a test that takes more than five seconds."
    started = time.monotonic()
    yield
    assert time.monotonic() - started < 5.0


def test_many_scans_are_refused_before_decoding(write_file, quick):
    data = encode(Image.new("L", (2000, 2000), 99), "JPEG", progressive=True)
    start = data.rindex(b"\xff\xda")
    for n in (60, 3000):
        many = data[:start] + data[start:-2] * n + b"\xff\xd9"
        assert_refused(write_file(many, f"{n}.jpeg"), "scans over 4000000 pixels")
    noise = np.random.default_rng(0).integers(0, 256, (400, 400), dtype=np.uint8)
    assert load_image(write_file(encode(noise, "JPEG", progressive=True), "fine.jpeg")).any()


def chained_tiff(n: int) -> bytes:
    "A TIFF file of n directories of 8 x 8 pixels, each of which names the next."
    tags = [
        (256, 8),
        (257, 8),
        (258, 8),
        (259, 1),
        (262, 1),
        (273, 8),
        (277, 1),
        (278, 8),
        (279, 64),
    ]
    size = 2 + 12 * len(tags) + 4
    parts = [b"II*\0" + struct.pack("<I", 72), bytes(range(64))]
    for k in range(n):
        entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
        following = 72 + (k + 1) * size if k < n - 1 else 0
        parts.append(struct.pack("<H", len(tags)) + entries + struct.pack("<I", following))
    return b"".join(parts)


def test_chained_directories_are_not_all_visited(write_file, quick):
    assert load_image(write_file(chained_tiff(1), "one.tiff")).shape == (8, 8)
    assert_refused(write_file(chained_tiff(100_000), "many.tiff"), "several frames")


def test_long_headers_and_large_images_as_text(write_file, quick):
    comment = b"P5 #" + b"x" * (50 << 20) + b"\n9 9 255\n" + bytes(range(81))
    assert_refused(write_file(comment, "comment.pgm"), "no width and height within its first 4096")
    text = b"P2 8000 2000 255\n" + b"7 " * 16_000_000
    assert_refused(write_file(text, "text.pgm"), "PNM as text of 16000000 pixels")
    few = b"P2 #pixels\n9 9 255\n" + b" ".join(b"%d" % k for k in range(81))
    assert load_image(write_file(few, "few.pgm")).shape == (9, 9)


def write_four_large_images(folder) -> None:
    "RGBA images of 36 million pixels in 0.6 MB each."
    image = Image.new("RGBA", (6000, 6000), (5, 5, 5, 255))
    image.putpixel((0, 0), (9, 9, 9, 255))
    image.save(folder / "0.png", compress_level=1)
    for k in range(1, 4):
        shutil.copy(folder / "0.png", folder / f"{k}.png")


def test_many_large_images_share_a_bounded_memory(tmp_path):
    "Four threads load them; each alone takes 200 MiB."
    write_four_large_images(tmp_path)
    assert growth_of_four_readers(tmp_path) < 700


def test_large_files_are_in_memory_one_at_a_time(tmp_path):
    "Four threads load images with 300 MiB of nothing behind them."
    write_four_large_images(tmp_path)
    for k in range(4):
        os.truncate(tmp_path / f"{k}.png", 300 << 20)
    assert growth_of_four_readers(tmp_path) < 900


def growth_of_four_readers(folder) -> int:
    "By how many MiB a process grows that loads the images of a folder in four threads."
    code = (
        "import resource, sys\n"
        "from concurrent.futures import ThreadPoolExecutor\n"
        "from pathlib import Path\n"
        "from medgan_nb.data.formats.images import load_image\n"
        "def load(path): return load_image(path).shape\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "paths = list(Path(sys.argv[1]).glob('*.png'))\n"
        "with ThreadPoolExecutor(4) as pool: list(pool.map(load, paths))\n"
        "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10)"
    )
    done = subprocess.run([sys.executable, "-c", code, folder], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def test_libtiff_writes_nothing_beside_our_message(write_file, capfd):
    data = bytearray(encode(IMAGE, "TIFF", compression="tiff_lzw"))
    data[12:40] = os.urandom(28)
    assert_refused(write_file(bytes(data), "bad.tiff"))
    assert capfd.readouterr().err == ""


def test_sides_and_constant(write_file):
    assert_refused(write_file(encode(IMAGE[:1, :1])), "1 x 1 pixels")
    assert_refused(write_file(encode(IMAGE[:7])), "sides of at least 8")
    assert_refused(write_file(encode(IMAGE * 0 + 7)), "all pixels equal 7")
    assert not load_mask(write_file(encode(IMAGE * 0))).any()


def test_bomb_is_refused_before_decoding(write_file):
    side = 60_000
    assert_refused(write_file(png(side, side, 8, 0, b"\0" * 1000)), "more than 80 million")
    assert_refused(write_file(png(10_000, 9_000, 8, 0, b"\0" * 1000)), "more than 80 million")
    assert_refused(
        write_file(png(MAX_PIXELS // 8000 + 1, 8000, 8, 0, b"\0" * 1000)), "at most 80 million"
    )


# --- names and folders


@pytest.mark.parametrize(
    "name",
    [
        'it\'s "it".png',
        "a b.png",
        "Lungenbläschen 肺.png",
        "a..b...png",
        "-rf.png",
        "%s{0}$HOME.png",
        "..png.png",
    ],
)
def test_names(write_file, name):
    path = write_file(encode(IMAGE), name)
    assert np.array_equal(load_image(path), IMAGE)
    if not name.startswith("."):
        assert list_images(path.parent) == [path]
    path.write_bytes(b"\xff\xd8 broken")
    assert name in assert_refused(path)


def test_names_that_do_not_print_are_refused_or_escaped(write_file):
    path = write_file(encode(IMAGE), "red\x1b[31m.png")
    with pytest.raises(DataError, match=r"red\\x1b\[31m.png: the name holds"):
        list_images(path.parent)
    path.write_bytes(b"x")
    with pytest.raises(DataError, match=r"red\\x1b"):
        load_image(path)


@pytest.mark.skipif(os.name != "posix", reason="names that are no text exist on POSIX only")
def test_name_that_is_not_text(tmp_path):
    try:
        (tmp_path / os.fsdecode(b"caf\xe9.png")).write_bytes(encode(IMAGE))
    except OSError:
        pytest.skip("the file system takes UTF-8 names only")
    with pytest.raises(DataError) as error:
        list_images(tmp_path)
    str(error.value).encode("utf-8")


def test_dots_in_a_path_stay_a_path(write_file, tmp_path):
    write_file(encode(IMAGE), "in/image.png")
    assert load_image(tmp_path / "in" / ".." / "in" / "image.png").shape == IMAGE.shape
    with pytest.raises(DataError, match="leads outside"):
        list_images(tmp_path / "in" / "..", root=tmp_path / "in")


def test_nul_and_overlong_names():
    for name in ("a\0b.png", "x" * 5000):
        with pytest.raises(DataError, match="cannot be read"):
            load_image(name)
        with pytest.raises(DataError, match="cannot be opened"):
            list_images(name)


def test_links(write_file, tmp_path):
    outside, inside = (
        write_file(encode(IMAGE), "secret.png"),
        write_file(encode(IMAGE), "data/a/image.png").parent,
    )
    (inside / "link.png").symlink_to("image.png")
    assert len(list_images(inside)) == 2
    (inside / "out.png").symlink_to(outside)
    with pytest.raises(DataError, match="leads outside"):
        list_images(inside)
    with pytest.raises(DataError, match="leads outside"):
        folder.load(tmp_path / "data")
    (inside / "out.png").unlink()
    (inside / "gone.png").symlink_to("nothing.png")
    with pytest.raises(DataError, match="a link to no file"):
        list_images(inside)
    (inside / "gone.png").unlink()
    (tmp_path / "data" / "b").symlink_to(tmp_path)
    with pytest.raises(DataError, match="leads outside"):
        folder.load(tmp_path / "data")


def test_a_link_to_itself(tmp_path):
    (tmp_path / "loop.png").symlink_to("loop.png")
    with pytest.raises(MedganError, match="loop.png"):
        list_images(tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_named_pipe_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    assert_refused(tmp_path / "pipe.png", "not a regular file")


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may read every folder")
def test_unreadable_folder_and_file(write_file):
    path = write_file(encode(IMAGE), "closed/image.png")
    path.chmod(0)
    assert_refused(path, "Permission denied")
    path.parent.chmod(0)
    try:
        with pytest.raises(DataError, match="cannot be opened as a folder"):
            list_images(path.parent)
    finally:
        path.parent.chmod(0o700)


def test_unreadable_folder_by_any_user(tmp_path, monkeypatch):
    def closed(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "listdir", closed)
    with pytest.raises(DataError, match="cannot be opened as a folder .Permission denied."):
        list_images(tmp_path)


def test_litter_is_passed_over(write_file):
    path = write_file(encode(IMAGE))
    for name in (
        ".DS_Store",
        "._image.png",
        "Thumbs.db",
        "__MACOSX/image.png",
        ".hidden.png",
        "notes.txt",
    ):
        write_file(b"", name)
    assert list_images(path.parent) == [path]


def test_first_damaged_file_by_name_ends_the_loading(write_file):
    paths = [write_file(encode(IMAGE), f"{k:03d}.png") for k in range(40)]
    for k in (31, 7, 39):
        paths[k].write_bytes(b"")
    with pytest.raises(DataError, match="007.png"):
        load_all(paths, load_image)


# --- data sets


def test_chest_layout_errors(chest):
    assert len(chest_xray.load(chest, size=16)) == 18
    bad = chest / "train/NORMAL/IM-5000-0001.png"
    bad.write_text("<html>")
    with pytest.raises(DataError, match="IM-5000-0001.png: is a web page"):
        chest_xray.load(chest, size=16)
    for path in bad.parent.iterdir():
        path.unlink()
    with pytest.raises(DataError, match="NORMAL: no images in it"):
        chest_xray.load(chest, size=16)
    bad.parent.rmdir()
    with pytest.raises(
        DataError, match="class folders are PNEUMONIA; expected NORMAL and PNEUMONIA"
    ):
        chest_xray.load(chest, size=16)


def test_chest_foreign_class(chest):
    (chest / "test" / "COVID").mkdir()
    with pytest.raises(DataError, match="COVID"):
        chest_xray.load(chest)


def test_folder_errors(tmp_path):
    write_png(tmp_path / "mine/a/1.png", IMAGE)
    assert folder.load(tmp_path / "mine", size=16).classes == ("a",)
    (tmp_path / "mine/b").mkdir()
    with pytest.raises(DataError, match="b: no images in it"):
        folder.load(tmp_path / "mine")
    write_png(tmp_path / "mine/b/1.png", IMAGE)
    (tmp_path / "mine/b/1.jpg").write_bytes(encode(IMAGE, "JPEG"))
    with pytest.raises(DataError, match="differs from it only in the ending"):
        folder.load(tmp_path / "mine")
    (tmp_path / "mine/b/1.jpg").unlink()
    write_png(tmp_path / "mine/b/2.png", IMAGE.astype(np.uint16) * 257)
    with pytest.raises(DataError, match="uint16 pixels while 1.png has uint8"):
        folder.load(tmp_path / "mine")


def test_check_names_every_damaged_file(chest):
    for k, name in enumerate(
        ("train/NORMAL/IM-5000-0001.png", "test/PNEUMONIA/person04_virus_1.png")
    ):
        (chest / name).write_bytes(b"\xff\xd8" * k)
    faults = [finding.message for finding in check(chest) if finding.fault]
    assert len(faults) == 2 and "IM-5000-0001" in faults[0] and "person04" in faults[1]


# --- chance


def loads_or_is_refused(path) -> bool:
    """Whether a file loads, as an image that the package can use; nothing but a
    MedganError is raised.
    """
    try:
        pixels = load_image(path)
    except MedganError as error:
        assert "\n" not in str(error) and str(path) in str(error)
        return False
    assert pixels.dtype in (np.uint8, np.uint16) and pixels.ndim == 2 and min(pixels.shape) >= 8
    assert pixels.min() < pixels.max() and pixels.size <= MAX_PIXELS
    assert preprocess(pixels, 16).shape == (16, 16)
    return True


def samples() -> list[bytes]:
    "One small file of each kind."
    noise = np.random.default_rng(0).integers(0, 256, IMAGE.shape, dtype=np.uint8) // 4 + IMAGE // 2
    exif = Image.Exif()
    exif[274] = 6
    colour = np.stack([noise, IMAGE, noise], -1)
    return [
        encode(noise),
        encode(noise.astype(np.uint16) * 257),
        encode(Image.fromarray(colour).quantize(32)),
        encode(noise, "JPEG", exif=exif),
        encode(colour, "JPEG"),
        encode(noise, "JPEG", progressive=True),
        encode(noise, "TIFF"),
        encode(noise, "TIFF", compression="tiff_lzw"),
        encode(noise, "BMP"),
        encode(noise, "PPM"),
        encode(colour, "PPM"),
    ]


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_cut_and_changed_files(write_file):
    rng, path, n_loaded = np.random.default_rng(0), write_file(b""), 0
    for data in samples():
        for _ in range(25):
            path.write_bytes(data[: rng.integers(len(data))])
            loads_or_is_refused(path)
        for _ in range(40):
            changed = bytearray(data)
            for offset in rng.integers(
                0, len(data) if rng.random() < 0.5 else 200, rng.integers(1, 6)
            ):
                changed[offset] ^= 1 << rng.integers(8)
            path.write_bytes(changed)
            n_loaded += loads_or_is_refused(path)
    assert n_loaded > 20


def test_every_changed_bit_of_a_png_is_found(write_file):
    data, rng = encode(IMAGE), np.random.default_rng(1)
    for offset in rng.permutation(len(data))[:150]:
        changed = bytearray(data)
        changed[offset] ^= 1 << rng.integers(8)
        assert_refused(write_file(bytes(changed)))


@pytest.mark.filterwarnings("ignore::UserWarning")
@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.sampled_from(
        [
            b"",
            b"\x89PNG\r\n\x1a\n",
            b"\xff\xd8\xff\xe0",
            b"BM",
            b"II*\0",
            b"MM\0*",
            b"P5 9 9 255\n",
            b"P6 9 9 999\n",
            b"P4 9 9\n",
            b"Pf 9 9 1\n",
        ]
    ),
    st.binary(max_size=400),
)
def test_any_bytes(write_file, start, rest):
    loads_or_is_refused(write_file(start + rest))


@settings(max_examples=60, deadline=None)
@given(
    st.integers(8, 300),
    st.integers(8, 300),
    st.integers(8, 64),
    st.sampled_from(["crop", "stretch", "pad"]),
    st.sampled_from([np.uint8, np.uint16]),
)
def test_any_shape_becomes_a_square(height, width, size, resize_mode, dtype):
    pixels = (np.indices((height, width)).sum(0) * 97 % (np.iinfo(dtype).max + 1)).astype(dtype)
    result = to_square(pixels, size, resize_mode)
    assert result.shape == (size, size) and result.dtype == dtype
