"""One picture file as bytes for a network: upright, over a background, resized and cropped.

`Reader` reads files in several processes. Such a process runs this file as a script, which imports Pillow and NumPy
alone.
"""

from __future__ import annotations

import base64
import concurrent.futures
import contextlib
import dataclasses
import hashlib
import json
import os
import stat
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple, TypeVar

import numpy as np
from PIL import Image, ImageOps

# Pillow opens no other formats here: some start other programs, such as Ghostscript.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "DIB", "TIFF", "GIF")
SUFFIXES = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".tif", ".tiff", ".gif")
CROPS = ("center", "random", "none")
GREY = (299, 587, 114)  # thousandths of red, green and blue in grey (ITU-R BT.601)


T = TypeVar("T")


class Unreadable(Exception):
    """A file that is no picture, is damaged, or has values of an unknown range. Its text says which."""


@dataclasses.dataclass(frozen=True)
class Wanted:
    """What a picture is made into.

    Attributes:
        height, width: the size in pixels.
        crop: "center" or "random" cuts the picture to the aspect ratio of the size; "none" stretches it instead. The
            place of a random crop depends on the content of the picture alone.
        background: red, green and blue, 0 to 255, behind transparent pixels.
    """

    height: int
    width: int
    crop: str = "center"
    background: tuple[int, int, int] = (255, 255, 255)


class Picture(NamedTuple):
    """A picture that was read.

    Attributes:
        pixels: uint8 `[H, W, 3]`, as wanted.
        format: the format of the file, such as "PNG".
        mode: Pillow's name for the kind of its pixels, such as "RGBA" or "I;16".
        size: height and width of the whole upright picture.
        key: a hash of the pixels of the whole upright picture, which does not depend on the format of the file.
        grey: whether red, green and blue are equal in every pixel.
        notes: what was done to it: "turned", "transparent", "enlarged", "first frame"; and of 16 or more bits "deep",
            or "dark" if it uses less than an eighth of their range.
    """

    pixels: np.ndarray
    format: str
    mode: str
    size: tuple[int, int]
    key: str
    grey: bool
    notes: tuple[str, ...]


def read(file: str | os.PathLike[str] | IO[bytes], wanted: Wanted) -> Picture:
    """Read a picture of one of `FORMATS`, from the path of a file or from its content.

    Values are scaled from the depth of the file to 0 to 255, and never clipped: 16-bit grey v becomes
    round(v * 255 / 65535).

    Raises:
        Unreadable: if the file is of another format, cannot be read to its end, or is larger than Pillow's limit
            against decompression bombs, and for floating-point values outside [0, 1] and negative numbers.

    >>> import tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> path = Path(folder.name, "half.png")
    >>> Image.fromarray(np.full((40, 60), 32768, np.uint16)).save(path)
    >>> picture = read(path, Wanted(2, 2))
    >>> picture.mode, picture.size, picture.grey, picture.pixels[..., 0].tolist()
    ('I;16', (40, 60), True, [[128, 128], [128, 128]])
    >>> folder.cleanup()
    """
    return _opened(file, lambda image: _made(image, wanted))


def size_of(file: str | os.PathLike[str] | IO[bytes]) -> tuple[int, int]:
    """Height and width of the whole upright picture. Only the header is read, but of a PNG, whose EXIF data may follow
    the pixels, the whole file.

    Raises:
        Unreadable: as `read`, as far as the header shows it.
    """

    def upright(image: Image.Image) -> tuple[int, int]:
        wide, high = image.size
        return (wide, high) if image.getexif().get(0x0112, 1) in (5, 6, 7, 8) else (high, wide)

    return _opened(file, upright)


def _opened(file: str | os.PathLike[str] | IO[bytes], work: Callable[[Image.Image], T]) -> T:
    """What `work` makes of a picture; every error of a damaged file is an `Unreadable`."""
    try:
        if isinstance(file, str | os.PathLike):
            _check_regular(file)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Pillow, about metadata
            with Image.open(file, formats=FORMATS) as image:
                return work(image)
    except Unreadable:
        raise
    except Image.UnidentifiedImageError:
        raise Unreadable("it is no picture of a known format") from None
    except Image.DecompressionBombError:
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0)
        raise Unreadable(f"it has more than {limit:,} pixels") from None
    except Exception as error:  # damaged files raise errors of many kinds
        said = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
        raise Unreadable(said) from None


def _check_regular(path: str | os.PathLike[str]) -> None:
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        raise Unreadable("it is no regular file")
    if not status.st_size:
        raise Unreadable("it is empty")


