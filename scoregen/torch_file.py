"""Reads the files of `torch.save` without PyTorch, and without ever running what is in them.

Such a file holds a pickle, which describes how tensors lie in storages, and the numbers of the storages. A pickle is a
program: it names functions and calls them. Even an Unpickler that allows only few names makes these calls, sets
attributes and builds objects. So this module does not use the pickle machinery. `pickletools.genops` splits the pickle
into opcodes, without side effects, and a small interpreter here handles the about thirty opcodes that PyTorch writes.
Its values are numbers, strings, lists, tuples, dictionaries and descriptions of tensors. A "call" of one of three known
names makes a description; any other name or opcode is refused.

There are two frames around the same pickle. Since PyTorch 1.6 the file is a zip archive, with the pickle in one member
and each storage in another. Before, it was a sequence: a magic number, the version and a table of the system, each a
pickle; then the pickle of the value; then a pickle with the list of the storages' names; and then, in the order of the
list, the count of each storage as an int64 and its numbers.

Sizes, strides and offsets are checked against the storage, and storages against the file. Memory is only allocated for
data that the file really holds, so compressed members are refused.
"""

from __future__ import annotations

import io
import math
import pickletools
import re
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, NamedTuple, Protocol

import ml_dtypes
import numpy as np

from scoregen.errors import UsageError

# Far more than a table of some thousand tensors needs.
LARGEST_PICKLE = 1 << 22
LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # the pickle of the magic number of before PyTorch 1.6
LEGACY_VERSION = 1001

STORAGES = {
    "FloatStorage": np.dtype("<f4"),
    "DoubleStorage": np.dtype("<f8"),
    "HalfStorage": np.dtype("<f2"),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "LongStorage": np.dtype("<i8"),
    "IntStorage": np.dtype("<i4"),
    "ShortStorage": np.dtype("<i2"),
    "CharStorage": np.dtype("i1"),
    "ByteStorage": np.dtype("u1"),
    "BoolStorage": np.dtype("?"),
}


class _Malformed(Exception):
    """The file is not what torch.save writes for weights. The message follows the name of the file."""


class Storage(NamedTuple):
    """A storage: `count` numbers under one name in the file."""

    dtype: np.dtype
    key: str
    count: int

    @property
    def size(self) -> int:
        """In bytes."""
        return self.count * self.dtype.itemsize


class View(NamedTuple):
    """A part of a storage. A tensor of it counts its offset from `first`."""

    storage: Storage
    first: int
    count: int


class Tensor(NamedTuple):
    """The place of a tensor in a storage. Offset and strides count numbers, not bytes."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def dtype(self) -> np.dtype:
        return self.storage.dtype


class _Name(NamedTuple):
    """A name that the pickle may use. Nothing is imported for it."""

    module: str
    name: str


class TorchFile:
    """An open file of `torch.save`. Its `value` holds a `Tensor` for each tensor, and `read` reads one of them.

    Raises:
        UsageError: if it cannot be opened, is no such file, is cut short, or holds things that weights do not need.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._last: tuple[Storage | None, bytes] = None, b""
        try:
            self._file = self.path.open("rb")
        except OSError as error:
            raise UsageError(f"cannot read {path}: {error.strerror or error}") from None
        try:
            head = self._file.read(len(LEGACY))
            if head[:4] != b"PK\x03\x04" and tarfile.is_tarfile(path):
                raise UsageError(
                    f"{path} is an archive of before PyTorch 0.1.11, which is not read: load it in PyTorch and save it "
                    "anew"
                )
            if head[:1] == b"\x80" and head != LEGACY:
                raise UsageError(f"{path} is a bare pickle, which is a program, and is not read: save it by torch.save")
            frame = _Sequence if head == LEGACY else _Archive
            try:
                self._frame: _Frame = frame(self.path, self._file)
            except _Malformed as error:
                raise UsageError(f"{path} {error}; nothing of it was run") from None
            self.value = self._frame.value
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> TorchFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def read(self, tensor: Tensor) -> np.ndarray:
        """The numbers of a tensor, a copy in C order.

        Raises:
            UsageError: if its storage is missing or damaged.
        """
        # Tensors that share a storage usually follow each other, so the last storage is cached.
        if self._last[0] != tensor.storage:
            self._last = tensor.storage, self._frame.numbers(tensor.storage)
        if 0 in tensor.shape:
            return np.zeros(tensor.shape, tensor.dtype)
        flat = np.frombuffer(self._last[1], tensor.dtype)[tensor.offset :]
        strides = [stride * tensor.dtype.itemsize for stride in tensor.strides]
        return np.array(np.lib.stride_tricks.as_strided(flat, tensor.shape, strides, writeable=False), order="C")


