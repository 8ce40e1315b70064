"""A folder of pictures: every kind of file, classes, the held-out part, and a preparation that loses nothing."""

import contextlib
import io
import json
import os
import struct
import subprocess
import sys
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from refusal import refused

import scoregen
from scoregen import files
from scoregen.app import main
from scoregen.data import pictures as P
from scoregen.data.folder import find, folder
from scoregen.data.prepared import Index, Store, Table
from scoregen.errors import UsageError

RNG = np.random.default_rng(0)
COLOUR = RNG.integers(0, 256, (6, 8, 3), np.uint8)
GREY = RNG.integers(0, 256, (6, 8), np.uint8)
DEEP = RNG.integers(0, 65536, (6, 8), np.uint16)
SAME = P.Wanted(6, 8, background=(10, 20, 30))  # the size of these pictures, so that nothing is resized


@pytest.fixture(autouse=True)
def cached(tmp_path, monkeypatch):
    monkeypatch.setenv("SCOREGEN_CACHE", str(tmp_path / "cache"))


def png(path: Path, values: np.ndarray, colour: int, clear: bytes = b"") -> Path:
    """A PNG of 16 bits, which Pillow cannot write in colour: grey 0, RGB 2, grey and alpha 4, RGBA 6."""
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, colour, 0, 0, 0)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    colours = chunk(b"tRNS", clear) if clear else b""
    parts = chunk(b"IHDR", header), colours, chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    return path


def tiff(path: Path, values: np.ndarray) -> Path:
    """A TIFF of unsigned integers of 32 bits, which Pillow cannot write."""
    high, wide = values.shape
    tags = {256: wide, 257: high, 258: 32, 259: 1, 262: 1, 273: 134, 277: 1, 278: high, 279: values.nbytes, 339: 1}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    header = struct.pack("<2sHIH", b"II", 42, 8, len(tags)) + entries
    path.write_bytes(header + b"\0" * 4 + values.astype("<u4").tobytes())  # 10 + 10 * 12 + 4 = 134 bytes before them
    return path


