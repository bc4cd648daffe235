"""What a recording holds: the operations of a construction as nodes, and the storages they read and change."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = ["META", "Node", "Recording", "Ref", "Unrecordable", "covers"]

META = torch.device("meta")


class Unrecordable(Exception):  # noqa: N818 - a signal between two modules, never shown as an error
    """The constructor does what a recording cannot follow."""


class Ref(NamedTuple):
    """A view of a recorded storage: ``offset`` and ``stride`` in elements of ``dtype``."""

    storage: int
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype


@dataclass(eq=False)
class Node:
    """One operation: what it is called with (tensors as Ref), what it reads, changes and makes.

    ``overwrites`` is set where nothing of the destination's old values survives, ``copies`` where values stay as
    they are. ``outputs`` holds a Ref for each
    tensor it returns over a storage that it made.
    """

    index: int
    call: Callable[..., Any]
    args: Any
    kwargs: dict[str, Any]
    reads: frozenset[int]
    writes: frozenset[int]
    outputs: tuple[Ref | None, ...] = ()
    random: bool = False
    overwrites: bool = False
    copies: bool = False


@dataclass
class Recording:
    """The nodes of a construction, the writers of each storage, and the storages themselves (without bytes)."""

    nodes: list[Node] = field(default_factory=list)
    writers: dict[int, list[Node]] = field(default_factory=dict)
    storages: list[torch.UntypedStorage] = field(default_factory=list)
    numbers: dict[int, int] = field(default_factory=dict)
    twins: dict[int, torch.UntypedStorage] = field(default_factory=dict)
    faces: list[torch.UntypedStorage] = field(default_factory=list)
    ghosts: list[weakref.ref[Tensor]] = field(default_factory=list)
    failure: str = ""

    def lost(self, why: str) -> Unrecordable:
        """Return what to raise where the recording cannot follow; it counts even if the constructor catches it."""
        self.failure = self.failure or why
        return Unrecordable(why)

    def ref(self, tensor: Tensor) -> Ref:
        """Return the view that a recorded tensor is."""
        if tensor.layout is not torch.strided or tensor.is_conj() or tensor.is_neg():
            raise self.lost(f"makes a {tensor.layout} tensor")
        storage = tensor.untyped_storage()
        number = self.numbers.get(storage._cdata)
        if number is None:
            number = self.numbers[storage._cdata] = len(self.storages)
            self.storages.append(storage)  # kept, so that its address is never used again
        return Ref(number, int(tensor.storage_offset()), tuple(tensor.shape), tensor.stride(), tensor.dtype)

    def adopt(self, tensor: Tensor) -> Ref:
        """Take a real tensor into the recording, with a twin without bytes for working out shapes."""
        ref = self.ref(tensor)
        nbytes = tensor.untyped_storage().nbytes()
        twin = torch.empty(nbytes, dtype=torch.uint8, device=META).untyped_storage()
        self.twins[ref.storage] = twin
        self.numbers[twin._cdata] = ref.storage
        return ref

    def face(self, ghost: Tensor) -> Tensor:
        """Return a real tensor that stands for the same recorded view as a ghost: only real ones take real data."""
        ref = self.ref(ghost)
        self.twins[ref.storage] = self.storages[ref.storage]
        storage = torch.empty(self.storages[ref.storage].nbytes(), dtype=torch.uint8).untyped_storage()
        self.numbers[storage._cdata] = ref.storage
        self.faces.append(storage)  # kept, as the storages are
        return torch.empty(0, dtype=ref.dtype).set_(storage, ref.offset, ref.size, ref.stride)

    def twin(self, tensor: Tensor) -> Tensor:
        """Return a meta tensor that is the same view of the same recorded storage."""
        ref = self.ref(tensor)
        ghost = torch.empty(0, dtype=ref.dtype, device=META)
        return ghost.set_(self.twins[ref.storage], ref.offset, ref.size, ref.stride)

    def knows(self, tensor: Tensor) -> bool:
        """Whether the storage of a tensor has been seen."""
        return tensor.untyped_storage()._cdata in self.numbers

    def add(self, node: Node) -> None:
        """Append a node."""
        self.nodes.append(node)
        made = {ref.storage for ref in node.outputs if ref is not None}
        for storage in node.writes | made:
            self.writers.setdefault(storage, []).append(node)


def covers(ref: Ref, record: Recording) -> bool:
    """Whether a view is all of its storage, each element once."""
    elements = 1
    for size in ref.size:
        elements *= size
    return elements * ref.dtype.itemsize == record.storages[ref.storage].nbytes() and _dense(ref)


def _dense(ref: Ref) -> bool:
    expected = 1
    for stride, size in sorted(zip(ref.stride, ref.size, strict=True)):
        if size != 1:
            if stride != expected:
                return False
            expected *= size
    return True
