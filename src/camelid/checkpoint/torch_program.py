"""The small program in a torch.save file that describes its objects, run on a machine that can only build data.

The program is one for a stack machine (Python's library documents it; torch.save writes the second version of it). A
general machine imports and calls whatever a program names, and is how a weight file runs code. This one imports
nothing: a name is looked up in `CALLABLES` and `DTYPES`, which hold all that a file of tensors needs, and anything
else ends the reading. What a file lists as tensors become `TensorPlace`s; no memory is taken for them.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from camelid.base.errors import FormatError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

MAX_PROGRAM_BYTES: Final = 4 << 20
"""Llama 3.1 405B's takes about 200 kB a shard; every instruction makes at most one small object."""

LARGEST_KEY: Final = 2**60
"""From 2^61 - 1 on, hashes of whole numbers repeat: twenty thousand chosen keys of a dictionary take seconds."""


@dataclass(frozen=True)
class StorageType:
    """What a program calls a kind of storage."""

    dtype: str
    """torch's name."""
    itemsize: int


@dataclass(frozen=True)
class StoragePlace:
    """A run of elements that tensors look into."""

    key: str
    """The member of the archive, under `data/`."""
    type: StorageType
    numel: int


@dataclass(frozen=True)
class TensorPlace:
    """A view into a storage: sizes in elements, not held against the storage yet."""

    storage: StoragePlace
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


class Opaque:
    """Bytes beside the tensors, as some of Meta's files hold them of their training; they are not kept."""


class _RefusedError(Exception):
    """An instruction that this machine does not carry out."""


DTYPES: Final[Mapping[tuple[str, str], StorageType]] = {
    ("torch", "DoubleStorage"): StorageType("float64", 8),
    ("torch", "FloatStorage"): StorageType("float32", 4),
    ("torch", "HalfStorage"): StorageType("float16", 2),
    ("torch", "BFloat16Storage"): StorageType("bfloat16", 2),
    ("torch", "LongStorage"): StorageType("int64", 8),
    ("torch", "IntStorage"): StorageType("int32", 4),
    ("torch", "ShortStorage"): StorageType("int16", 2),
    ("torch", "CharStorage"): StorageType("int8", 1),
    ("torch", "ByteStorage"): StorageType("uint8", 1),
    ("torch", "BoolStorage"): StorageType("bool", 1),
}
"""The names that stand for kinds of storage."""


def _tensor(*arguments: Any) -> TensorPlace:
    if len(arguments) not in (6, 7):
        raise _RefusedError("a tensor of another version of the format")
    storage, offset, shape, stride = arguments[:4]
    sizes_are_whole = type(offset) is int and all(
        type(sizes) is tuple and all(type(size) is int for size in sizes) for sizes in (shape, stride)
    )
    if not isinstance(storage, StoragePlace) or not sizes_are_whole or len(shape) != len(stride):
        raise _RefusedError("a tensor whose description makes no sense")
    return TensorPlace(storage, offset, shape, stride)


def _parameter(*arguments: Any) -> TensorPlace:
    if len(arguments) != 3 or not isinstance(arguments[0], TensorPlace):
        raise _RefusedError("a parameter whose description makes no sense")
    return arguments[0]


def _ordered_dict(*arguments: Any) -> dict[Any, Any]:
    if arguments not in ((), ([],)):
        raise _RefusedError("a dictionary with contents given at once")
    return {}


def _bytes(*arguments: Any) -> Opaque:
    if not all(type(argument) is str for argument in arguments):
        raise _RefusedError("bytes that are made of no text")
    return Opaque()


def _stream(*arguments: Any) -> Opaque:
    if arguments:
        raise _RefusedError("a stream with contents given at once")
    return Opaque()


CALLABLES: Final[Mapping[tuple[str, str], Callable[..., Any]]] = {
    ("collections", "OrderedDict"): _ordered_dict,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("_codecs", "encode"): _bytes,
    ("__builtin__", "bytes"): _bytes,
    ("_io", "BytesIO"): _stream,
}
"""The names that a program may call, and what a call does here."""

_OF_A_STREAM: Final = (Opaque, int, type(None))
_MARK: Final = object()