def saved(path: Path, values: np.ndarray, mode: str | None = None, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(values)
    (image if mode is None else image.convert(mode)).save(path, **options)
    return path


def three(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey[..., None], 3, axis=-1)


def eight(deep: np.ndarray) -> np.ndarray:
    return np.rint(deep.astype(np.float64) * 255 / 65535).astype(np.uint8)


def over(rgb: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    share = alpha[..., None] / 255
    return share * rgb + (1 - share) * np.array(SAME.background)


def both(data) -> list[np.ndarray]:
    """All pictures of a data set."""
    return [x for part in (data.train, data.test) if part is not None for x in part]


def random_pictures(root: Path, count: int = 20, classes=("cats", "dogs"), seed: int = 1) -> Path:
    rng = np.random.default_rng(seed)
    for name in classes:
        for i in range(count):
            saved(root / name / f"{i:02d}.png", rng.integers(0, 256, (9, 12, 3), np.uint8))
    return root


# One file


def test_pictures_of_every_kind(tmp_path):
    alpha, palette = RNG.integers(0, 256, (6, 8), np.uint8), Image.fromarray(COLOUR).quantize(16)
    colours = np.asarray(palette.convert("RGB"))
    cmyk = Image.fromarray(COLOUR).convert("CMYK")
    rgba, la = np.dstack([COLOUR, alpha]), np.dstack([GREY, alpha])
    deep = np.stack([DEEP, DEEP[::-1], DEEP[:, ::-1]], -1)
    palette.save(tmp_path / "p.gif")
    palette.save(tmp_path / "clear.png", transparency=3)
    clear = (np.asarray(palette) != 3) * np.uint8(255)
    cmyk.save(tmp_path / "cmyk.tif")
    bits = GREY > 127
    for path, mode, expected, within in (
        (saved(tmp_path / "1.png", bits), "1", three(bits * np.uint8(255)), 0),
        (saved(tmp_path / "l.bmp", GREY), "L", three(GREY), 0),
        (saved(tmp_path / "rgb.PNG", COLOUR), "RGB", COLOUR, 0),
        (saved(tmp_path / "rgb.webp", COLOUR, lossless=True), "RGB", COLOUR, 0),
        (tmp_path / "p.gif", "P", colours, 0),
        (tmp_path / "clear.png", "P", over(colours, clear), 1),
        (saved(tmp_path / "la.png", la, None), "LA", over(three(GREY), alpha), 1),
        (saved(tmp_path / "rgba.tiff", rgba), "RGBA", over(COLOUR, alpha), 1),
        (tmp_path / "cmyk.tif", "CMYK", np.asarray(cmyk.convert("RGB")), 0),
        (saved(tmp_path / "deep.png", DEEP), "I;16", three(eight(DEEP)), 0),
        (saved(tmp_path / "deep.tif", DEEP), "I;16", three(eight(DEEP)), 0),
        (png(tmp_path / "deep_rgb.png", deep, 2), "RGB", eight(deep), 1),
        (png(tmp_path / "deep_rgba.png", np.dstack([deep, 257 * alpha.astype(np.uint16)]), 6), "RGBA", None, 2),
        (saved(tmp_path / "f.tif", (GREY / 255).astype(np.float32)), "F", three(GREY), 0),
        (saved(tmp_path / "i.tif", GREY.astype(np.int32) * (2**31 // 255)), "I", three(GREY), 1),
    ):
        found = P.read(path, SAME)
        expected = over(eight(deep), alpha) if expected is None else expected
        assert found.mode == mode and found.size == (6, 8), path.name
        assert np.abs(found.pixels.astype(float) - expected).max() <= within, path.name
        assert found.grey == bool((np.ptp(found.pixels, axis=-1) == 0).all()), path.name


def test_tiffs_whose_white_is_zero_and_unsigned_ones(tmp_path):
    for values, dtype, expected in ((DEEP, np.uint16, eight(DEEP)), (GREY / 255, np.float32, GREY)):
        Image.fromarray(values.astype(dtype)).save(tmp_path / "w.tif", tiffinfo={262: 0})
        assert np.abs(P.read(tmp_path / "w.tif", SAME).pixels - (255.0 - three(expected))).max() <= 1
    wide = (DEEP.astype(np.uint32) << 16) + 1
    assert np.abs(P.read(tiff(tmp_path / "u.tif", wide), SAME).pixels.astype(int) - three(eight(DEEP))).max() <= 1
    dark = P.read(saved(tmp_path / "d.png", DEEP // 16), SAME)  # 12 bits in 16
    assert "dark" in dark.notes and dark.pixels.max() <= 16


def test_the_transparent_colour_of_a_png(tmp_path):
    deep = np.stack([DEEP, DEEP[::-1], DEEP[:, ::-1]], -1)
    path = png(tmp_path / "t.png", deep, 2, clear=struct.pack(">3H", *deep[2, 3]))
    found = P.read(path, SAME)
    assert tuple(found.pixels[2, 3]) == SAME.background and "transparent" in found.notes
    assert np.abs(found.pixels[0] - eight(deep)[0].astype(float)).max() <= 1


def test_jpeg_is_read_and_a_moving_picture_gives_its_first_frame(tmp_path):
    smooth = np.tile(np.linspace(0, 255, 64, dtype=np.uint8), (64, 1))
    found = P.read(saved(tmp_path / "a.jpeg", smooth, quality=95), P.Wanted(64, 64))
    assert np.abs(found.pixels.astype(int) - three(smooth)).max() < 6 and found.format == "JPEG"
    frames = [Image.fromarray(np.full((6, 8), level, np.uint8)) for level in (40, 200)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    found = P.read(tmp_path / "a.gif", SAME)
    assert (found.pixels == 40).all() and "first frame" in found.notes


STORED = {  # how a camera stores an upright picture, for each orientation of EXIF
    1: lambda x: x,
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.transpose(1, 0, 2),
    6: lambda x: np.rot90(x, 1),
    7: lambda x: x[::-1, ::-1].transpose(1, 0, 2),
    8: lambda x: np.rot90(x, -1),
}


@pytest.mark.parametrize("orientation", STORED)
def test_a_turned_picture_is_upright(orientation, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(tmp_path / "a.png", np.ascontiguousarray(STORED[orientation](COLOUR)), exif=exif)
    found = P.read(path, SAME)
    np.testing.assert_array_equal(found.pixels, COLOUR)
    assert ("turned" in found.notes) == (orientation != 1)


@pytest.mark.parametrize("side", [28, 64, 112, 224, 299])
def test_every_size_can_be_cut_to_every_size(side):
    for source in range(1, 1500):
        for size in ((source, 2 * source), (3 * source, source)):
            for crop in ("center", "random"):
                left, top, right, bottom = P._box(size, P.Wanted(side, side, crop), 8 * "0f9e")
                assert 0 <= left < right <= size[0] and 0 <= top < bottom <= size[1]


def test_the_crop(tmp_path):
    wide = np.zeros((20, 60, 3), np.uint8)
    wide[:, 20:40] = 200  # the middle third
    path = saved(tmp_path / "a.png", wide)
    assert (P.read(path, P.Wanted(20, 20)).pixels == 200).all()
    stretched = P.read(path, P.Wanted(20, 30, crop="none")).pixels
    assert (stretched[:, 12:18] == 200).all() and (stretched[:, :8] == 0).all()
    tall = saved(tmp_path / "b.png", np.ascontiguousarray(wide.transpose(1, 0, 2)))
    assert (P.read(tall, P.Wanted(20, 20)).pixels == 200).all()
    ramp = np.tile(np.arange(60, dtype=np.uint8)[None, :, None], (20, 1, 3))
    starts = set()
    for i in range(20):
        ramp[0, 0] = i  # another picture, and another place
        first = P.read(saved(tmp_path / "c.png", ramp), P.Wanted(20, 20, crop="random")).pixels[5]
        assert (np.diff(first[:, 0].astype(int)) <= 2).all() and first[-1, 0] - first[0, 0] in (18, 19, 20)
        starts.add(int(first[0, 0]))
    assert len(starts) > 8 and min(starts) < 10 and max(starts) > 30


def test_resizing_averages(tmp_path):
    # Lines of one pixel vanish to their mean: without antialiasing they would be 0 or 255.
    lines = np.zeros((64, 64), np.uint8)
    lines[:, ::2] = 255
    small = P.read(saved(tmp_path / "a.png", lines), P.Wanted(8, 8)).pixels
    assert np.abs(small[:, 1:-1].astype(int) - 127).max() <= 2
    assert "enlarged" in P.read(tmp_path / "a.png", P.Wanted(65, 64)).notes
    assert "enlarged" not in P.read(tmp_path / "a.png", P.Wanted(64, 64)).notes


def test_equal_pictures_have_one_key_in_any_format_and_size_wanted(tmp_path):
    a, b = saved(tmp_path / "a.png", COLOUR), saved(tmp_path / "b.bmp", COLOUR)
    other = COLOUR.copy()
    other[0, 0, 0] ^= 1
    c = saved(tmp_path / "c.png", other)
    keys = [P.read(path, wanted).key for path in (a, b) for wanted in (SAME, P.Wanted(2, 2))]
    assert len(set(keys)) == 1 and P.read(c, SAME).key not in keys


def test_what_cannot_be_read_is_said(tmp_path, monkeypatch):
    def why(path):
        with pytest.raises(P.Unreadable) as caught:
            P.read(path, SAME)
        return str(caught.value)

    whole = saved(tmp_path / "whole.png", RNG.integers(0, 256, (60, 60, 3), np.uint8))
    (tmp_path / "cut.png").write_bytes(whole.read_bytes()[:3000])
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("no picture")
    assert "truncated" in why(tmp_path / "cut.png")
    assert (
        why(tmp_path / "empty.png") == "it is empty"
        and why(tmp_path / "text.png") == "it is no picture of a known format"
    )
    assert "from -1 to 2: 0 to 1 is needed" in why(saved(tmp_path / "f.tif", np.array([[-1, 2]], np.float32)))
    assert "nan" in why(saved(tmp_path / "nan.tif", np.array([[0, np.nan]], np.float32)))
    assert "from -2 to 255: 0 to 2147483647" in why(saved(tmp_path / "i.tif", np.array([[-2, 255]], np.int32)))
    assert "No such file" in why(tmp_path / "gone.png")
    (tmp_path / "eps.png").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    assert why(tmp_path / "eps.png") == "it is no picture of a known format"
    os.mkfifo(tmp_path / "pipe.png")
    assert why(tmp_path / "pipe.png") == "it is no regular file"
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert why(whole) == "it has more than 200 pixels"


def test_several_processes_read_the_same(tmp_path):
    paths = [str(saved(tmp_path / f"{i}.png", RNG.integers(0, 256, (9, 12, 3), np.uint8))) for i in range(9)]
    paths.append(str(tmp_path / "none.png"))
    with P.Reader(SAME, 1) as one, P.Reader(SAME, 2) as two:
        alone, together = dict(one(paths)), dict(two(paths))
    for path in paths:
        assert json.loads(json.dumps({**alone[path], "pixels": ""})) == {**together[path], "pixels": ""}
        assert alone[path].get("pixels") == together[path].get("pixels")
    assert len(two._all) == 2 and all(worker.poll() is not None for worker in two._all)


def test_a_process_that_is_killed_costs_no_picture(tmp_path):
    paths = [str(saved(tmp_path / f"{i}.png", GREY)) for i in range(30)]
    with P.Reader(SAME, 2) as reader:
        answers = {}
        for path, found in reader(paths):
            if not answers:
                reader._all[0].kill()
            answers[path] = found
    assert len(answers) == 30 and not any("why" in found for found in answers.values())


def test_a_picture_that_ends_the_process_is_named(tmp_path, monkeypatch):
    script = tmp_path / "dies.py"
    script.write_text(
        "import os, sys\nfor line in sys.stdin:\n    if 'bad' in line: os._exit(1)\n"
        '    print(\'{"why": "first"}\', flush=True)\n'
    )
    monkeypatch.setattr(P, "__file__", str(script))
    with P.Reader(SAME, 2) as reader:
        assert dict(reader(["a.png"])) == {"a.png": {"why": "first"}}
        found = dict(reader(["bad.png", "b.png"]))
    assert "ended the process" in found["bad.png"]["why"] and found["b.png"]["why"] == "first"


def test_without_other_processes_pictures_are_read_here(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    paths = [str(saved(tmp_path / f"{i}.png", GREY)) for i in range(3)]
    with P.Reader(SAME, 2) as reader:
        assert all("why" not in found for _, found in reader(paths))


# A folder


def test_files_are_found(tmp_path):
    for name in (
        "a.JPG",
        "b/c/d.Tiff",
        "b/e.png",
        ".hidden.png",
        "._b.png",
        "__MACOSX/x.png",
        ".git/y.png",
        "note.txt",
    ):
        saved(tmp_path / "in" / name, GREY, format="png") if "note" not in name else (tmp_path / "in" / name).touch()
    (tmp_path / "in" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "in" / "b" / "loop").symlink_to(tmp_path / "in")
    found = find(tmp_path / "in")
    assert sorted(found.pictures) == ["a.JPG", "b/c/d.Tiff", "b/e.png", "gone.png"] and found.others == {".txt": 1}
    saved(tmp_path / "in" / "runs" / "mine" / "samples.png", GREY)
    (tmp_path / "in" / "runs" / "mine" / "config.json").touch()
    (tmp_path / "in" / "runs" / "mine" / "checkpoints").mkdir()
    assert find(tmp_path / "in") == found  # the pictures of a run are no data


def test_a_folder_becomes_a_data_set(tmp_path):
    root = random_pictures(tmp_path / "photos")
    data = folder(str(root), size=(6, 8))
    assert data.is_image and data.shape == (6, 8, 3) and isinstance(data.train, np.memmap)
    assert len(data.train) + len(data.test) == 40 and 1 <= len(data.test) <= 10
    wanted = {
        P.read(path, SAME).pixels.tobytes(): i
        for i, name in enumerate(("cats", "dogs"))
        for path in (root / name).iterdir()
    }
    for part, labels in ((data.train, data.train_labels), (data.test, data.test_labels)):
        assert [wanted.pop(x.tobytes()) for x in part] == labels.tolist()
    assert not wanted
    assert data.classes == ("cats", "dogs")
    assert "40 pictures in" in data.notes[0] and "2 classes: 0 = cats (20), 1 = dogs (20)" in data.notes


def test_what_was_held_out_stays_held_out(tmp_path):
    root = random_pictures(tmp_path / "photos", classes=("a",))
    before = folder(str(root), size=4, held_out=0.3)
    random_pictures(root, count=30, classes=("b",), seed=2)
    saved(root / "copy.bmp", np.asarray(Image.open(root / "a" / "03.png")))
    after = folder(str(root), size=4, held_out=0.3)
    sides = {x.tobytes(): side for side, part in enumerate((after.train, after.test)) for x in part}
    assert all(sides[x.tobytes()] == side for side, part in enumerate((before.train, before.test)) for x in part)
    assert len(sides) == 50 and len(after.train) + len(after.test) == 51  # the copy is on the same side
    assert "1 picture is equal to another one" in " ".join(after.notes)
    wider = folder(str(root), size=4, held_out=0.6)
    assert {x.tobytes() for x in after.test} < {x.tobytes() for x in wider.test}


def test_the_random_crop_is_of_the_same_law_on_both_sides(tmp_path):
    ramp = np.tile(np.arange(100, dtype=np.uint8)[None, :, None], (4, 1, 3))
    for i in range(120):
        ramp[0, 0] = i
        saved(tmp_path / "in" / f"{i}.bmp", ramp)
    data = folder(str(tmp_path / "in"), size=4, held_out=0.5, crop="random")
    train, test = (part[:, 2, 0, 0].mean() for part in (data.train, data.test))
    assert abs(train - 48) < 20 and abs(test - 48) < 20  # uniform on 0 to 96: standard error 3.6


def test_grey_or_colour_is_found(tmp_path):
    for i in range(3):
        saved(tmp_path / "in" / f"{i}.png", np.full((6, 8, 3), 50 * i, np.uint8))
    assert folder(str(tmp_path / "in"), size=4).shape == (4, 4, 1)
    assert folder(str(tmp_path / "in"), size=4, channels=3).shape == (4, 4, 3)
    saved(tmp_path / "in" / "c.png", np.full((6, 8, 3), (200, 0, 0), np.uint8))
    data = folder(str(tmp_path / "in"), size=4)  # refreshed from an array of one channel
    assert data.shape == (4, 4, 3)
    means = sorted(tuple(x.mean((0, 1)).tolist()) for x in both(data))
    assert means == [(0, 0, 0), (50, 50, 50), (100, 100, 100), (200, 0, 0)]
    grey = folder(str(tmp_path / "in"), size=4, channels=1)
    assert sorted(x.mean() for x in both(grey)) == [0, 50, 60, 100]  # 0.299 * 200


def test_labels_from_a_table(tmp_path):
    root = random_pictures(tmp_path / "in", count=6, classes=("x", "y"))
    names = sorted(path.relative_to(root).as_posix() for path in root.glob("*/*.png"))
    (root / "labels.csv").write_text("file,label\n" + "".join(f"{name},{9 + i % 3}\n" for i, name in enumerate(names)))
    data = folder(str(root), size=4, held_out=0.0)
    assert data.test is None and sorted(set(data.train_labels.tolist())) == [0, 1, 2]
    assert "3 classes: 0 = 9 (4), 1 = 10 (4), 2 = 11 (4)" in data.notes  # in the order of the numbers
    (root / "labels.csv").write_text("\n".join(f"{name},a" for name in names[:-1]))
    refused(lambda: folder(str(root), size=4), "labels.csv has no label for y/05.png")
    (root / "labels.csv").write_text("x/00.png,a,b")
    refused(lambda: folder(str(root), size=4), "labels.csv, line 1", "file,label is needed")
    (root / "labels.csv").write_text("x/00.png,a\n\n\nx/00.png,b\n")
    refused(lambda: folder(str(root), size=4), "labels.csv, line 4: x/00.png has the label 'a' already")


def test_folders_that_are_no_classes_are_refused(tmp_path):
    root = random_pictures(tmp_path / "in", count=6, classes=("Train", "test"))
    refused(lambda: folder(str(root), size=4), "the folders Train and test, which are no classes", "dir=FOLDER")
    odd = random_pictures(tmp_path / "odd", count=6, classes=("²", "3"))
    assert "2 classes: 0 = 3 (6), 1 = ² (6)" in folder(str(odd), size=4, held_out=0.0).notes


def test_pictures_beside_the_classes_have_no_labels(tmp_path):
    root = random_pictures(tmp_path / "in", count=3)
    saved(root / "top.png", COLOUR)
    assert folder(str(root), size=4).train_labels is None
    one = random_pictures(tmp_path / "one $x_{$", count=3, classes=("2023",))
    assert folder(str(one), size=4).train_labels is None


def test_broken_files_are_named(tmp_path):
    root = random_pictures(tmp_path / "in")
    for i in range(4):
        (root / "cats" / f"bad{i}.png").write_text("x")
    data = folder(str(root), size=4)
    assert len(data.train) + len(data.test) == 40
    assert any(
        "4 files cannot be read" in note and "cats/bad0.png (it is no picture of a known format)" in note
        for note in data.notes
    )
    refused(lambda: folder(str(root), size=4, strict=True), "4 of 44 pictures", "cats/bad0.png", "and 1 more")
    (root / "cats" / "bad4.png").write_text("x")
    refused(lambda: folder(str(root), size=4), "5 of 45 pictures", "repair or remove them")


def test_a_file_that_could_not_be_read_is_tried_again(tmp_path, monkeypatch):
    root, real = random_pictures(tmp_path / "in", count=8), P.read

    def fails(path, wanted):
        if str(path).endswith("cats/07.png"):
            raise P.Unreadable("no memory")
        return real(path, wanted)

    monkeypatch.setattr(P, "read", fails)
    assert len(both(folder(str(root), size=4))) == 15
    monkeypatch.undo()
    monkeypatch.setenv("SCOREGEN_CACHE", str(tmp_path / "cache"))
    assert len(both(folder(str(root), size=4))) == 16


def test_names_that_are_no_unicode(tmp_path):
    root = random_pictures(tmp_path / "in", count=15)
    for name in (b"\xe9t\xe9.png", b"\xff.png"):
        Path(os.fsdecode(os.fsencode(root / "cats") + b"/" + name)).write_bytes((root / "cats" / "01.png").read_bytes())
    Path(os.fsdecode(os.fsencode(root / "cats") + b"/\xfe.png")).write_text("x")
    data = folder(str(root), size=4)
    assert len(data.train) + len(data.test) == 32 and any(
        r"\udcfe.png (it is no picture of a known format)" in note for note in data.notes
    )


def test_what_is_no_folder_of_pictures_is_refused(tmp_path):
    (tmp_path / "in").mkdir()
    refused(lambda: folder(str(tmp_path / "in")), "no pictures", "it holds no files at all")
    for i in range(3):
        (tmp_path / "in" / f"{i}.HEIC").touch()
    refused(lambda: folder(str(tmp_path / "in")), "3 of .heic; convert them to PNG or JPEG")
    refused(lambda: folder(""), "no folder is named", "dir=FOLDER")
    refused(lambda: folder(str(tmp_path / "in" / "0.HEIC")), "it is a file, and a folder is needed")
    saved(tmp_path / "in" / "a.png", COLOUR)
    refused(lambda: folder(str(tmp_path / "in")), "one picture")
    for options, parts in (
        ({"size": (1, 2, 3)}, ("size=(1, 2, 3)", "height and width")),
        ({"size": 0}, ("size=(0,)", "at least 1")),
        ({"channels": 4}, ("channels=4", "1, 3, or 0")),
        ({"size": "big"}, ("size=('big',)", "an integer")),
        ({"background": (-1,)}, ("background=(-1,)", "at least 0")),
        ({"crop": "middle"}, ("crop='middle'", "center, random, none")),
        ({"background": (1, 2)}, ("background=(1, 2)",)),
        ({"background": (300,)}, ("background=(300,)", "0 to 255")),
        ({"held_out": 1.0}, ("held_out=1.0",)),
    ):
        refused(lambda options=options: folder(str(tmp_path / "in"), **options), *parts)


# Preparation


def test_only_new_files_are_read(tmp_path, monkeypatch):
    root, read = random_pictures(tmp_path / "in", count=5), []
    real = P.answer
    monkeypatch.setattr(P, "answer", lambda path, wanted: (read.append(Path(path).name), real(path, wanted))[1])
    first = folder(str(root), size=4)
    assert len(read) == 10
    again = folder(str(root), size=4, held_out=0.5)
    assert len(read) == 10 and len(again.test) > len(first.test)
    saved(root / "cats" / "new.png", COLOUR)
    saved(root / "dogs" / "03.png", COLOUR[::-1])
    (root / "dogs" / "04.png").unlink()
    fresh = folder(str(root), size=4)
    assert sorted(read[10:]) == ["03.png", "new.png"] and len(fresh.train) + len(fresh.test) == 10
    pixels = {x.tobytes() for part in (fresh.train, fresh.test) for x in part}
    assert pixels == {P.read(path, P.Wanted(4, 4)).pixels.tobytes() for path in root.glob("*/*.png")}
    folder(str(root), size=5)
    assert len(read) == 22  # another size is another array


def test_a_prepared_folder_of_ones_own(tmp_path):
    root, place = random_pictures(tmp_path / "in", count=5), tmp_path / "fast"
    folder(str(root), size=4, prepared=str(place))
    assert sorted(path.name.partition("-")[0] for path in place.iterdir()) == ["index.npz", "lock", "pictures"]
    refused(
        lambda: folder(str(root), size=5, prepared=str(place)), "made with other options", "another prepared=FOLDER"
    )
    pixels = sorted(x.tobytes() for x in both(folder(str(root), size=4, prepared=str(place))))
    array = next(place.glob("*.npy"))
    whole = array.read_bytes()
    for damaged in (whole[:-5], whole[:-5] + b"\0" * 5, b""):  # made again
        array.write_bytes(damaged)
        assert sorted(x.tobytes() for x in both(folder(str(root), size=4, prepared=str(place)))) == pixels
    (place / "index.npz").write_text("{")
    assert len(both(folder(str(root), size=4, prepared=str(place)))) == 10


def test_files_of_others_are_not_touched(tmp_path):
    root = random_pictures(tmp_path / "in", count=5)
    other = io.BytesIO()
    np.savez(other, mine=np.zeros(3))
    for name, held in (("pictures-2020.npy", b"x"), ("index.json", b"{}"), ("index.npz", other.getvalue())):
        place = tmp_path / f"mine {name}"
        place.mkdir()
        (place / name).write_bytes(held)
        refused(
            lambda place=place: folder(str(root), size=4, prepared=str(place)), "nothing is written there", "prepared="
        )
        assert [path.name for path in place.iterdir()] == [name] and (place / name).read_bytes() == held


@pytest.mark.parametrize("kept", [0, 1, 4, 9])
def test_a_preparation_that_was_stopped_goes_on(kept, tmp_path, monkeypatch):
    root, place, read = random_pictures(tmp_path / "in", count=5), tmp_path / "fast", []
    real = P.answer

    def stop(path, wanted):
        if len(read) == kept:
            raise KeyboardInterrupt
        read.append(path)
        return real(path, wanted)

    monkeypatch.setattr(P, "answer", stop)
    with pytest.raises(KeyboardInterrupt):
        folder(str(root), size=4, prepared=str(place))
    assert not (place / "index.npz").exists()
    if kept == 4:  # the last line was cut, and the row before it was damaged
        text, raw = (place / "part.jsonl").read_text(), bytearray((place / "part.raw").read_bytes())
        (place / "part.jsonl").write_text(text[:-20])
        raw[2 * 48] ^= 1
        (place / "part.raw").write_bytes(raw)
    monkeypatch.setattr(P, "answer", lambda path, wanted: (read.append(path), real(path, wanted))[1])
    data = folder(str(root), size=4, prepared=str(place))
    assert len(read) == (12 if kept == 4 else 10)
    pixels = {x.tobytes() for part in (data.train, data.test) for x in part}
    assert pixels == {P.read(path, P.Wanted(4, 4)).pixels.tobytes() for path in root.glob("*/*.png")}
    assert not (place / "part.raw").exists()


def test_a_full_disk_leaves_no_array(tmp_path, monkeypatch):
    root, place = random_pictures(tmp_path / "in", count=5), tmp_path / "fast"

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    refused(lambda: folder(str(root), size=4, prepared=str(place)), "No space left on device", "make room there")
    assert not list(place.glob("*.npy")) and not (place / "index.npz").exists()
    monkeypatch.undo()
    assert len(folder(str(root), size=4, prepared=str(place)).train) >= 5


def test_the_checksum_of_an_array_is_computed_once(tmp_path, monkeypatch):
    root, computed, real = random_pictures(tmp_path / "in", count=5), [], files.crc32
    monkeypatch.setattr(files, "crc32", lambda path: (computed.append(path), real(path))[1])
    folder(str(root), size=4)
    assert len(computed) == 0  # it is computed while the array is written
    folder(str(root), size=4)
    assert len(computed) == 1
    saved(root / "cats" / "new.png", COLOUR)
    assert len(both(folder(str(root), size=4))) == 11
    assert len(computed) == 2 and computed[0] == computed[1]


def test_what_is_known_of_a_picture_takes_little_memory(tmp_path):
    """350,000 pictures: at most 150 MB while they are open, and 300 MB while they are opened."""
    count, root, rng = 20_000, tmp_path / "in", np.random.default_rng(0)
    store, table = Store(root, P.Wanted(1, 1), 3, str(tmp_path / "fast")), Table()
    found = {f"some class {i % 1000:04d}/picture number {i:08d}.jpg": (100_000 + i, 10**18 + i) for i in range(count)}
    keys = rng.bytes(16 * count).hex()
    for i, (name, stamp) in enumerate(found.items()):
        known = picture(key=keys[32 * i : 32 * i + 32], size=(480 + i % 99, 640), notes=("turned",) * (i % 2))
        table.add(name, stamp, i, known)
    store.place.mkdir()
    np.save(store.place / f"pictures-{0:016x}.npy", np.zeros((count, 1, 1, 3), np.uint8))
    name = f"pictures-{0:016x}.npy"
    checksum = files.crc32(store.place / name)
    assert checksum is not None
    Index(store.options, name, checksum, table, {}).write(store.place / "index.npz")
    tracemalloc.start()
    index, _ = store.opened(found)
    held, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert index.table.names == table.names and index.table.kinds == table.kinds
    assert (index.table.rows == table.rows).all()
    scale = 350_000 / count
    assert scale * held < 150e6 and scale * most < 300e6 - 100e6  # the files that were found are 100 MB


def picture(**known) -> dict:
    return {"key": 16 * "0f", "size": (1, 1), "format": "PNG", "mode": "L", "grey": True, "notes": ()} | known


def test_the_place_of_a_picture_is_that_of_the_first_digits_of_its_hash():
    random = np.random.default_rng(0).bytes(16).hex()
    table, keys = Table(), [16 * "00", 16 * "ff", "8" + 31 * "0", 13 * "f" + 19 * "0", random]
    for key in keys:
        table.add("x", (1, 1), 0, picture(key=key))
    assert table.places().tolist() == [int(key[:13], 16) / 16**13 for key in keys]


def test_any_name_of_a_file_is_stored(tmp_path):
    table, names = Table(), ["a\nb.png", "\udcff.png", "é/ü.png"]
    for name in names:
        table.add(name, (-1, 0), 2**32 - 1, picture())
    for index in (Index({}, "a", 1, table, {"\udcfe": "why"}), Index({}, "a", 1, Table(), {})):
        index.write(tmp_path / "index.npz")
        again = Index.read(tmp_path / "index.npz", {})
        assert again is not None and again.table.names == index.table.names and again.broken == index.broken


def test_two_tables_are_joined_with_their_kinds():
    first, second = Table(), Table()
    for table, modes in ((first, "LRL"), (second, "RPL")):
        for mode in modes:
            table.add(f"{len(table)}.png", (1, 1), 0, picture(mode=mode))
    both = (first + second)[np.array([4, 0, 3, 1])]
    assert [both.kinds[i].mode for i in both.rows["kind"]] == ["P", "L", "R", "R"]
    assert both.names == ["1.png", "0.png", "0.png", "1.png"]
    assert {kind.mode: count for kind, count in both.counts()} == {"P": 1, "L": 1, "R": 2}


# The commands


def command(*argv: str) -> tuple[int, str, str]:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main.main(list(argv))
    return code, out.getvalue(), err.getvalue()


def test_the_command_data_shows_a_folder(tmp_path):
    root, picture = random_pictures(tmp_path / "in"), tmp_path / "there" / "data.png"
    (root / "cats" / "bad.png").write_text("x")
    code, out, err = command("data", str(root), "--size=(6,8)", f"--out={picture}")
    assert (code, err) == (0, "")
    for part in ("40 pictures in", "as 6x8 in colour", "1 file cannot be read and is left out: cats/bad.png", "PNG 40"):
        assert part in out
    assert "all 9x12 (height x width)" in out and "pixels   colour 40" in out and "0 = cats (20), 1 = dogs (20)" in out
    with Image.open(picture) as drawn:
        shown = np.asarray(drawn.convert("RGB"))
    first = folder(str(root), size=(6, 8)).train[0].repeat(16, 0).repeat(16, 1)
    # The first picture, as large as it is drawn, stands in the lower line.
    high, wide = shown.shape[0] - 96, shown.shape[1] - 128
    assert any(
        (shown[y : y + 96, x : x + 128] == first).all() for y in range(80, high + 1) for x in range(min(wide, 130))
    )


def test_the_command_data_says_no(tmp_path):
    root = random_pictures(tmp_path / "in", count=3)
    for argv, line in (
        (("--out=x.png",), "say which folder, such as: scoregen data photos"),
        ((str(tmp_path / "none"),), f"{tmp_path / 'none'}: there is no such folder"),
        ((str(root), "--size=0"), "--size=(0,): at least 1 is needed"),
        ((str(root), "--config.data.folder.crop=x"), "--config.data.folder.crop='x': one of center, random, none is"),
        ((str(root), "--steps=4"), "no flag '--steps'"),
        ((str(root), "--out=a.xyz"), "--out=a.xyz: a .png file is needed"),
        ((str(root), f"--out={root}/cats/data.png"), f"{root}/cats/data.png would be one of the pictures"),
        ((str(root), "--config.train.steps=4"), "--config.train.steps=4 has no effect here"),
        (("wine.csv",), "wine.csv is no folder of pictures. A training says what it reads of a file: scoregen train"),
        (
            (str(picture := next(root.rglob("*.png"))),),
            f"{picture}: it is one picture: name its folder, {picture.parent}",
        ),
    ):
        code, out, err = command("data", *argv)
        assert (code, out, err.count("\n")) == (2, "", 1) and err.startswith(f"scoregen: {line}"), err


def test_the_command_data_replaces_only_its_own_picture(tmp_path, monkeypatch):
    root = random_pictures(tmp_path / "in", count=3)
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (3, 3)).save("data.png")
    mine = (tmp_path / "data.png").read_bytes()
    code, out, err = command("data", str(root), "--size=8")
    assert (code, out) == (2, "") and "data.png is there, and scoregen did not write it: say another --out" in err
    assert (tmp_path / "data.png").read_bytes() == mine
    for _ in range(2):
        assert command("data", str(root), "--size=8", "--crop=none", "--out=b.png")[0] == 0


@pytest.mark.parametrize("label", ["nan", "NaN"])
def test_nan_is_no_class(tmp_path, label):
    root = random_pictures(tmp_path / "in", count=4)
    names = sorted(path.relative_to(root).as_posix() for path in root.rglob("*.png"))
    (root / "labels.csv").write_text("".join(f"{name},{label if i else 'a'}\n" for i, name in enumerate(names)))
    with pytest.raises(UsageError, match=f"labels.csv, line 2: the label is {label}: name a class"):
        folder(str(root), size=8)


def test_the_size_has_an_effect_on_a_folder_alone(tmp_path):
    code, _, err = command("train", "ddpm_toy", "--size=8", f"--workdir={tmp_path / 'run'}")
    assert code == 2 and err.startswith("scoregen: --size=8 has no effect") and not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_folder_trains_and_samples(tmp_path):
    root, run = random_pictures(tmp_path / "in"), tmp_path / "run"
    small = ("--config.net.unet.channels=8", "--config.net.unet.groups=4", "--config.net.unet.blocks=1")
    options = ("--size=16", "--steps=2", "--batch=4", *small, "--config.sampler.n=3", "--config.sampler.images=4")
    code, out, err = command("train", "images", f"--data={root}", f"--workdir={run}", "--config.labels=true", *options)
    assert code == 0, err
    assert "40 pictures in" in out and "2 classes: 0 = cats" in out and (run / "samples.png").exists()
    assert scoregen.load(run).sample(2, label=1).shape == (2, 16, 16, 3)


PREPARE = (
    "import sys; from scoregen.data import folder; print(len(folder(sys.argv[1], size=4, prepared=sys.argv[2]).train))"
)


@pytest.mark.slow
def test_kills_and_two_at_once_train_on_no_wrong_array(tmp_path):
    root, place = random_pictures(tmp_path / "in", count=400, classes=("a", "b")), tmp_path / "fast"
    expected = {P.read(path, P.Wanted(4, 4)).pixels.tobytes() for path in root.glob("*/*.png")}
    command = [sys.executable, "-c", PREPARE, str(root), str(place)]
    quiet = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "env": os.environ | {"JAX_PLATFORMS": "cpu"}}
    for k in range(10):
        child = subprocess.Popen(command, **quiet)
        lines = place / "part.jsonl"
        while child.poll() is None and (not lines.exists() or lines.read_text().count("\n") < 70 * (k + 1)):
            pass
        child.kill()
        child.communicate()
    two = [subprocess.Popen(command, **quiet) for _ in range(2)]
    counts = {child.communicate()[0] for child in two}
    assert len(counts) == 1 and all(child.returncode == 0 for child in two)
    data = folder(str(root), size=4, prepared=str(place))
    assert {x.tobytes() for part in (data.train, data.test) for x in part} == expected
