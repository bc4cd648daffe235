"""Reads the weights that quantised layers of torch.ao pack into one entry of a state dict.

``Linear`` packs its weight and bias into a tuple. A recurrent layer packs them into objects of torch's C++ classes. In
a pickled module or a TorchScript archive, every layer has such an object, and a convolution has its state as a tuple.
https://github.com/pytorch/pytorch/tree/main/torch/ao/nn/quantized
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias, TypeGuard

from ..formats.pickle.values import GlobalName, OpaqueResult, brief
from ..tensors.dtypes import DTYPES
from ..tensors.info import TensorInfo
from ..tensors.torch_quantisers import OWN_PICKLE, PACKED
from ..util.note_kind import NoteKind
from ..util.notes import Note, notes_of
from ..util.text import count, escape, listing

__all__ = ["Packing", "is_script_object", "unpacked"]

Entries: TypeAlias = Mapping[Any, Any]
Tensors: TypeAlias = dict[str, TensorInfo]
Take: TypeAlias = Callable[[int], None]
"""A function ``take(characters)`` that counts a value whose key has this length; raises UnsafeError above a limit."""

LAYER = "._packed_params"
"""The submodule of a quantised ``Linear`` or embedding that contains its packed weight."""
LINEAR = {
    f"{LAYER}._packed_params": (".weight", ".bias"),
    "._packed_weight_ih": (".weight_ih", ".bias_ih"),
    "._packed_weight_hh": (".weight_hh", ".bias_hh"),
}
"""{end of a packed entry's key: ends of the keys of its weight and bias}: for Linear and for cells such as LSTMCell."""
EMBEDDING = f"{LAYER}._packed_weight"
RECURRENT = re.compile(r"(.*)\._all_weight_values\.(\d{1,4})\.param")
"""Matches the key of the packed weights of one layer and direction of LSTM or GRU."""
SCRIPTED = "__torch__"
"""The module name of each class of TorchScript, and of each of torch's C++ classes, begins with this text."""
OF_CONVOLUTION, ITS_WEIGHT = 15, 10
"""The number of values in the state of a pickled convolution, and the index of its weight; its bias comes next."""
UNUSED = (".scale", ".zero_point")
"""The entries of a quantised Linear that are not used if its weight is stored as 16-bit floats."""
SHOWN = 3


@dataclass(frozen=True)
class Packing:
    """The packed entries of a state dict.

    ``layers`` are the modules whose packed weights are read. ``unread`` has {key of an entry that cannot be read: name
    of its class}. ``own`` has {module whose class defines its own pickling, so that it cannot be read: name of this
    class}, without quantised layers. ``unused`` has tensors that a packed layer saves but does not use.
    """

    layers: tuple[str, ...] = ()
    unread: Mapping[str, str] = field(default_factory=dict)
    unused: Mapping[str, TensorInfo] = field(default_factory=dict)
    own: Mapping[str, str] = field(default_factory=dict)

    @notes_of(NoteKind.REMARK)
    def notes(self) -> Iterator[str]:
        """Yield a note on the quantised layers whose packed weights are read as tensors."""
        if self.layers:
            layers = f"{count(len(self.layers), 'layer')}: {listing(self.layers, SHOWN)}"
            yield f"packed weights of torch.ao are read, and written, as tensors (weight, bias) in {layers}"

    def faults(self, path: str) -> Iterator[Note]:
        """Yield a note on the entries of the file ``path`` that are not read."""
        if self.own:
            each = [f"{key} ({kind})" for key, kind in self.own.items()]
            modules = count(
                len(each),
                "module whose class defines its own pickling",
                "modules whose classes define their own pickling",
            )
            yield Note(
                NoteKind.UNREADABLE_MODULES,
                f"{escape(path)}: ckpt cannot read {modules}: {listing(each, SHOWN)}",
            )
        if self.unread:
            each = [f"{key} ({kind})" for key, kind in self.unread.items()]
            packed = f"{count(len(each), 'entry', 'entries')} of quantised layers"
            hold = "holds" if len(each) == 1 else "hold"
            yield Note(
                NoteKind.UNKNOWN_PACKING,
                f"{escape(path)}: {packed} {hold} packed weights that ckpt does not read: {listing(each, SHOWN)}",
            )


def unpacked(entries: Entries, take: Take, *, is_module: bool) -> tuple[Entries, Packing | None]:
    """Return a state dict with tensors in place of packed weights, and a ``Packing`` of these, None if there are none.

    If an entry cannot be read, each tensor inside it becomes a tensor without values. Then the tensor is counted, and
    commands that would lose it refuse to run. ``take`` counts the values that are visited, and raises UnsafeError if
    there are too many. If ``is_module`` is true, the entries are from a pickled module, in which each object is a
    layer.
    """
    packed = {key: value for key, value in entries.items() if _is_packed(key, value, is_module=is_module)}
    if not packed:
        return entries, None
    read = _apart({**{key: _layer(key, value) for key, value in packed.items()}, **_recurrent(packed)}, entries)
    taken = {*entries, *(name for tensors in read.values() for name in tensors)}
    hidden = {key: _hidden(key, value, take, taken) for key, value in packed.items() if key not in read}
    unused = dict(_unused(read, entries))
    left = {*unused, *_dtypes(read, entries)}
    found: dict[Any, Any] = {}
    for key, value in entries.items():
        if key in packed and (is_module or key in read or hidden[key]):
            found.update(read[key] if key in read else hidden[key])
        elif key not in left:
            found[key] = value
    kinds = {key: _kind(packed[key]) for key, tensors in hidden.items() if tensors}
    own = {key: kind for key, kind in kinds.items() if not _is_quantised(key, packed[key])}
    unread = {key: kind for key, kind in kinds.items() if key not in own}
    return found, Packing(tuple(dict.fromkeys(map(_module, read))), unread, unused, own)


def _is_quantised(key: str, value: object) -> bool:
    """Return whether a packed entry belongs to a quantised layer; its key or the module of its class shows this."""
    if is_script_object(value) or not isinstance(value, OpaqueResult) or _module(key) != key:
        return True
    return isinstance(value.name, GlobalName) and ".quantized" in value.name.module


def is_script_object(value: object) -> bool:
    """Return whether a value is an object of a class of TorchScript or of one of torch's C++ classes."""
    if isinstance(value, OpaqueResult):
        return _is_scripted(value) or _has_class(value.state)
    return _has_class(value)


def _is_scripted(value: OpaqueResult) -> bool:
    return isinstance(value.name, GlobalName) and value.name.module.startswith(SCRIPTED)


def _has_class(value: object) -> TypeGuard[Sequence[Any]]:
    """Return whether a value is a pair (state, name of its class), as ``torch.ScriptObject`` pickles it."""
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        return False
    return type(value[1]) is str and value[1].startswith(SCRIPTED)


def _is_packed(key: object, value: object, *, is_module: bool) -> bool:
    if type(key) is not str:
        return False
    if isinstance(value, TensorInfo):
        return f".{key}".endswith(EMBEDDING)
    is_pair = isinstance(value, (list, tuple)) and f".{key}".endswith(tuple(LINEAR))
    return is_pair or is_script_object(value) or (is_module and isinstance(value, OpaqueResult))


def _content(value: object) -> Any:
    """Return the state of an object, without the name of its class; any other value unchanged."""
    state = value.state if isinstance(value, OpaqueResult) else value
    return state[0] if _has_class(state) else state


def _kind(value: object) -> str:
    """Return the name of the class of a packed value, for messages."""
    state = value.state if isinstance(value, OpaqueResult) else value
    name = state[1] if _has_class(state) else brief(value)
    return name.rpartition(".")[2]


def _module(key: str) -> str:
    """Return the name of the module that has the packed entry ``key``."""
    cell = RECURRENT.fullmatch(f".{key}")
    if cell is not None:
        return cell[1][1:]
    ends = (end for end in (*LINEAR, EMBEDDING) if f".{key}".endswith(end))
    return f".{key}".removesuffix(next(ends, ""))[1:]


def _layer(key: str, value: object) -> Tensors:
    """Return the weight and bias in a packed entry of Linear, a cell, an embedding or a convolution; {} for others."""
    content, stem = _content(value), _module(key)
    for end, names in LINEAR.items():
        if f".{key}".endswith(end):
            return _named(stem, names, _pair(content))
    if f".{key}".endswith(EMBEDDING):
        return _named(stem, (".weight",), _embedding(content))
    return _named(stem, (".weight", ".bias"), _convolution(value))


def _named(stem: str, ends: Iterable[str], tensors: Sequence[TensorInfo | None]) -> Tensors:
    return {f".{stem}{end}".lstrip("."): one for end, one in zip(ends, tensors, strict=False) if one is not None}


def _pair(content: Any) -> Sequence[TensorInfo | None]:
    """Return (weight, bias) of a packed Linear; () if ``content`` is something else.

    ``content`` is this pair; in a sparse Linear, two sizes follow, which are left out.
    """
    if not isinstance(content, (list, tuple)) or len(content) not in (2, 4):
        return ()
    weight, bias, *sizes = content
    is_pair = (
        isinstance(weight, TensorInfo) and len(weight.shape) == 2 and (bias is None or isinstance(bias, TensorInfo))
    )
    return (weight, bias) if is_pair and all(type(size) is int for size in sizes) else ()


def _embedding(content: Any) -> Sequence[TensorInfo]:
    """Return a sequence with the weight of a packed embedding alone; empty if ``content`` is something else.

    ``content`` is the weight, or a list (version, [weight], numbers, numbers).
    """
    parts = [content]
    if isinstance(content, (list, tuple)) and len(content) == 4:
        parts = _items(content[1])
    return parts if len(parts) == 1 and isinstance(parts[0], TensorInfo) else ()


def _convolution(value: object) -> Sequence[TensorInfo | None]:
    """Return (weight, bias) of a pickled convolution of torch.ao; () for anything else."""
    if not isinstance(value, OpaqueResult) or not isinstance(value.state, tuple) or len(value.state) != OF_CONVOLUTION:
        return ()
    weight, bias = value.state[ITS_WEIGHT : ITS_WEIGHT + 2]
    if not isinstance(value.name, GlobalName) or ".quantized." not in value.name.module:
        return ()
    return (weight, bias) if isinstance(weight, TensorInfo) and (bias is None or isinstance(bias, TensorInfo)) else ()


def _items(value: Any) -> list[Any]:
    """Return the items of a list, also of one that TorchScript tags with its type; [] for any other value."""
    if isinstance(value, OpaqueResult) and isinstance(value.args, tuple) and value.args:
        value = value.args[0]
    return list(value) if isinstance(value, (list, tuple)) else []


# LSTM and GRU: each layer and direction has an object with two packed pairs, for the input and for the hidden state.


def _recurrent(packed: Entries) -> dict[str, Tensors]:
    """Return {key of an entry: tensors} for all layers of LSTM and GRU that can be read."""
    layers: dict[str, dict[int, str]] = {}
    for key in packed:
        found = RECURRENT.fullmatch(f".{key}")
        if found is not None:
            layers.setdefault(found[1], {})[int(found[2])] = key
    read: dict[str, Tensors] = {}
    for stem, keys in layers.items():
        cells = [_cell(packed[keys[place]]) for place in range(len(keys)) if place in keys]
        directions = _directions(cells) if len(cells) == len(keys) and all(cells) else 0
        for place, cell in enumerate(cells if directions else ()):
            layer, is_reverse = divmod(place, directions)
            end = f"_l{layer}{'_reverse' * is_reverse}"
            names = [f".{part}{end}" for part in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
            read[keys[place]] = _named(stem[1:], names, cell)
    return read


def _cell(value: object) -> Sequence[TensorInfo | None]:
    """Return the weights and biases of one layer and direction of LSTM or GRU; () if they cannot be read.

    The order is: weight for the input, weight for the hidden state, and the biases of these two.
    """
    content = _content(value)
    parts = _items(content[4]) if isinstance(content, (list, tuple)) and len(content) == 5 else []
    pairs = [_pair(_content(part)) for part in parts]
    if len(pairs) != 2 or not all(pairs):
        return ()
    return tuple(one for both in zip(*pairs, strict=True) for one in both)


def _directions(cells: Sequence[Sequence[TensorInfo | None]]) -> int:
    """Return the number of directions of a recurrent layer, from the number of inputs of each cell; 0 if not known.

    The cells of a layer follow each other. From the second layer on, inputs are the hidden states of all directions.
    """
    inputs = [cell[0].shape[1] for cell in cells if cell[0] is not None]
    hidden = cells[0][1].shape[1] if cells[0][1] is not None else 0
    if len(cells) == 1:
        return 1
    if len(cells) == 2:
        return 0 if inputs[0] == hidden else 1 if inputs[1] == hidden else 2
    return 2 if inputs[2] == 2 * hidden else 1


# Entries that are not read, and entries that are not needed.


def _apart(read: Mapping[str, Tensors], entries: Collection[Any]) -> dict[str, Tensors]:
    """Return the items of ``read`` whose tensors can be added without a clash: no other entry has one of their keys.

    ``read`` has the tensors of each packed entry, {} if it cannot be read; ``entries`` has all keys of the state dict.
    """
    taken, found = set(entries), dict[str, Tensors]()
    for key, tensors in read.items():
        if tensors and taken.isdisjoint(tensors):
            found[key] = tensors
            taken |= tensors.keys()
    return found


def _hidden(key: str, value: object, take: Take, taken: Collection[Any]) -> Tensors:
    """Return all tensors inside a packed value that cannot be read, under the keys ``key.0``, ``key.1`` and so on.

    Their values cannot be read. Keys in ``taken``, which other tensors have, are skipped.
    """
    reason = PACKED if _is_quantised(key, value) else OWN_PICKLE
    waiting, seen, found = [value], set[int](), dict[object, TensorInfo]()
    while waiting:
        node = waiting.pop()
        take(len(key))
        if isinstance(node, TensorInfo):
            place = (id(node.storage), node.offset, node.shape, node.dtype)
            found.setdefault(place, replace(node, opaque=reason, parts=()))
        elif id(node) not in seen:
            seen.add(id(node))
            waiting += reversed(_inside(node))
    names = (name for number in itertools.count() if (name := f"{key}.{number}") not in taken)
    return dict(zip(names, found.values(), strict=False))


def _inside(node: object) -> Sequence[Any]:
    if isinstance(node, OpaqueResult):
        return (node.args, node.state, node.items)
    return [*node.values()] if isinstance(node, dict) else node if isinstance(node, (list, tuple)) else ()


def _dtypes(read: Iterable[str], entries: Entries) -> Iterator[str]:
    """Yield the keys of entries that only contain the dtype of a packed weight; the unpacked weight has this dtype."""
    for key in read:
        layer = key.rpartition(".")[0]
        if f".{layer}".endswith(LAYER) and not isinstance(entries.get(f"{layer}.dtype"), TensorInfo):
            yield f"{layer}.dtype"


def _unused(read: Mapping[str, Tensors], entries: Entries) -> Iterator[tuple[str, TensorInfo]]:
    """Yield (key, tensor) for the scale and zero point of each Linear whose weight is stored as plain 16-bit floats.

    torch.ao saves them for such a layer, too, but does not use them.
    """
    for key, tensors in read.items():
        if f".{key}".endswith(LAYER) and all(DTYPES[one.dtype].kind == "float" for one in tensors.values()):
            for end in UNUSED:
                other = f".{_module(key)}{end}".lstrip(".")
                if isinstance(entries.get(other), TensorInfo) and entries[other].numel == 1:
                    yield other, entries[other]