def run(program: bytes, where: Callable[[int], str]) -> Any:
    """What the program builds: dictionaries, lists, tuples, numbers, texts, `TensorPlace`s and `Opaque`s.

    Args:
        program: the archive's `data.pkl`.
        where: names an offset of the program, for messages.

    Raises:
        FormatError: the program is broken, or asks for anything else.
    """
    machine = _Machine(program)
    try:
        return machine.run()
    except _RefusedError as refusal:
        raise FormatError(
            f"the file asks for {refusal}, which no file of weights needs",
            where=where(machine.instruction),
            hint="it may be made to run code: nothing of it was run; take the model as safetensors",
        ) from None
    except (IndexError, ValueError, KeyError, TypeError, AttributeError, struct.error, UnicodeDecodeError) as error:
        raise FormatError("the description of its objects is broken", where=where(machine.instruction)) from error


class _Machine:
    """A stack, a memory of numbered values, and the place in the program."""

    def __init__(self, program: bytes) -> None:
        self.program = program
        self.position = 0
        self.instruction = 0
        """Where the current instruction starts."""
        self.stack: list[Any] = []
        self.memory: dict[int, Any] = {}

    def run(self) -> Any:
        while True:
            self.instruction = self.position
            code = self._take(1)
            if code == b".":
                (result,) = self.stack
                return result
            step = _STEPS.get(code)
            if step is None:
                raise _RefusedError(f"the instruction {code!r}")
            step(self)

    def _take(self, count: int) -> bytes:
        taken = self.program[self.position : self.position + count]
        if len(taken) < count:
            raise ValueError("the program is cut short")
        self.position += count
        return taken

    def _number(self, form: str) -> Any:
        return struct.unpack(form, self._take(struct.calcsize(form)))[0]

    def _line(self) -> str:
        end = self.program.index(b"\n", self.position)
        line = self._take(end + 1 - self.position)[:-1]
        return line.decode("ascii")

    def _pop_to_mark(self) -> list[Any]:
        start = len(self.stack) - 1
        while self.stack[start] is not _MARK:
            start -= 1
            if start < 0:
                raise IndexError("there is no mark")
        items = self.stack[start + 1 :]
        del self.stack[start:]
        return items

    def _pop(self, count: int) -> list[Any]:
        if len(self.stack) < count or _MARK in self.stack[-count:]:
            raise IndexError("the stack is empty")
        items = self.stack[-count:]
        del self.stack[-count:]
        return items

    def version(self) -> None:
        if (number := self._number("<B")) != 2:
            raise _RefusedError(f"version {number} of the instructions")

    def name(self) -> None:
        named = (self._line(), self._line())
        if named in CALLABLES:
            self.stack.append(CALLABLES[named])
        elif named in DTYPES:
            self.stack.append(DTYPES[named])
        else:
            raise _RefusedError(f"{'.'.join(named)[:200]!r}")

    def call(self) -> None:
        function, arguments = self._pop(2)
        if not any(function is known for known in CALLABLES.values()) or type(arguments) is not tuple:
            raise _RefusedError("a call of what is no function")
        self.stack.append(function(*arguments))

    def new_object(self) -> None:
        if len(self.stack) < 2 or self.stack[-2] is not _stream:
            raise _RefusedError("a new object that is no stream of bytes")
        self.call()

    def storage(self) -> None:
        ((kind, storage_type, key, _device, numel),) = self._pop(1)
        known = kind == "storage" and isinstance(storage_type, StorageType) and type(key) is str
        if not known or type(numel) is not int:
            raise _RefusedError("an outside object that is no storage of a known type")
        self.stack.append(StoragePlace(key, storage_type, numel))

    def set_attributes(self) -> None:
        """A state dict carries the versions of its modules, a stream its bytes; neither says anything of weights."""
        (state,) = self._pop(1)
        if (
            type(self.stack[-1]) is Opaque
            and type(state) is tuple
            and all(type(part) in _OF_A_STREAM for part in state)
        ):
            return
        if type(self.stack[-1]) is not dict or type(state) is not dict or state.keys() != {"_metadata"}:
            raise _RefusedError("attributes set on an object")

    def set_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is not dict or len(items) % 2 or not all(map(_may_be_a_key, items[::2])):
            raise _RefusedError("items that are set in what is no dictionary of names")
        target.update(zip(items[::2], items[1::2], strict=True))

    def append(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is not list:
            raise _RefusedError("items appended to what is no list")
        target.extend(items)

    def remember(self, index: int) -> None:
        self.memory[index] = self.stack[-1]

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def text(self) -> None:
        self.push(self._take(self._number("<I")).decode())

    def long(self) -> None:
        self.push(int.from_bytes(self._take(self._number("<B")), "little", signed=True))


_STEPS: Final[Mapping[bytes, Callable[[_Machine], None]]] = {
    b"\x80": _Machine.version,
    b"c": _Machine.name,
    b"R": _Machine.call,
    b"\x81": _Machine.new_object,
    b"Q": _Machine.storage,
    b"b": _Machine.set_attributes,
    b"s": lambda m: m.set_items(m._pop(2)),
    b"u": lambda m: m.set_items(m._pop_to_mark()),
    b"a": lambda m: m.append(m._pop(1)),
    b"e": lambda m: m.append(m._pop_to_mark()),
    b"q": lambda m: m.remember(m._number("<B")),
    b"r": lambda m: m.remember(m._number("<I")),
    b"h": lambda m: m.push(m.memory[m._number("<B")]),
    b"j": lambda m: m.push(m.memory[m._number("<I")]),
    b"(": lambda m: m.push(_MARK),
    b")": lambda m: m.push(()),
    b"t": lambda m: m.push(tuple(m._pop_to_mark())),
    b"\x85": lambda m: m.push(tuple(m._pop(1))),
    b"\x86": lambda m: m.push(tuple(m._pop(2))),
    b"\x87": lambda m: m.push(tuple(m._pop(3))),
    b"}": lambda m: m.push({}),
    b"]": lambda m: m.push([]),
    b"N": lambda m: m.push(None),
    b"\x88": lambda m: m.push(True),
    b"\x89": lambda m: m.push(False),
    b"J": lambda m: m.push(m._number("<i")),
    b"K": lambda m: m.push(m._number("<B")),
    b"M": lambda m: m.push(m._number("<H")),
    b"G": lambda m: m.push(m._number(">d")),
    b"X": _Machine.text,
    b"\x8a": _Machine.long,
}
"""Every instruction that this machine carries out."""


def _may_be_a_key(key: Any) -> bool:
    return type(key) is str or (type(key) is int and abs(key) < LARGEST_KEY)


def write(tensors: Mapping[str, tuple[str, tuple[int, ...]]]) -> bytes:
    """The program that describes tensors, each the whole of a storage of its own: `data/0`, `data/1` and so on.

    Args:
        tensors: torch's dtype and the shape of each, by name.
    """
    names = {kind.dtype: name for (_, name), kind in DTYPES.items()}
    written = bytearray(b"\x80\x02ccollections\nOrderedDict\n)R(")
    for number, (name, (dtype, shape)) in enumerate(tensors.items()):
        stride = [1] * len(shape)
        for axis in range(len(shape) - 2, -1, -1):
            stride[axis] = stride[axis + 1] * shape[axis + 1]
        numel = stride[0] * shape[0] if shape else 1
        written += _text(name) + b"ctorch._utils\n_rebuild_tensor_v2\n(("
        written += _text("storage") + f"ctorch\n{names[dtype]}\n".encode()
        written += _text(str(number)) + _text("cpu") + _whole(numel) + b"tQ" + _whole(0)
        written += _tuple(shape) + _tuple(stride) + b"\x89ccollections\nOrderedDict\n)RtR"
    return bytes(written + b"u.")


def _text(text: str) -> bytes:
    encoded = text.encode()
    return b"X" + struct.pack("<I", len(encoded)) + encoded


def _whole(number: int) -> bytes:
    if number < 2**31:
        return b"J" + struct.pack("<i", number)
    return b"\x8a\x08" + number.to_bytes(8, "little")


def _tuple(numbers: tuple[int, ...] | list[int]) -> bytes:
    return b"(" + b"".join(map(_whole, numbers)) + b"t"
