"""Files of ``torch.save``, read without torch and without executing their pickle.

Such a file is a zip archive with uncompressed members: ``data.pkl`` describes the objects, ``data/0``,
``data/1`` … are the bytes of tensors. A pickle is a program for a stack machine, one of whose instructions
calls any function of any module. The machine here is ours: it knows the instructions that ``torch.save``
writes, builds dicts, lists and tuples, and where a function is called it looks its name up in a table of the
few that describe tensors. Anything else is refused by name.
"""

from __future__ import annotations

import dataclasses
import io
import math
import pickletools
import reprlib
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from exporter.errors import OnnxGptError, rejected
from exporter.sources._files import unreadable
from exporter.stored_weights import NotFloat, Stored
from exporter.weight_expressions import transposed
from exporter.weights import Weight

PICKLE_LIMIT = 4 << 20
"""Bytes of ``data.pkl``. With optimizer state, a GPT-2 of 48 layers has 0.2 MB."""

OLD_FORMAT = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19"
"""How a file begins that torch before 1.6 wrote, and later ones with _use_new_zipfile_serialization=False."""

ZIP = b"PK\x03\x04"

STORAGES = {
    "BFloat16Storage": ("BF16", 2),
    "BoolStorage": ("BOOL", 1),
    "ByteStorage": ("U8", 1),
    "CharStorage": ("I8", 1),
    "DoubleStorage": ("F64", 8),
    "FloatStorage": ("F32", 4),
    "HalfStorage": ("F16", 2),
    "IntStorage": ("I32", 4),
    "LongStorage": ("I64", 8),
    "ShortStorage": ("I16", 2),
}
"""torch's storage classes: dtype as safetensors spells it, bytes of an element."""

DTYPES = {"bfloat16", "bool", "float16", "float32", "float64", "int16", "int32", "int64", "int8", "uint8"}
"""Attributes of torch that are values, not functions."""


@dataclasses.dataclass(frozen=True)
class _Name:
    """A global that a pickle may name. It stands for the thing and is never the thing."""

    module: str
    name: str


