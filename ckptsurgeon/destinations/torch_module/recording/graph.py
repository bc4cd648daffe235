"""Stores the operations of a constructor as nodes, with the storages that they fill or change."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .trees import instances_in, tensors_in

__all__ = [
    "ALLOCATES",
    "BY_SIZE",
    "COPIES",
    "META",
    "OVERWRITES",
    "REBINDS",
    "SMALL",
    "Node",
    "Recording",
    "StorageView",
    "Unrecordable",
    "aten",
    "changed_by",
    "constant_size",
    "covers",
    "draws",
    "makes",
]

META = torch.device("meta")


class Unrecordable(Exception):  # noqa: N818 - caught by the caller, never shown as an error
    """The error for an operation of a constructor that cannot be recorded."""


class StorageView(NamedTuple):
    """A view of the recorded storage with index ``storage``; ``offset`` and ``stride`` are in elements of ``dtype``."""

    storage: int
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype


@dataclass(eq=False)
class Node:
    """One operation: its arguments (tensors as StorageView), and the indices of the storages that it reads and writes.

    ``overwrites`` is true if the operation replaces all values of the storage that it writes; ``copies`` is true if it
    only copies values. ``outputs`` has a StorageView for each returned tensor with a new storage, and None for others.
    """

    index: int
    call: Callable[..., Any]
    args: Any
    kwargs: dict[str, Any]
    reads: frozenset[int]
    writes: frozenset[int]
    outputs: tuple[StorageView | None, ...] = ()
    random: bool = False
    overwrites: bool = False
    copies: bool = False


@dataclass
class Recording:
    """All nodes of a construction, the nodes that write to each storage, and the storages (on the meta device)."""

    nodes: list[Node] = field(default_factory=list)
    writers: dict[int, list[Node]] = field(default_factory=dict)
    storages: list[torch.UntypedStorage] = field(default_factory=list)
    numbers: dict[int, int] = field(default_factory=dict)
    twins: dict[int, torch.UntypedStorage] = field(default_factory=dict)
    faces: list[torch.UntypedStorage] = field(default_factory=list)
    ghosts: list[weakref.ref[Tensor]] = field(default_factory=list)
    failure: str = ""

    def lost(self, why: str) -> Unrecordable:
        """Return the exception for an operation that cannot be recorded; ``why`` is the reason.

        The recording is marked as failed, even if the constructor catches the exception.
        """
        self.failure = self.failure or why
        return Unrecordable(why)

    def ref(self, tensor: Tensor) -> StorageView:
        """Return a recorded tensor as a view of its storage."""
        if tensor.layout is not torch.strided:
            raise self.lost(f"makes a {tensor.layout} tensor")
        if tensor.is_conj() or tensor.is_neg():
            raise self.lost("makes a view that is computed when it is read (conj, imag)")
        storage = tensor.untyped_storage()
        number = self.numbers.get(storage._cdata)
        if number is None:
            number = self.numbers[storage._cdata] = len(self.storages)
            self.storages.append(storage)  # kept alive, so that its address is not reused
        return StorageView(number, int(tensor.storage_offset()), tuple(tensor.shape), tensor.stride(), tensor.dtype)

    def adopt(self, tensor: Tensor) -> StorageView:
        """Add a real tensor to the recording, with a storage on the meta device as its twin; return its view."""
        ref = self.ref(tensor)
        nbytes = tensor.untyped_storage().nbytes()
        twin = torch.empty(nbytes, dtype=torch.uint8, device=META).untyped_storage()
        self.twins[ref.storage] = twin
        self.numbers[twin._cdata] = ref.storage
        return ref

    def face(self, ghost: Tensor) -> Tensor:
        """Return a CPU tensor that stands for ``ghost``, a recorded meta tensor; the recording treats both as one.

        Such a stand-in is needed if torch requires a CPU tensor, as for ``.data`` of another CPU tensor.
        """
        ref = self.ref(ghost)
        self.twins[ref.storage] = self.storages[ref.storage]
        storage = torch.empty(self.storages[ref.storage].nbytes(), dtype=torch.uint8).untyped_storage()
        self.numbers[storage._cdata] = ref.storage
        self.faces.append(storage)  # kept alive, like the storages
        return torch.empty(0, dtype=ref.dtype).set_(storage, ref.offset, ref.size, ref.stride)

    def twin(self, tensor: Tensor) -> Tensor:
        """Return a tensor on the meta device with the same view as ``tensor``, a real tensor of the recording."""
        ref = self.ref(tensor)
        ghost = torch.empty(0, dtype=ref.dtype, device=META)
        return ghost.set_(self.twins[ref.storage], ref.offset, ref.size, ref.stride)

    def knows(self, tensor: Tensor) -> bool:
        """Return whether the storage of a tensor is in the recording."""
        return tensor.untyped_storage()._cdata in self.numbers

    def add(self, node: Node) -> None:
        """Append an operation to the recording."""
        self.nodes.append(node)
        made = {ref.storage for ref in node.outputs if ref is not None}
        for storage in node.writes | made:
            self.writers.setdefault(storage, []).append(node)


def covers(ref: StorageView, record: Recording) -> bool:
    """Return whether a view covers its whole storage, each element once."""
    elements = 1
    for size in ref.size:
        elements *= size
    return elements * ref.dtype.itemsize == record.storages[ref.storage].nbytes() and _dense(ref)


def _dense(ref: StorageView) -> bool:
    expected = 1
    for stride, size in sorted(zip(ref.stride, ref.size, strict=True)):
        if size != 1:
            if stride != expected:
                return False
            expected *= size
    return True


# The effects of torch's operations on tensors, by the names and schemas of the operations.

aten = torch.ops.aten

ALLOCATES = {
    "aten::empty",
    "aten::empty_like",
    "aten::new_empty",
    "aten::empty_strided",
    "aten::new_empty_strided",
}
"""Operations that allocate memory, but write no values."""
COPIES = {"aten::clone", "aten::copy_", "aten::detach", "aten::alias"}
"""Operations that copy values unchanged."""
REBINDS = {"aten::set_", "aten::resize_", "aten::detach_", "aten::requires_grad_"}
"""Operations that change a tensor's storage, size or autograd state, but no values."""
OVERWRITES = {
    "aten::normal_", "aten::uniform_", "aten::zero_", "aten::fill_", "aten::copy_", "aten::random_", "aten::bernoulli_",
    "aten::exponential_", "aten::log_normal_", "aten::cauchy_", "aten::geometric_", "aten::eye",
}  # fmt: skip
"""Operations that overwrite every element of the tensor that they change."""
SMALL = {
    "aten::arange", "aten::eye", "aten::full", "aten::linspace", "aten::logspace", "aten::ones", "aten::zeros",
    "aten::scalar_tensor", "aten::tril_indices", "aten::triu_indices", "aten::hann_window", "aten::hamming_window",
}  # fmt: skip
"""Operations that make constants; small constants are made with storage, so that constructors can read them."""
BY_SIZE = {aten.rand.default, aten.randn.default, aten.rand.generator, aten.randn.generator}
"""Random operations whose first argument is the size of the result; torch's shape function would import sympy."""


