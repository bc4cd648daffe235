"""What a tensor is before anyone reads its bytes: dtype, shape, where it lies."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from .errors import ConfigError

if TYPE_CHECKING:
    from .composition import Made

__all__ = [
    "DTYPES",
    "DType",
    "Storage",
    "TensorInfo",
    "alias_groups",
    "contiguous_stride",
    "dtype_named",
    "reach",
]


@dataclass(frozen=True, slots=True)
class DType:
    """An element type, spelled as torch spells it.

    ``bits`` is the size of one element; ``values`` how many numbers it packs (2 for ``float4_e2m1fn_x2``).
    """

    name: str
    bits: int
    kind: str
    values: int = 1

    @property
    def is_floating(self) -> bool:
        """Whether elements of this type are trained: real or complex floating point."""
        return self.kind in ("float", "complex")

    @property
    def is_packed(self) -> bool:
        """Whether an element is not whole bytes, or several numbers: such values are only ever copied."""
        return self.bits % 8 != 0 or self.values > 1


def _table() -> dict[str, DType]:
    rows = {
        "float": {
            "float64": 64, "float32": 32, "float16": 16, "bfloat16": 16,
            "float8_e4m3fn": 8, "float8_e5m2": 8, "float8_e4m3fnuz": 8, "float8_e5m2fnuz": 8,
            "float8_e8m0fnu": 8, "float6_e2m3fn": 6, "float6_e3m2fn": 6,
        },
        "int": {"int64": 64, "int32": 32, "int16": 16, "int8": 8},
        "uint": {"uint64": 64, "uint32": 32, "uint16": 16, "uint8": 8},
        "bool": {"bool": 8},
        "complex": {"complex128": 128, "complex64": 64, "complex32": 32},
        "quantized": {"quint8": 8, "qint8": 8, "qint32": 32, "quint4x2": 8, "quint2x4": 8},
        "bits": {"bits1x8": 8, "bits2x4": 8, "bits4x2": 8, "bits8": 8, "bits16": 16},
    }  # fmt: skip
    table = {name: DType(name, bits, kind) for kind, names in rows.items() for name, bits in names.items()}
    table["float4_e2m1fn_x2"] = DType("float4_e2m1fn_x2", 8, "float", values=2)
    return table


DTYPES: Mapping[str, DType] = _table()

_SHORT = {
    "double": "float64", "float": "float32", "half": "float16", "long": "int64", "int": "int32", "short": "int16",
    "f64": "float64", "f32": "float32", "f16": "float16", "fp64": "float64", "fp32": "float32",
    "fp16": "float16", "bf16": "bfloat16", "fp8": "float8_e4m3fn", "e4m3": "float8_e4m3fn", "e5m2": "float8_e5m2",
    "i64": "int64", "i32": "int32", "i16": "int16", "i8": "int8", "u8": "uint8",
}  # fmt: skip


def dtype_named(text: str) -> str:
    """Return torch's name for a dtype as people write it: ``bf16``, ``torch.float16``, ``half``.

    Raises ConfigError for a name nobody knows.
    """
    name = text.strip().removeprefix("torch.").lower()
    name = _SHORT.get(name, name)
    if name not in DTYPES:
        raise ConfigError(f"there is no dtype {text!r}.", hint="Use one of float32, float16, bfloat16, float64, …")
    return name


@dataclass(slots=True, eq=False)  # not frozen: files hold a hundred thousand, and that would double the cost
class Storage:
    """A run of bytes in one file that tensors view; identity, not content, makes two storages the same.

    ``offset`` and ``nbytes`` are bytes; ``crc32``, of other formats ``crc32c``, is the checksum that the container
    recorded, if it did.
    """

    file: str
    offset: int
    nbytes: int
    crc32: int | None = None
    name: str = ""
    big_endian: bool = False
    crc32c: int | None = None

    @property
    def has_checksum(self) -> bool:
        """Whether the container recorded a checksum of the bytes."""
        return self.crc32 is not None or self.crc32c is not None


@dataclass(slots=True, unsafe_hash=True)  # as good as frozen: nothing ever sets a field, see Storage
class TensorInfo:
    """One tensor as its file's header describes it; no byte of its values has been read.

    ``offset`` is in bytes from the start of ``storage``; ``stride`` is in elements, None when contiguous.
    ``opaque`` says why the values are not plain bytes (sparse, quantised, meta), and is empty when they are. ``made``
    says of which other tensors it is made, where it is not stored itself.
    """

    dtype: str
    shape: tuple[int, ...]
    storage: Storage | None = None
    offset: int = 0
    stride: tuple[int, ...] | None = None
    conj: bool = False
    neg: bool = False
    opaque: str = ""
    parts: tuple[object, ...] = field(default=(), repr=False)
    made: Made | None = field(default=None, repr=False)

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the values, contiguous."""
        return (self.numel * DTYPES[self.dtype].bits + 7) // 8

    @property
    def parameters(self) -> int:
        """Trainable numbers: elements of floating types, packed ones counted singly; 0 for the others."""
        dtype = DTYPES[self.dtype]
        return self.numel * dtype.values if dtype.is_floating else 0

    @property
    def itemsize(self) -> int:
        """Bytes of one element (for the 6-bit floats: 1, they are only ever moved whole)."""
        return max(1, DTYPES[self.dtype].bits // 8)

    @property
    def is_plain(self) -> bool:
        """Whether the contiguous values lie in the file as they are."""
        return (
            not self.opaque
            and self.stride is None
            and not (self.conj or self.neg)
            and self.storage is not None
            and not (self.storage.big_endian and self.itemsize > 1)
        )

    @property
    def place(self) -> Hashable:
        """What two keys share when they are aliases of one tensor; None when nothing is stored as plain bytes.

        A conjugate of a tensor lies where the tensor does, and is another. Where a dimension has one element its
        stride means nothing, and a file could fill it with numbers whose hashes collide.
        """
        if self.made is not None:
            return (id(self.made), self.shape)
        if self.storage is None or self.opaque:
            return None
        steps = self.stride and tuple(
            step if size > 1 else 0 for size, step in zip(self.shape, self.stride, strict=True)
        )
        return (id(self.storage), self.offset, self.shape, steps, self.dtype, self.conj, self.neg)


def contiguous_stride(shape: Sequence[int]) -> tuple[int, ...]:
    """Return the strides, in elements, of a row-major tensor of ``shape``."""
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step)
        step *= max(size, 1)
    return tuple(reversed(strides))


def reach(shape: Sequence[int], stride: Sequence[int]) -> int:
    """Return how many elements from its first one a strided tensor reaches (0 when it is empty)."""
    if 0 in shape:
        return 0
    return 1 + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))


def alias_groups(tensors: Mapping[str, TensorInfo]) -> dict[str, str]:
    """Map every key that shares its very bytes with an earlier key to that first key."""
    first: dict[Hashable, str] = {}
    aliases: dict[str, str] = {}
    for key, info in tensors.items():
        place = info.place
        if place is None or info.numel == 0:
            continue
        owner = first.setdefault(place, key)
        if owner != key:
            aliases[key] = owner
    return aliases