@dataclasses.dataclass(frozen=True)
class Storage:
    """A member of the archive: ``count`` elements of ``dtype`` from byte ``start`` of the file on."""

    start: int
    dtype: str
    itemsize: int
    count: int


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A view of a storage, as torch describes it: offset and strides in elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def weight(self, path: Path, name: str) -> Weight:
        """The tensor as an expression over the file.

        Raises:
            OnnxGptError: ``weights-strided`` where it lies neither by rows nor, a matrix, by columns.
        """
        storage, start = self.storage, self.storage.start + self.offset * self.storage.itemsize
        if storage.dtype in ("F16", "BF16", "F32", "F64"):
            if self._contiguous(self.shape, self.strides):
                return Stored(path, start, storage.dtype, self.shape, name)
            if len(self.shape) == 2 and self._contiguous(self.shape[::-1], self.strides[::-1]):
                return transposed(Stored(path, start, storage.dtype, self.shape[::-1], name))
            raise rejected(
                "weights-strided",
                f"{name} {list(self.shape)} in {str(path)!r} has the strides {list(self.strides)}",
                "save the checkpoint again with every tensor made contiguous()",
            )
        return NotFloat(name, storage.dtype, self.shape)

    @staticmethod
    def _contiguous(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
        expected = 1
        for dim, stride in zip(reversed(shape), reversed(strides), strict=True):
            if dim != 1 and stride != expected:
                return False
            expected *= dim
        return True


def read(path: Path) -> Any:
    """The object that ``torch.save`` wrote: dicts, lists, tuples and scalars, with `Tensor` for tensors.

    Raises:
        OnnxGptError: ``pickle-unsafe`` for a pickle that would call more than torch's rebuilding of tensors;
            ``checkpoint-corrupt`` for a file that is not what torch.save writes.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = _members(path, archive)
            root = _root(path, members)
            pickle = archive.read(members[f"{root}data.pkl"])
            byteorder = members.get(f"{root}byteorder")
            if byteorder is not None and (byteorder.file_size != 6 or archive.read(byteorder) != b"little"):
                raise _corrupt(path, "was written on a big-endian machine")
    except (zipfile.BadZipFile, NotImplementedError, EOFError, ValueError, OSError) as error:
        raise _no_archive(path, error) from error
    return _Machine(path, root, members).run(pickle)


def shown(value: Any) -> str:
    """A value for a message. A pickle can hold one in itself twice, forty levels deep: its repr would not end."""
    short = reprlib.Repr()
    short.maxstring = short.maxother = 200
    return short.repr(value)


def _no_archive(path: Path, error: Exception) -> OnnxGptError:
    try:
        with path.open("rb") as file:
            head = file.read(len(OLD_FORMAT))
    except OSError as unread:
        return unreadable(path, unread)
    if head == OLD_FORMAT:
        return rejected(
            "checkpoint-corrupt",
            f"{str(path)!r} is in the format that torch.save had before 1.6",
            "write it again: torch.save(torch.load(OLD, weights_only=True), NEW)",
        )
    if head.startswith(ZIP):
        return _corrupt(path, f"is damaged or not whole ({error})")
    return _corrupt(path, f"is not a zip archive as torch.save writes it ({error})")


def _members(path: Path, archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    members: dict[str, zipfile.ZipInfo] = {}
    for info in archive.infolist():
        if info.filename in members:
            raise _corrupt(path, f"holds {info.filename!r} twice")
        if (
            info.compress_type != zipfile.ZIP_STORED
            or info.compress_size != info.file_size
            or info.flag_bits & 1
        ):
            raise _corrupt(path, f"holds {info.filename!r} compressed or encrypted, as torch.save never does")
        members[info.filename] = info
    return members


def _root(path: Path, members: Mapping[str, zipfile.ZipInfo]) -> str:
    """The folder that torch.save puts everything into, with its slash."""
    pickles = [name for name in members if name.rpartition("/")[2] == "data.pkl"]
    if len(pickles) != 1:
        raise _corrupt(path, f"holds {len(pickles)} members named data.pkl where torch.save writes one")
    if members[pickles[0]].file_size > PICKLE_LIMIT:
        raise _corrupt(path, f"has a data.pkl of more than {PICKLE_LIMIT >> 20} MiB")
    return pickles[0].removesuffix("data.pkl")


def _data_start(path: Path, info: zipfile.ZipInfo) -> int:
    """Where a member's bytes start: past its local header, whose padding the directory does not tell."""
    with path.open("rb") as file:
        file.seek(info.header_offset)
        header = file.read(30)
        size = file.seek(0, io.SEEK_END)
    if len(header) < 30 or header[:4] != ZIP:
        raise _corrupt(path, f"has no local header for {info.filename!r}")
    name, extra = int.from_bytes(header[26:28], "little"), int.from_bytes(header[28:30], "little")
    start = info.header_offset + 30 + name + extra
    if start + info.file_size > size:
        raise _corrupt(path, f"is truncated: {info.filename!r} ends beyond the file")
    return start


class _Machine:
    """The stack machine of a pickle, without its call instruction."""

    def __init__(self, path: Path, root: str, members: Mapping[str, zipfile.ZipInfo]) -> None:
        self.path, self.root, self.members = path, root, members
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self.starts: dict[str, int] = {}

    def run(self, pickle: bytes) -> Any:
        try:
            for opcode, argument, _ in pickletools.genops(pickle):
                if opcode.name == "STOP":
                    return self.stack.pop()
                step = _STEPS.get(opcode.name)
                if step is None:
                    raise _unsafe(self.path, f"uses the pickle instruction {opcode.name}")
                step(self, argument)
        except (ValueError, TypeError, IndexError, KeyError, OverflowError, RecursionError) as error:
            raise _corrupt(self.path, f"has a malformed data.pkl ({error})") from error
        raise _corrupt(self.path, "has a data.pkl that does not end")

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def above_mark(self) -> list[Any]:
        mark = self.marks.pop()
        items = self.stack[mark:]
        del self.stack[mark:]
        return items

    def take(self, count: int) -> tuple[Any, ...]:
        if count > len(self.stack):
            raise ValueError("the stack is empty")
        items = tuple(self.stack[len(self.stack) - count :])
        del self.stack[len(self.stack) - count :]
        return items

    def remember(self, index: int) -> None:
        self.memo[index] = self.stack[-1]

    def put(self, items: list[Any] | tuple[Any, ...]) -> None:
        target = self.stack[-1]
        if not isinstance(target, dict):
            raise TypeError("an item is set in something that is not a dict")
        for key, value in zip(items[::2], items[1::2], strict=True):
            # optimizers number their parameters; larger integers could be chosen to collide in the dict
            if not isinstance(key, str) and not (type(key) is int and 0 <= key < 1 << 31):
                raise TypeError(f"a dict has a key of type {type(key).__name__}")
            target[key] = value

    def extend(self, items: list[Any] | tuple[Any, ...]) -> None:
        target = self.stack[-1]
        if not isinstance(target, list):
            raise TypeError("an item is appended to something that is not a list")
        target.extend(items)

    def name(self, argument: str) -> None:
        module, _, name = argument.partition(" ")
        known = (module, name) in _CALLS or (module == "torch" and (name in STORAGES or name in DTYPES))
        if not known:
            raise _unsafe(self.path, f"would import and use {shown(f'{module}.{name}')}")
        self.push(_Name(module, name))

    def call(self) -> None:
        function, arguments = self.take(2)
        rebuild = _CALLS.get((function.module, function.name)) if isinstance(function, _Name) else None
        if rebuild is None or not isinstance(arguments, tuple):
            raise TypeError("something is called that is not a function")
        self.push(rebuild(*arguments))

    def build(self) -> None:
        """State of an object: torch keeps version numbers of modules on the OrderedDict of a state dict."""
        target, _ = self.take(2)
        if not isinstance(target, dict):
            raise TypeError("state is set on something that is not a dict")
        self.push(target)

    def storage(self) -> None:
        (reference,) = self.take(1)
        kind, storage_type, key, _location, count = reference
        if kind != "storage" or not isinstance(storage_type, _Name) or storage_type.name not in STORAGES:
            raise ValueError(f"a reference of the kind {shown(kind)} to the outside")
        dtype, itemsize = STORAGES[storage_type.name]
        info = self.members.get(f"{self.root}data/{key}")
        if info is None:
            raise ValueError(f"the archive has no member data/{key!s:.80}")
        if type(count) is not int or count < 0 or count * itemsize > info.file_size:
            raise ValueError(f"data/{key} holds {info.file_size} bytes, {count} elements are asked of it")
        if info.filename not in self.starts:
            self.starts[info.filename] = _data_start(self.path, info)
        self.push(Storage(self.starts[info.filename], dtype, itemsize, count))


def _rebuild_tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_unused: Any) -> Tensor:
    """``torch._utils._rebuild_tensor_v2``; requires_grad, hooks and metadata change no value."""
    if not isinstance(storage, Storage):
        raise TypeError("a tensor has no storage")
    if not all(
        isinstance(dims, tuple) and all(type(d) is int and d >= 0 for d in dims) for dims in (shape, strides)
    ):
        raise ValueError(f"a tensor has the shape {shown(shape)} and the strides {shown(strides)}")
    if len(shape) != len(strides) or len(shape) > 8 or type(offset) is not int or offset < 0:
        raise ValueError(
            f"a tensor of shape {shown(shape)} has the strides {shown(strides)} at {shown(offset)}"
        )
    reach = offset + sum((dim - 1) * stride for dim, stride in zip(shape, strides, strict=True)) + 1
    if (math.prod(shape) and reach > storage.count) or max(shape, default=0) > storage.count:
        raise ValueError(
            f"a tensor of shape {shown(shape)} reaches beyond its storage of {storage.count} elements"
        )
    return Tensor(storage, offset, shape, strides)