@cache
def draws(func: Any) -> bool:
    """Return whether an operation uses the random generator."""
    return torch.Tag.nondeterministic_seeded in func.tags


def constant_size(func: Any, args: Any) -> Any:
    """Return an estimate of how many elements an operation such as ``torch.arange`` makes with ``args``.

    If the arguments do not determine this, the estimate is the largest number in them.
    """
    name = func._schema.name
    numbers = instances_in(args, (int, float))
    if name in ("aten::ones", "aten::zeros", "aten::full"):
        return math.prod(args[0])
    if name in ("aten::eye", "aten::tril_indices", "aten::triu_indices"):
        return math.prod(int(number) for number in numbers[:2]) * (numbers[0] if len(numbers) == 1 else 1)
    if name == "aten::arange" and len(numbers) == 3:
        return int(abs((numbers[1] - numbers[0]) / (numbers[2] or 1)))
    if name in ("aten::linspace", "aten::logspace"):
        return int(numbers[2])
    return int(max(map(abs, numbers), default=1))


@cache
def makes(func: Any) -> bool:
    """Return whether an operation makes a new tensor: it has an argument for the device of its result."""
    return any(argument.name == "device" for argument in func._schema.arguments)


def changed_by(func: Any, args: Any, kwargs: Any) -> list[Tensor]:
    """Return the tensors in the arguments that an operation changes according to its schema."""
    if _changes_view(func):
        return []
    found: list[Tensor] = []
    for position, name in _written(func):
        found += tensors_in(args[position] if position < len(args) else kwargs.get(name))
    return found or _changed_unsaid(func, args)


@cache
def _changes_view(func: Any) -> bool:
    return torch.Tag.inplace_view in func.tags


@cache
def _written(func: Any) -> tuple[tuple[int, str], ...]:
    """Return the position and the name of each argument to which an operation writes according to its schema."""
    arguments = enumerate(func._schema.arguments)
    return tuple((at, one.name) for at, one in arguments if one.alias_info is not None and one.alias_info.is_write)


def _changed_unsaid(func: Any, args: Any) -> list[Tensor]:
    """Return the running statistics that a batch norm changes in training, although its schema does not declare it."""
    if func is not aten.native_batch_norm.default or not args[5]:
        return []
    return tensors_in(args[3:5])
