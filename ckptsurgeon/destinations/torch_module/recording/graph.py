"""The operations of a constructor, recorded as nodes with the storages that they fill or change, and their replay.

A replay runs only the operations that the requested tensors depend on. Each random operation has a separate seed. It is
computed from the user's seed, the first state-dict key whose tensor depends on the operation, and the operation's index
among the operations with the same key. So the values of a tensor do not depend on which other tensors are drawn, or in
which order.
"""

from __future__ import annotations

import hashlib
import weakref
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import _disable_current_modes

__all__ = [
    "META",
    "Node",
    "Recording",
    "StorageView",
    "Streams",
    "Unrecordable",
    "behind",
    "covers",
    "default_dtype",
    "derived_seed",
    "evaluate",
    "instances_in",
    "replaced",
    "replay",
    "tensors_in",
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
    ``default_dtype`` is torch's default dtype at the operation: constructors may change it.
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
    default_dtype: torch.dtype = field(default_factory=torch.get_default_dtype)


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


Streams = Mapping[int, tuple[str, int]]
"""{index of a random node: (first key whose tensor depends on the node, index of the node for that key)}."""


def derived_seed(seed: int, key: str, place: int) -> int:
    """Return the seed of a random operation, computed with SHA-256 from ``seed``, ``key`` and ``place``.

    ``key`` is the first state-dict key whose tensor depends on the operation. ``place`` is the index of the operation
    among the operations with the same ``key``.
    """
    digest = hashlib.sha256(f"{seed}\0{key}\0{place}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def behind(record: Recording, storages: Iterable[int]) -> list[Node]:
    """Return the recorded operations on which the values of some storages depend, in the order in which they ran.

    An operation is left out if a later operation overwrites everything that it wrote.
    """
    found: dict[int, Node] = {}
    waiting = [(storage, len(record.nodes)) for storage in storages]
    walked: set[tuple[int, int]] = set()
    while waiting:
        storage, end = waiting.pop()
        writers = record.writers.get(storage, [])
        for node in reversed(writers[: bisect_left(writers, end, key=lambda node: node.index)]):
            if (storage, node.index) in walked:  # then the nodes before this one were walked as well
                break
            walked.add((storage, node.index))
            if node.index not in found:
                found[node.index] = node
                waiting.extend((other, node.index) for other in node.reads)
            if node.overwrites:
                break
    return [found[index] for index in sorted(found)]


def evaluate(record: Recording, ref: StorageView) -> Tensor:
    """Return the values that the recorded tensor ``ref`` has now, while the module is being constructed.

    Raises Unrecordable if the values depend on a random operation.
    """
    nodes = behind(record, [ref.storage])
    if any(node.random for node in nodes):
        raise record.lost("reads the values of a tensor that was just drawn")
    with _disable_current_modes(), torch._C.DisableTorchFunction(), torch.no_grad():
        return replay(record, nodes, ref, seed=0, streams={})


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Make ``dtype`` torch's default dtype during the block, and restore the earlier one afterwards."""
    before = torch.get_default_dtype()
    if before is not dtype:  # rare: of most constructors, all operations have the same
        torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        if torch.get_default_dtype() is not before:
            torch.set_default_dtype(before)


def replay(record: Recording, nodes: Sequence[Node], wanted: StorageView, *, seed: int, streams: Streams) -> Tensor:
    """Run the recorded operations ``nodes`` again, now on real memory, and return the view ``wanted`` as a tensor.

    The seed of each random operation is computed from ``seed`` and the operation's key and index in ``streams``.
    """
    last = {storage: node.index for node in nodes for storage in node.reads | node.writes}
    last[wanted.storage] = len(record.nodes)
    real: dict[int, torch.UntypedStorage] = {}
    for node in nodes:
        if node.call is torch.ops.aten.clone.default and _steal(node, real, last):
            continue
        args, kwargs = replaced((node.args, node.kwargs), StorageView, partial(_tensor, record, real))
        if node.random:
            torch.default_generator.manual_seed(derived_seed(seed, *streams[node.index]))
        with default_dtype(node.default_dtype):
            out = node.call(*args, **kwargs)
        made = tensors_in(out)
        for ref, tensor in zip(node.outputs, made, strict=False):
            if ref is not None:
                _bind(record, real, ref, tensor)
        del args, kwargs, out, made
        for storage in [s for s in real if last.get(s, -1) <= node.index]:
            del real[storage]
    return _tensor(record, real, wanted)


def _steal(node: Node, real: dict[int, torch.UntypedStorage], last: Mapping[int, int]) -> bool:
    """Let a clone's output use the storage of its input if no later node uses the input; return whether it does."""
    source, target = node.args[0], node.outputs[0]
    if not isinstance(source, StorageView) or target is None or last.get(source.storage) != node.index:
        return False
    if source.storage not in real or source[1:] != target[1:]:
        return False
    real[target.storage] = real.pop(source.storage)
    return True


def _tensor(record: Recording, real: dict[int, torch.UntypedStorage], ref: StorageView) -> Tensor:
    """Return a view as a tensor with storage; if no operation has written that storage, it is filled with zeros."""
    storage = real.get(ref.storage)
    if storage is None:
        nbytes = record.storages[ref.storage].nbytes()
        storage = real[ref.storage] = torch.zeros(nbytes, dtype=torch.uint8).untyped_storage()
    return torch.empty(0, dtype=ref.dtype).set_(storage, ref.offset, ref.size, ref.stride)


def _bind(record: Recording, real: dict[int, torch.UntypedStorage], ref: StorageView, tensor: Tensor) -> None:
    """Make the result ``tensor`` of an operation available to later operations, which refer to it as ``ref``.

    If ``tensor`` has the same layout as ``ref``, its storage is used; otherwise its values are copied.
    """
    same = tensor.stride() == ref.stride and tensor.storage_offset() == ref.offset
    if tensor.dtype != ref.dtype or tuple(tensor.shape) != ref.size:
        raise Unrecordable("makes a tensor of another dtype or shape with storage than without storage")
    if same and tensor.untyped_storage().nbytes() >= record.storages[ref.storage].nbytes():
        real[ref.storage] = tensor.untyped_storage()
    else:
        _tensor(record, real, ref).copy_(tensor)


# The tensors in nested arguments of operations.
#
# ``torch.utils._pytree`` walks over all kinds of containers, but takes half of the time that a construction takes.
# So tuples, lists and dicts are walked directly here, and ``_pytree`` handles only other containers.

Kind = type[Any] | tuple[type[Any], ...]

_LEAVES = frozenset(
    {int, float, bool, complex, str, type(None), torch.dtype, torch.device, torch.layout, torch.memory_format}
)
"""Types of arguments that contain no other values."""


def tensors_in(tree: Any) -> list[Tensor]:
    """Return all tensors in nested arguments."""
    return instances_in(tree, Tensor)


def instances_in(tree: Any, kind: Kind) -> list[Any]:
    """Return all objects of the class ``kind`` in nested arguments."""
    found: list[Any] = []
    _collect(tree, kind, found)
    return found


def _collect(tree: Any, kind: Kind, found: list[Any]) -> None:
    own = type(tree)
    if own is tuple or own is list or own is dict:
        for item in tree.values() if own is dict else tree:
            if isinstance(item, kind):
                found.append(item)
            elif type(item) not in _LEAVES:
                _collect(item, kind, found)
    elif isinstance(tree, kind):
        found.append(tree)
    elif own not in _LEAVES and not isinstance(tree, Tensor):
        leaves = pytree.tree_leaves(tree, is_leaf=lambda node: isinstance(node, kind))
        found += [leaf for leaf in leaves if isinstance(leaf, kind)]


def replaced(tree: Any, kind: Kind, replace: Callable[[Any], Any]) -> Any:
    """Return the nested arguments ``tree`` with each value of the class ``kind`` replaced by ``replace(value)``."""
    own = type(tree)
    if own is tuple:
        return tuple([replaced(item, kind, replace) for item in tree])
    if own is list:
        return [replaced(item, kind, replace) for item in tree]
    if own is dict:
        return {key: replaced(item, kind, replace) for key, item in tree.items()}
    if isinstance(tree, kind):
        return replace(tree)
    if own in _LEAVES or isinstance(tree, Tensor):
        return tree
    return pytree.tree_map(
        lambda leaf: replace(leaf) if isinstance(leaf, kind) else leaf,
        tree,
        is_leaf=lambda node: isinstance(node, kind),
    )
