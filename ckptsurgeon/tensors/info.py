"""Describes a tensor without reading its bytes: dtype, shape, and its storage or the operation that computes it."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from .dtypes import DTYPES

__all__ = [
    "Averaged",
    "Cast",
    "Concatenated",
    "Decoded",
    "Encoded",
    "ExpScaled",
    "Given",
    "Made",
    "Noisy",
    "Permuted",
    "Reshaped",
    "Scaled",
    "Shifted",
    "Sliced",
    "Storage",
    "Summed",
    "Taken",
    "TensorInfo",
    "tied_keys",
]


# Not frozen: a file may have a hundred thousand storages, and a frozen dataclass takes twice as long to create.
@dataclass(slots=True, eq=False)
class Storage:
    """A range of bytes in one file; tensors are views of it. Two storages are equal only if they are the same object.

    ``offset`` and ``nbytes`` are in bytes. If the file contains a checksum of these bytes, it is in ``crc32`` (in some
    formats in ``crc32c``).
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
        """Whether the file contains a checksum of the bytes."""
        return self.crc32 is not None or self.crc32c is not None


@dataclass(slots=True, unsafe_hash=True)  # treated as frozen: nothing ever sets a field, see Storage
class TensorInfo:
    """One tensor as the header of its file describes it; its values have not been read.

    ``offset`` is in bytes from the start of ``storage``; ``stride`` is in elements, None if the tensor is contiguous.
    If the values are not plain bytes (sparse, quantised, meta), ``opaque`` says why; otherwise it is empty. ``parts``
    is what a pickle stores with a quantised tensor (its scale, for example). If the tensor is computed and not stored,
    ``storage`` is None and ``made`` is the operation, with the tensors that it uses.
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
        """The number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """The size of the values in bytes if they are stored contiguously."""
        return (self.numel * DTYPES[self.dtype].bits + 7) // 8

    @property
    def meant_shape(self) -> tuple[int, ...]:
        """The shape of the weight.

        It differs from ``shape`` only for a stored tensor of a block type of GGUF, whose ``shape`` is in bytes. A view
        of a quantised tensor is not stored: its ``dtype`` may have the same name as a block type (mxfp4), but its
        ``shape`` is already the shape of the weight.
        """
        dtype = DTYPES.get(self.dtype)
        if dtype is None or dtype.block is None or self.storage is None:
            return self.shape
        return (*self.shape[:-1], self.shape[-1] // dtype.block[1] * dtype.block[0])

    @property
    def parameters(self) -> int:
        """The number of parameters: 0 unless the type is a real or complex float; two in one element count as two."""
        dtype = DTYPES[self.dtype]
        return self.numel * dtype.values if dtype.is_floating else 0

    @property
    def itemsize(self) -> int:
        """The size of one element in bytes; 1 for elements of fewer than 8 bits: their tensors are copied whole."""
        return max(1, DTYPES[self.dtype].bits // 8)

    @property
    def is_plain(self) -> bool:
        """Whether the file stores the values contiguously, as plain bytes."""
        return (
            not self.opaque
            and self.stride is None
            and not (self.conj or self.neg)
            and self.storage is not None
            and not (self.storage.big_endian and self.itemsize > 1)
        )

    @property
    def place(self) -> Hashable:
        """A key that is equal for two tensors if they are aliases: the same elements of the same storage.

        It is None if the values are neither plain bytes nor quantised by torch. A conjugate view is not an alias: it
        has the same bytes as its tensor but other values. The stride of a dimension with one element is ignored: a
        hostile file could otherwise choose these strides so that the hashes of many tensors collide.
        """
        if self.made is not None:
            return (id(self.made), self.shape)
        quantiser = self._quantiser if self.opaque else ()
        if self.storage is None or quantiser is None:
            return None
        steps = self.stride and tuple(
            step if size > 1 else 0 for size, step in zip(self.shape, self.stride, strict=True)
        )
        return (id(self.storage), self.offset, self.shape, steps, self.dtype, self.conj, self.neg, *quantiser)

    @property
    def _quantiser(self) -> tuple[Hashable, ...] | None:
        """A value that is equal for tensors that torch quantised with equal scales and zero points; else None."""
        found = self.parts[0] if self.parts and DTYPES[self.dtype].kind == "quantized" else None
        if not isinstance(found, tuple) or not all(isinstance(one, (int, float, TensorInfo)) for one in found[1:]):
            return None
        scheme, *numbers = found
        return (str(scheme), *(one.place if isinstance(one, TensorInfo) else one for one in numbers))


def tied_keys(tensors: Mapping[str, TensorInfo]) -> dict[str, str]:
    """Return {key: first key with the same stored bytes}, for each key that shares its bytes with an earlier key."""
    begins = {(id(info.storage), info.offset) for info in tensors.values()}
    if len(begins) == len(tensors):  # as in most files; this takes a third of the time
        return {}
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


@dataclass(frozen=True)
class Sliced:
    """The slice of the tensor ``of`` that starts at the indices ``begin`` and has the shape of the result."""

    of: TensorInfo
    begin: tuple[int, ...]


@dataclass(frozen=True)
class Taken:
    """The elements of the tensor ``of`` at some indices along the dimension ``dim``, in the order of ``runs``.

    ``runs`` has pairs (begin, end), each for the indices from ``begin`` up to, but not including, ``end``. An index may
    occur several times.
    """

    of: TensorInfo
    dim: int
    runs: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Permuted:
    """The tensor ``of`` with its dimensions in another order: dimension ``i`` is dimension ``dims[i]`` of ``of``."""

    of: TensorInfo
    dims: tuple[int, ...]


@dataclass(frozen=True)
class Reshaped:
    """The elements of the tensor ``of``, in row-major order, in another shape."""

    of: TensorInfo


@dataclass(frozen=True)
class Concatenated:
    """The tensors ``of`` concatenated along the dimension ``dim``."""

    of: tuple[TensorInfo, ...]
    dim: int


@dataclass(frozen=True)
class Scaled:
    """The tensor ``of`` multiplied by ``factor`` in double precision, and then rounded to the dtype of ``of``."""

    of: TensorInfo
    factor: float


@dataclass(frozen=True)
class ExpScaled:
    """A tensor times e to the power of an exponent, in double precision, then rounded to the tensor's dtype.

    ``of`` has the tensor, and the tensor whose only element is the exponent.
    """

    of: tuple[TensorInfo, TensorInfo]


@dataclass(frozen=True)
class Shifted:
    """The tensor ``of`` plus ``by``, added in double precision, then rounded to float32 (a float64 is not rounded)."""

    of: TensorInfo
    by: float


@dataclass(frozen=True)
class Noisy:
    """The tensor ``of`` multiplied by random factors, then rounded to the dtype of ``of``.

    The mean of the factors of all copies of an element is 1. The ranges of indices in ``runs``, one after the other,
    list for each index along ``dim`` the index that it is a copy of. ``tensors.ops.noise`` computes the factors from
    ``by`` and ``seed``.
    """

    of: TensorInfo
    dim: int
    runs: tuple[tuple[int, int], ...]
    by: float
    seed: int


@dataclass(frozen=True)
class Summed:
    """The sum of the tensors ``of``, added element by element in double precision, and then rounded to their dtype.

    If ``is_mean`` is true, the sum is divided by their number before it is rounded. If there are ``weights``, each
    tensor is multiplied by its weight before it is added.
    """

    of: tuple[TensorInfo, ...]
    is_mean: bool = False
    weights: tuple[float, ...] = ()


@dataclass(frozen=True)
class Cast:
    """The values of the tensor ``of`` rounded to another floating-point dtype."""

    of: TensorInfo


@dataclass(slots=True, unsafe_hash=True)  # treated as frozen, see Storage
class Decoded:
    """A weight that is decoded from a quantised tensor, as float32.

    ``parts`` are the stored tensors of the quantised tensor, as (role, tensor), the codes first; a role is for example
    ``scale``. ``encoding`` is the name of the module of ``tensors.decoders`` that decodes them. ``facts`` are the
    numbers that this module needs, as (name, number), such as ("bits", 4). ``name`` is the key of the weight, for
    messages.
    """

    parts: tuple[tuple[str, TensorInfo], ...]
    encoding: str
    facts: tuple[tuple[str, float], ...] = ()
    name: str = ""

    @property
    def of(self) -> tuple[TensorInfo, ...]:
        """The stored tensors, the codes first."""
        return tuple(info for _, info in self.parts)


@dataclass(frozen=True)
class Encoded:
    """One stored tensor of a quantised tensor (its codes, scales or zero points), computed from the values.

    ``of`` has the tensor that is quantised, followed by the tensors that share its global scale. If ``facts`` has
    ``ordered``, it is followed by its ``g_idx`` instead (the index of the group of each column). ``encoding`` is the
    name of the module of ``tensors.encoders`` that computes this stored tensor. ``role`` says which one it is: codes,
    scale, bias, zero (zero points), nested (scales of the scales), whole (global scale) or shape. ``steps`` is how many
    elements along each dimension share a scale. ``scale_dtype`` is the dtype in which scales are stored, '' if they are
    in the codes. ``facts`` are the numbers that the encoder needs, as (name, number), such as ("bits", 4). For
    messages, ``name`` is the key of the weight and ``others`` are the keys of the tensors that share its global scale.
    """

    of: tuple[TensorInfo, ...]
    encoding: str
    role: str
    steps: tuple[int, ...]
    scale_dtype: str
    facts: tuple[tuple[str, float], ...] = ()
    name: str = ""
    others: tuple[str, ...] = ()


@dataclass(frozen=True)
class Given:
    """The numbers ``values``, in row-major order, which are stored in the plan itself; no tensor is read."""

    values: tuple[float, ...]

    @property
    def of(self) -> tuple[TensorInfo, ...]:
        """The tensors that this operation uses: none."""
        return ()


@dataclass(frozen=True)
class Averaged:
    """The mean of all elements of the tensor ``of`` along ``dim``, added in order in double precision, then rounded.

    The dimension stays, with the size 1.
    """

    of: TensorInfo
    dim: int


@dataclass(frozen=True)
class Filled:
    """A tensor in which every element is ``value``; no tensor is read."""

    value: float

    @property
    def of(self) -> tuple[TensorInfo, ...]:
        """The tensors that this operation uses: none."""
        return ()


Made: TypeAlias = (
    Given
    | Filled
    | Decoded
    | Encoded
    | Sliced
    | Taken
    | Permuted
    | Reshaped
    | Concatenated
    | Scaled
    | ExpScaled
    | Shifted
    | Noisy
    | Summed
    | Averaged
    | Cast
)