def _made(image: Image.Image, wanted: Wanted) -> Picture:
    notes, kind, mode = [], image.format or "", image.mode
    if kind != "MPO" and getattr(image, "is_animated", False):  # an MPO holds views of one picture
        notes.append("first frame")
    _scale_transparency(image)  # before the pixels are loaded, as getexif does for a PNG
    if image.getexif().get(0x0112, 1) in range(2, 9):
        notes.append("turned")
    image.load()
    turned = ImageOps.exif_transpose(image)
    if _see_through(turned):
        notes.append("transparent")
    tags = getattr(image, "tag_v2", {}) if kind == "TIFF" else {}
    whole, dark = _rgb(turned, wanted.background, kind, tags)
    if dark:
        notes.append("dark")
    elif _is_deep(turned):
        notes.append("deep")
    pixels = np.asarray(whole)
    digest = hashlib.blake2b(repr(pixels.shape).encode(), digest_size=16)
    digest.update(np.ascontiguousarray(pixels).data)
    key = digest.hexdigest()
    if pixels.shape[0] < wanted.height or pixels.shape[1] < wanted.width:
        notes.append("enlarged")
    grey = bool((pixels[..., 0] == pixels[..., 1]).all() and (pixels[..., 1] == pixels[..., 2]).all())
    cut = whole.resize((wanted.width, wanted.height), Image.Resampling.BICUBIC, box=_box(whole.size, wanted, key))
    return Picture(np.asarray(cut), kind, mode, pixels.shape[:2], key, grey, tuple(notes))


def _scale_transparency(image: Image.Image) -> None:
    """Scale the transparent colour of a PNG to 8 bits, as Pillow scales the pixels but not this colour."""
    clear, tiles = image.info.get("transparency"), getattr(image, "tile", [])
    raw = tiles[0][3] if tiles else None
    if image.mode == "RGB" and raw == "RGB;16B" and isinstance(clear, tuple):
        image.info["transparency"] = tuple(value >> 8 for value in clear)
    if isinstance(clear, int) and raw in ("L;4", "L;2", "1"):
        image.info["transparency"] = clear * {"L;4": 17, "L;2": 85, "1": 255}[raw]


def _see_through(image: Image.Image) -> bool:
    return image.mode in ("La", "RGBa") or image.has_transparency_data


def _is_deep(image: Image.Image) -> bool:
    """Whether its grey values have more than 8 bits."""
    return image.mode.startswith("I;16") or image.mode in ("I", "F")


def _rgb(image: Image.Image, background: tuple[int, int, int], kind: str, tags: Any) -> tuple[Image.Image, bool]:
    """The picture with 8 bits for each of red, green and blue, and whether it is dark for its depth.

    `tags` are those of a TIFF.
    """
    if _is_deep(image):
        values = np.asarray(image)
        grey, dark = _bytes(values, image.mode, kind, tags)
        clear = image.info.get("transparency")
        rgb = np.repeat(grey[..., None], 3, axis=-1)
        if isinstance(clear, int):
            rgb[values == clear] = background
        return Image.fromarray(rgb), dark
    if image.mode == "La":
        image = image.convert("LA")
    if _see_through(image):
        over = Image.new("RGBA", image.size, (*background, 255))
        return Image.alpha_composite(over, image.convert("RGBA")).convert("RGB"), False
    return image.convert("RGB"), False


