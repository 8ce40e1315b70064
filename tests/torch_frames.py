"""Files of `torch.save`, written byte by byte, so that no test of the reader needs PyTorch."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from scoregen.torch_file import LEGACY

HUGE = b"\x8a\x07" + (2**47).to_bytes(7, "little")


def text(value: str) -> bytes:
    return b"X" + len(value.encode()).to_bytes(4, "little") + value.encode()


def whole(value: int) -> bytes:
    return b"\x8a\x08" + value.to_bytes(8, "little")


def storage(kind=b"ctorch\nFloatStorage\n", key="0", count=b"K\x04", view=b"") -> bytes:
    return b"(" + text("storage") + kind + text(key) + text("cpu") + count + view + b"tQ"


def tensor(of=None, offset=b"K\x00", shape=b"K\x04\x85", strides=b"K\x01\x85") -> bytes:
    hooks = b"ccollections\nOrderedDict\n)R"
    return (
        b"ctorch._utils\n_rebuild_tensor_v2\n(" + (of or storage()) + offset + shape + strides + b"\x89" + hooks + b"tR"
    )


def state(value: bytes, before: bytes = b"") -> bytes:
    """The pickle of {"model": {"a": value}}."""
    return b"\x80\x02" + before + b"}" + text("model") + b"}" + text("a") + value + b"ss."


def archive(path: Path, pickled: bytes, **more: bytes) -> Path:
    """The zip archive of PyTorch 1.6 and later."""
    with zipfile.ZipFile(path, "w") as file:
        for name, data in {"data.pkl": pickled, "byteorder": b"little", "data/0": b"\0" * 16, **more}.items():
            file.writestr(f"archive/{name}", data)
    return path


def sequence(
    path: Path,
    pickled: bytes,
    storages: Iterable[tuple[int, bytes]] = ((4, b"\0" * 16),),
    keys: tuple[str, ...] = ("0",),
    version: bytes = b"M\xe9\x03",
    little: bytes = b"\x88",
) -> Path:
    """The sequence of before PyTorch 1.6. The storages are counts and bytes."""
    system = b"\x80\x02}" + text("little_endian") + little + b"s."
    listed = b"\x80\x02](" + b"".join(map(text, keys)) + b"e."
    with path.open("wb") as file:
        file.write(LEGACY + b"\x80\x02" + version + b"." + system + pickled + listed)
        for count, raw in storages:
            file.write(count.to_bytes(8, "little", signed=True) + raw)
    return path


def saved(path: Path, value: Any) -> Path:
    """A value in the sequence: dictionaries, lists, integers, and float32 and int64 arrays with a storage each."""
    storages: list[np.ndarray] = []

    def pickled(value: Any) -> bytes:
        if isinstance(value, dict):
            return b"}(" + b"".join(pickled(key) + pickled(inner) for key, inner in value.items()) + b"u"
        if isinstance(value, list):
            return b"](" + b"".join(map(pickled, value)) + b"e"
        if isinstance(value, str):
            return text(value)
        if isinstance(value, int):
            return whole(value)
        kind = {"f": b"ctorch\nFloatStorage\n", "i": b"ctorch\nLongStorage\n"}[value.dtype.kind]
        steps = [math.prod(value.shape[axis + 1 :]) for axis in range(value.ndim)]
        shape, strides = (b"(" + b"".join(map(whole, sizes)) + b"t" for sizes in (value.shape, steps))
        storages.append(value)
        return tensor(storage(kind, str(len(storages)), whole(value.size), b"N"), shape=shape, strides=strides)

    body = b"\x80\x02" + pickled(value) + b"."
    keys = tuple(str(number + 1) for number in range(len(storages)))
    return sequence(path, body, [(array.size, array.tobytes()) for array in storages], keys)