def _ordered_dict(*items: Any) -> dict[Any, Any]:
    if items:
        raise TypeError("an OrderedDict is built from something")
    return {}


_CALLS: Mapping[tuple[str, str], Callable[..., Any]] = {
    ("collections", "OrderedDict"): _ordered_dict,
    ("torch", "Size"): lambda dims: dims,
    ("torch", "device"): lambda *_where: None,
    ("torch._utils", "_rebuild_parameter"): lambda tensor, *_unused: tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
}
"""What a call instruction may name, and what is done instead."""

_CONSTANT = dict.fromkeys(
    ("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE"), _Machine.push
)
_STEPS: Mapping[str, Callable[[_Machine, Any], None]] = _CONSTANT | {
    "PROTO": lambda m, _: None,
    "FRAME": lambda m, _: None,
    "NONE": lambda m, _: m.push(None),
    "NEWTRUE": lambda m, _: m.push(True),
    "NEWFALSE": lambda m, _: m.push(False),
    "EMPTY_DICT": lambda m, _: m.push({}),
    "EMPTY_LIST": lambda m, _: m.push([]),
    "EMPTY_TUPLE": lambda m, _: m.push(()),
    "TUPLE1": lambda m, _: m.push(m.take(1)),
    "TUPLE2": lambda m, _: m.push(m.take(2)),
    "TUPLE3": lambda m, _: m.push(m.take(3)),
    "TUPLE": lambda m, _: m.push(tuple(m.above_mark())),
    "MARK": lambda m, _: m.marks.append(len(m.stack)),
    "BINPUT": _Machine.remember,
    "LONG_BINPUT": _Machine.remember,
    "MEMOIZE": lambda m, _: m.remember(len(m.memo)),
    "BINGET": lambda m, index: m.push(m.memo[index]),
    "LONG_BINGET": lambda m, index: m.push(m.memo[index]),
    "SETITEM": lambda m, _: m.put(m.take(2)),
    "SETITEMS": lambda m, _: m.put(m.above_mark()),
    "APPEND": lambda m, _: m.extend(m.take(1)),
    "APPENDS": lambda m, _: m.extend(m.above_mark()),
    "GLOBAL": _Machine.name,
    "STACK_GLOBAL": lambda m, _: m.name(" ".join(m.take(2))),
    "REDUCE": lambda m, _: m.call(),
    "BUILD": lambda m, _: m.build(),
    "BINPERSID": lambda m, _: m.storage(),
}
"""The instructions that torch.save writes, and what each does here."""


def _corrupt(path: Path, what: str) -> OnnxGptError:
    return rejected(
        "checkpoint-corrupt", f"{str(path)!r} {what}", "save the checkpoint again with torch.save"
    )


def _unsafe(path: Path, what: str) -> OnnxGptError:
    return rejected(
        "pickle-unsafe",
        f"{str(path)!r} {what}; nothing of it was run",
        "if you trust whoever made it, load it with torch and save only tensors, numbers and strings",
    )