class _Frame(Protocol):
    """One of the two frames around pickle and storages: `value`, and the bytes of each storage."""

    value: Any

    def numbers(self, storage: Storage) -> bytes: ...


class _Archive:
    """The zip archive of PyTorch 1.6 and later."""

    def __init__(self, path: Path, file: IO[bytes]) -> None:
        self.path = path
        self._size = file.seek(0, io.SEEK_END)
        self._zip = self._guarded(lambda: zipfile.ZipFile(file))
        self._members: dict[str, zipfile.ZipInfo] = {}
        for info in self._zip.infolist():
            if info.filename in self._members:
                raise UsageError(f"{path} is no file of weights: it has two members {info.filename[:80]!r}")
            self._members[info.filename] = info
        pickles = [name for name in self._members if re.fullmatch(r"[^/]+/data\.pkl", name)]
        if len(pickles) != 1:
            raise UsageError(f"{path} is no file of torch.save: of data.pkl it has {len(pickles)}, not one")
        self._folder = pickles[0].removesuffix("data.pkl")
        order = f"{self._folder}byteorder"
        if order in self._members and self._member(order, 16) != b"little":
            raise UsageError(f"{path} {BIG_ENDIAN}")
        self.value, _ = interpret(io.BytesIO(self._member(pickles[0], LARGEST_PICKLE)))

    def numbers(self, storage: Storage) -> bytes:
        return self._member(f"{self._folder}data/{storage.key}", storage.size, exact=True)

    def _member(self, name: str, most: int, exact: bool = False) -> bytes:
        info = self._members.get(name)
        if info is None:
            raise UsageError(f"{self.path} is not whole: it has no member {name}")
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
            raise UsageError(f"{self.path} is no file of torch.save: its member {name} is compressed or encrypted")
        if info.file_size > min(most, self._size) or (exact and info.file_size != most):
            raise UsageError(f"{self.path}: its member {name} has {info.file_size:,} bytes, and not {most:,}")
        raw = self._guarded(lambda: self._zip.read(info))
        if len(raw) != info.file_size:
            raise UsageError(f"{self.path} is cut short, in its member {name}: get it again")
        return raw

    def _guarded(self, work: Callable[[], Any]) -> Any:
        """Run a function of zipfile; every error that a damaged or hostile archive causes becomes a UsageError."""
        try:
            return work()
        except (
            zipfile.BadZipFile,
            EOFError,
            NotImplementedError,
            RuntimeError,
            ValueError,
            OSError,
            struct.error,
        ) as e:
            reason = (str(e).splitlines() or [type(e).__name__])[0][:120]
            raise UsageError(f"{self.path} is no file of torch.save, or not whole ({reason}): get it again") from None


