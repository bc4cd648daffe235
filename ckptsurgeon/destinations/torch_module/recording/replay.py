"""Runs only the recorded operations that the requested tensors depend on.

Each random operation has a separate seed. It is computed from the user's seed, the first state-dict key whose tensor
depends on the operation, and the operation's index among the operations with the same key. So the values of a tensor do
not depend on which other tensors are drawn, or in which order.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from ..seeding import derived_seed
from .graph import Node, Recording, StorageView, Unrecordable, aten
from .trees import replaced, tensors_in

__all__ = ["Streams", "behind", "evaluate", "replay"]

Streams = Mapping[int, tuple[str, int]]
"""{index of a random node: (first key whose tensor depends on the node, index of the node for that key)}."""


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


def deterministic(nodes: Iterable[Node]) -> bool:
    """Return whether none of the recorded operations uses the random generator."""
    return not any(node.random for node in nodes)


def evaluate(record: Recording, ref: StorageView) -> Tensor:
    """Return the values that the recorded tensor ``ref`` has now, while the module is being constructed.

    Raises Unrecordable if the values depend on a random operation.
    """
    nodes = behind(record, [ref.storage])
    if not deterministic(nodes):
        raise record.lost("reads the values of a tensor that was just drawn")
    with _disable_current_modes(), torch._C.DisableTorchFunction(), torch.no_grad():
        return replay(record, nodes, ref, seed=0, streams={})


def replay(record: Recording, nodes: Sequence[Node], wanted: StorageView, *, seed: int, streams: Streams) -> Tensor:
    """Run the recorded operations ``nodes`` again, now on real memory, and return the view ``wanted`` as a tensor.

    The seed of each random operation is computed from ``seed`` and the operation's key and index in ``streams``.
    """
    last = {storage: node.index for node in nodes for storage in node.reads | node.writes}
    last[wanted.storage] = len(record.nodes)
    real: dict[int, torch.UntypedStorage] = {}
    for node in nodes:
        if node.call is aten.clone.default and _steal(node, real, last):
            continue
        args, kwargs = replaced((node.args, node.kwargs), StorageView, partial(_tensor, record, real))
        if node.random:
            torch.default_generator.manual_seed(derived_seed(seed, *streams[node.index]))
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