def _bytes(values: np.ndarray, mode: str, kind: str, tags: Any) -> tuple[np.ndarray, bool]:
    """Grey values of 16 or 32 bits as bytes, and whether they use less than an eighth of their range."""
    inverted = tags.get(262) == 0  # white is zero
    if mode == "F":
        low, high = values.min(), values.max()
        if not (low >= 0 and high <= 1):  # or NaN
            raise Unreadable(f"its floating-point values are from {low:g} to {high:g}: 0 to 1 is needed")
        grey = np.rint(255 * values).astype(np.uint8)
        return (255 - grey if inverted else grey), False
    depth = 65535  # a PNG in the mode I has 16 bits too
    if mode == "I" and kind != "PNG":
        unsigned = tags.get(339, (1,))[0] == 1
        values, depth = (values.view(np.uint32), 2**32 - 1) if unsigned else (values, 2**31 - 1)
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > depth:
        raise Unreadable(f"its values are from {low} to {high}: 0 to {depth} is needed")
    if depth == 65535:
        grey = ((values.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)
    else:
        grey = np.rint(values * (255.0 / depth)).astype(np.uint8)
    return (255 - grey if inverted else grey), high < depth / 8


def _box(size: tuple[int, int], wanted: Wanted, key: str) -> tuple[float, float, float, float]:
    """The part of a picture of this (width, height) that is kept: left, top, right, bottom."""
    width, height = size
    if wanted.crop == "none":
        return 0, 0, width, height
    scale = min(width / wanted.width, height / wanted.height)
    wide, high = scale * wanted.width, scale * wanted.height
    # The first digits of the key decide whether the picture is held out.
    place = int(key[16:24], 16) / 0xFFFFFFFF if wanted.crop == "random" else 0.5
    left, top = max(0.0, place * (width - wide)), max(0.0, place * (height - high))  # one of them is 0
    return left, top, min(left + wide, width), min(top + high, height)


def to_grey(pixels: np.ndarray) -> np.ndarray:
    """Grey `[..., 1]` of red, green and blue `[..., 3]`, uint8: (299 R + 587 G + 114 B) / 1000.

    >>> to_grey(np.array([[9, 9, 9], [255, 0, 0]], np.uint8)).tolist()
    [[9], [76]]
    """
    return ((pixels.astype(np.uint32) @ np.array(GREY, np.uint32) + 500) // 1000).astype(np.uint8)[..., None]


# Several processes. A worker reads a path on each line of stdin, and answers with a line of JSON.


def answer(path: str, wanted: Wanted) -> dict[str, Any]:
    """The fields of a picture, with the pixels as bytes; or {"why": why it cannot be read}."""
    try:
        picture = read(path, wanted)
    except Unreadable as error:
        return {"why": str(error)}
    return picture._asdict() | {"pixels": picture.pixels.tobytes()}


def serve() -> None:
    """The loop of a worker."""
    wanted = Wanted(**json.loads(sys.argv[1]))
    wanted = dataclasses.replace(wanted, background=tuple(wanted.background))  # JSON has no tuples
    for line in sys.stdin:
        found = answer(json.loads(line), wanted)
        if "pixels" in found:
            found["pixels"] = base64.b64encode(found["pixels"]).decode()
        print(json.dumps(found), flush=True)


class Reader:
    """Reads pictures in several processes, in the order in which they are ready.

    >>> with Reader(Wanted(2, 2), workers=1) as reader:
    ...     [(path, found["why"]) for path, found in reader(["/no/such.png"])]
    [('/no/such.png', 'No such file or directory')]
    """

    def __init__(self, wanted: Wanted, workers: int):
        self.wanted, self.workers = wanted, workers
        self._local, self._all = threading.local(), []
        self._answered = self._ended = False

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def _end(self) -> None:
        self._ended = True
        for worker in self._all:
            worker.kill()
            worker.wait()
            for end in _ends(worker):
                with contextlib.suppress(OSError):  # what was to be written to a dead worker
                    end.close()

    def __call__(self, paths: Iterable[str]) -> Iterator[tuple[str, dict[str, Any]]]:
        """(path, answer) of each path; see `answer`."""
        if self.workers == 1:
            yield from ((path, answer(path, self.wanted)) for path in paths)
            return
        with concurrent.futures.ThreadPoolExecutor(self.workers) as pool:
            waiting, rest = {}, iter(paths)
            try:
                while True:
                    while len(waiting) < 4 * self.workers and (path := next(rest, None)) is not None:
                        waiting[pool.submit(self._ask, path)] = path
                    if not waiting:
                        return
                    ready, _ = concurrent.futures.wait(waiting, return_when=concurrent.futures.FIRST_COMPLETED)
                    for future in ready:
                        yield waiting.pop(future), future.result()
            finally:
                if waiting:  # an error, or Ctrl-C: no answer is waited for
                    self._end()
                pool.shutdown(wait=False, cancel_futures=True)

    def _ask(self, path: str) -> dict[str, Any]:
        for _ in range(2):  # a worker may have been killed, for its memory, by chance at this picture
            try:
                stdin, stdout = _ends(getattr(self._local, "worker", None) or self._start())
                stdin.write(json.dumps(path) + "\n")
                stdin.flush()
                line = stdout.readline()
            except OSError:
                line = ""
            if line:
                self._answered = True
                found = json.loads(line)
                if "pixels" in found:
                    found["pixels"] = base64.b64decode(found["pixels"])
                return found
            self._local.worker = None
            if self._ended:
                break
        if not self._answered and not self._ended:  # no process can be started here
            return answer(path, self.wanted)
        return {"why": "reading it ended the process: it is too large, or damaged"}

    def _start(self) -> subprocess.Popen[str]:
        wanted = json.dumps(dataclasses.asdict(self.wanted))
        # -P: modules of this folder must not hide those of Python. A session of its own: Ctrl-C is for the parent.
        worker = subprocess.Popen(
            [sys.executable, "-P", str(Path(__file__)), wanted],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            encoding="utf-8",
            start_new_session=True,
        )
        self._all.append(worker)
        self._local.worker = worker
        return worker


def _ends(worker: subprocess.Popen[str]) -> tuple[IO[str], IO[str]]:
    assert worker.stdin is not None and worker.stdout is not None
    return worker.stdin, worker.stdout


if __name__ == "__main__":
    serve()