class _Sequence:
    """The sequence of pickles and storages of before PyTorch 1.6."""

    def __init__(self, path: Path, file: IO[bytes]) -> None:
        self.path, self._file = path, file
        size = file.seek(0, io.SEEK_END)
        file.seek(len(LEGACY))
        pickles = io.BytesIO(file.read(LARGEST_PICKLE))
        if interpret(pickles)[0] != LEGACY_VERSION:
            raise _Malformed(f"is of another version than {LEGACY_VERSION} of the layout of before PyTorch 1.6")
        system, _ = interpret(pickles)
        if type(system) is not dict or system.get("little_endian") is not True:
            raise UsageError(f"{path} {BIG_ENDIAN}")
        self.value, storages = interpret(pickles)
        keys, _ = interpret(pickles)
        if type(keys) is not list or not all(type(key) is str for key in keys):
            raise _Malformed("has no list of the names of its storages")
        if sorted(keys) != sorted(storages):
            raise _Malformed("has another list of storages than its tensors need")
        self._places: dict[str, int] = {}
        place = len(LEGACY) + pickles.tell()
        for key in keys:
            found, wanted = self._at(place, 8), storages[key]
            if int.from_bytes(found, "little", signed=True) != wanted.count:
                raise _Malformed(f"has a storage of another count than the {wanted.count:,} numbers of its tensors")
            self._places[key] = place + 8
            place += 8 + wanted.size
            if place > size:
                raise UsageError(f"{path} is cut short: it has {size:,} bytes, and its storages need {place:,} or more")
        if place != size:
            raise UsageError(f"{path} is damaged: it has {size - place:,} bytes after its last storage; get it again")

    def numbers(self, storage: Storage) -> bytes:
        return self._at(self._places[storage.key], storage.size)

    def _at(self, place: int, count: int) -> bytes:
        self._file.seek(place)
        raw = self._file.read(count)
        if len(raw) != count:
            raise UsageError(f"{self.path} is cut short: get it again")
        return raw


BIG_ENDIAN = "was written on a big-endian machine: save it anew on another"


def interpret(stream: IO[bytes]) -> tuple[Any, dict[str, Storage]]:
    """The value of the next pickle of `torch.save` in a stream, and the storages of its tensors by name.

    The value has a `Tensor` for each tensor. Nothing is executed, and nothing after the end of the pickle is read.

    >>> interpret(io.BytesIO(b"\\x80\\x02}X\\x04\\x00\\x00\\x00stepK\\x03s."))
    ({'step': 3}, {})
    """
    machine = _Machine()
    try:
        for opcode, argument, _ in pickletools.genops(stream):
            if opcode.name == "STOP":
                return machine.stack.pop(), machine.storages
            machine.obey(opcode.name, argument)
    except (ValueError, IndexError, KeyError, TypeError, AttributeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:80]
        raise _Malformed(f"holds a damaged pickle ({reason})") from None
    raise _Malformed("holds a pickle without an end")


class _Machine:
    """The state of the interpreter: the stack above the last mark, the stacks below the marks, and the memo."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.storages: dict[str, Storage] = {}

    def above_mark(self) -> list[Any]:
        above, self.stack = self.stack, self.below.pop()
        return above

    def obey(self, name: str, argument: Any) -> None:
        """Execute one opcode. It supports PyTorch's protocol 2, and the opcodes for the same values in protocol 4."""
        stack = self.stack
        match name:
            case "PROTO" | "FRAME":
                pass
            case "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINFLOAT" | "BINUNICODE" | "SHORT_BINUNICODE":
                stack.append(argument)
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[name])
            case "EMPTY_DICT" | "EMPTY_LIST" | "EMPTY_TUPLE":
                stack.append({"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}[name]())
            case "MARK":
                self.below.append(stack)
                self.stack = []
            case "TUPLE":
                above = self.above_mark()
                self.stack.append(tuple(above))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                count = int(name[-1])
                if len(stack) < count:
                    raise IndexError("too few values")
                stack[-count:] = [tuple(stack[-count:])]
            case "APPEND" | "APPENDS":
                values = [stack.pop()] if name == "APPEND" else self.above_mark()
                _as(list, self.stack[-1]).extend(values)
            case "SETITEM" | "SETITEMS":
                values = [stack.pop(-2), stack.pop()] if name == "SETITEM" else self.above_mark()
                target = _as(dict, self.stack[-1])
                for key, value in zip(values[::2], values[1::2], strict=True):
                    if type(key) not in (str, int):  # hashing nested tuples could take for ever
                        raise _Malformed(f"has a key of type {type(key).__name__}, where weights have names")
                    # Old optimizers number the parameters by their addresses. Larger keys could all have the same hash.
                    if type(key) is int and not 0 <= key < 1 << 48:
                        raise _Malformed("has a key out of range, where weights have names")
                    target[key] = value
            case "BINPUT" | "LONG_BINPUT":
                self.memo[argument] = stack[-1]
            case "MEMOIZE":
                self.memo[len(self.memo)] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(self.memo[argument])
            case "GLOBAL":
                stack.append(_allowed(*argument.split(" ", 1)))
            case "STACK_GLOBAL":
                module, named = stack.pop(-2), stack.pop()
                stack.append(_allowed(_as(str, module), _as(str, named)))
            case "BINPERSID":
                view = _view(stack.pop())
                if self.storages.setdefault(view.storage.key, view.storage) != view.storage:
                    raise _Malformed("has one storage with two types or counts")
                stack.append(view)
            case "REDUCE":
                arguments, function = _as(tuple, stack.pop()), _as(_Name, stack.pop())
                stack.append(_call(function, arguments))
            case "BUILD":
                # On a state dict, PyTorch sets only the version numbers of modules.
                if set(_as(dict, stack.pop())) - {"_metadata"} or type(stack[-1]) is not dict:
                    raise _Malformed("sets attributes of an object, which weights do not need")
            case _:
                raise _Malformed(f"uses the pickle opcode {name}, which weights do not need")


def _as(kind: type, value: Any) -> Any:
    if type(value) is not kind:
        raise TypeError(f"{type(value).__name__} where {kind.__name__} is needed")
    return value


CALLS = {
    _Name("collections", "OrderedDict"),
    _Name("torch._utils", "_rebuild_tensor_v2"),
    _Name("torch._utils", "_rebuild_parameter"),
}


def _allowed(module: str, name: str) -> _Name:
    named = _Name(module, name)
    if named in CALLS or (module == "torch" and name in STORAGES):
        return named
    raise _Malformed(f"asks for {module}.{name}"[:100] + ", which weights do not need")


def _view(value: Any) -> View:
    """('storage', class, name, device, count), and before PyTorch 1.6 a sixth: None, or a view (name, first, count)."""
    what, kind, key, _, count, *view = _as(tuple, value)
    if what != "storage" or type(kind) is not _Name or kind.module != "torch" or kind.name not in STORAGES:
        raise _Malformed("refers to something that is not a storage of numbers")
    # The name is a number in an archive, and before it was an address.
    if type(key) is not str or not re.fullmatch(r"[0-9]{1,20}", key):
        raise _Malformed("has a storage whose name is no number")
    storage = Storage(STORAGES[kind.name], key, _whole(count))
    if not view or view == [None]:
        return View(storage, 0, storage.count)
    (part,) = view
    _, first, count = _as(tuple, part)
    if _whole(first) + _whole(count) > storage.count:
        raise _Malformed("has a view that reaches out of its storage")
    return View(storage, first, count)


def _whole(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 1 << 48:
        raise _Malformed("has a size, stride or offset out of range")
    return value


def _call(function: _Name, arguments: tuple) -> Any:
    if function.name == "OrderedDict" and not arguments:
        return {}
    if function.name == "_rebuild_parameter" and arguments and type(arguments[0]) is Tensor:
        return arguments[0]
    if function.name != "_rebuild_tensor_v2" or len(arguments) not in (6, 7):
        raise _Malformed(f"calls {function.name} in a way that weights do not need")
    view, offset = _as(View, arguments[0]), _whole(arguments[1])
    shape, strides = (tuple(map(_whole, _as(tuple, part))) for part in arguments[2:4])
    if len(shape) != len(strides) or len(shape) > 8:
        raise _Malformed("has a tensor of more axes than weights have, or not as many strides")
    if math.prod(max(n, 1) for n in shape) >= 1 << 48:
        raise _Malformed("has a tensor of more numbers than there can be")
    axes = sorted((stride, n) for n, stride in zip(shape, strides, strict=True) if n != 1)
    if 0 not in shape and offset + sum((n - 1) * stride for stride, n in axes) >= view.count:
        raise _Malformed("has a tensor that reaches out of its storage")
    # No number may be used twice, so that a tensor takes no more memory than its storage in the file. For this, the
    # stride of an axis must exceed the reach of all axes with smaller strides.
    reach = 0
    for stride, n in axes:
        if stride <= reach and 0 not in shape:
            raise _Malformed("has a tensor that uses a number twice")
        reach += (n - 1) * stride
    return Tensor(view.storage, view.first + offset, shape, strides)
