"""Finds fused projections by shapes: one tensor that is the concatenation of several, such as q, k and v.

Shapes show that tensors are parts of another tensor, but not the order of the parts. Only names show the order:
``qkv_proj`` of Phi-3 has all queries, then all keys, then all values. ``query_key_value`` of GPT-NeoX, BLOOM and Falcon
has the queries, keys and values of one head, then the queries, keys and values of the next head. For other names, the
order is not known.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from ....planning.keys.fused_parts import order_of_parts, part_of
from ..names import words_of
from ..proposal import Tensors
from .places import Place, place_of

__all__ = ["BY_HEAD", "Fused", "find_fused", "not_compared"]

KINDS = ({"q", "k", "v"}, {"k", "v"}, {"gate", "up"})
BY_HEAD = frozenset({"query_key_value", "linear_qkv", "wqkv", "dense_h_to_4h", "linear_fc1"})
"""Names of fused projections whose rows may be grouped by heads or interleaved; ``wqkv`` is from InternLM 2."""
MOST = 1 << 16
"""At most this many pairs (fused tensor, set of parts) are compared in one layer; this many take about a second."""

Turned = Callable[[str], bool | None]
"""A function of a key that returns whether matrices of its layers are stored transposed; None if it is not known."""


@dataclass(frozen=True)
class Fused:
    """A tensor ``whole`` that is the concatenation of the tensors ``parts`` of the other model.

    If ``unknown`` is empty, ``parts`` are in the right order and are joined along ``dim``, and ``turned`` is true if
    ``whole`` is stored transposed. Otherwise ``unknown`` is the missing information.
    """

    whole: str
    parts: tuple[str, ...]
    dim: int = 0
    turned: bool = False
    unknown: str = ""


@dataclass
class _Layer:
    """The tensors of one layer that have no partner: possible fused tensors, and sets of possible parts."""

    wholes: list[tuple[str, Place]] = field(default_factory=list)
    parts: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    """{parent of the modules: keys of their tensors}"""

    @property
    def is_large(self) -> bool:
        """True if the layer has too many pairs to be compared."""
        return len(self.wholes) * len(self.parts) > MOST


def find_fused(wholes: Tensors, parts: Tensors, turned: Turned) -> Iterator[Fused]:
    """Yield the tensors of ``wholes`` that are concatenations of ``parts``; no tensor of either has a partner yet."""
    for layer in _layers(wholes, parts):
        if not layer.is_large:
            yield from _in_layer(layer, wholes, parts, turned)


def not_compared(wholes: Tensors, parts: Tensors) -> int:
    """Return the number of tensors of ``wholes`` that are not compared, because their layers have too many tensors."""
    return sum(len(layer.wholes) for layer in _layers(wholes, parts) if layer.is_large)


def _layers(wholes: Tensors, parts: Tensors) -> list[_Layer]:
    """Return, for each layer, its possible fused tensors, and its modules with at least two possible parts."""
    layers: dict[tuple[tuple[int, ...], str], _Layer] = defaultdict(_Layer)
    for key in wholes:
        place = place_of(key)
        layers[place.numbers, place.leaf].wholes.append((key, place))
    for key in parts:
        place = place_of(key)
        if (place.numbers, place.leaf) in layers:
            layers[place.numbers, place.leaf].parts[place.parent].append(key)
    for layer in layers.values():
        layer.parts = {parent: keys for parent, keys in layer.parts.items() if len(keys) > 1}
    return list(layers.values())


def _in_layer(layer: _Layer, wholes: Tensors, parts: Tensors, turned: Turned) -> Iterator[Fused]:
    groups = {parent: _Group.of(keys, parts) for parent, keys in layer.parts.items()}
    options = [
        (_likeness(place, parent), number, whole, chosen)
        for number, (whole, place) in enumerate(layer.wholes)
        for parent, group in groups.items()
        for chosen in _chosen(whole, group, wholes, parts)
    ]
    taken: set[str] = set()
    rivals = Counter((score, one) for score, _, whole, chosen in options for one in (whole, chosen))
    for score, _, whole, chosen in sorted(options, key=lambda option: (-option[0], option[1])):
        if whole not in taken and taken.isdisjoint(chosen) and rivals[score, whole] == rivals[score, chosen] == 1:
            taken |= {whole, *chosen}
            yield _made(whole, chosen, (wholes, parts), turned)


def _likeness(place: Place, parent: str) -> float:
    here, there = set(words_of(place.parent)), set(words_of(parent))
    return len(here & there) / max(len(here | there), 1)


@dataclass(frozen=True)
class _Group:
    """The tensors of one parent module, by kind of part (q, k, v, gate, up).

    ``others`` has the remaining tensors, by number of dimensions.
    """

    of_kind: Mapping[str, list[str]]
    others: Mapping[int, list[str]]

    @classmethod
    def of(cls, keys: Sequence[str], parts: Tensors) -> _Group:
        """Return the group of ``keys``, whose headers are in ``parts``."""
        of_kind: dict[str, list[str]] = {kind: [] for kind in ("q", "k", "v", "gate", "up")}
        others: dict[int, list[str]] = defaultdict(list)
        for key in keys:
            kind = part_of(key)
            (of_kind[kind] if kind else others[len(parts[key].shape)]).append(key)
        return cls(of_kind, others)


def _chosen(whole: str, group: _Group, wholes: Tensors, parts: Tensors) -> Iterator[tuple[str, ...]]:
    """Yield sets of a module's tensors that may be the parts of ``whole``.

    If the name of ``whole`` shows the order of its parts, they are in this order.
    """
    order = order_of_parts(whole)
    for kinds in KINDS:
        if (order and set(order) != kinds) or any(len(group.of_kind[kind]) != 1 for kind in kinds):
            continue
        known = tuple(group.of_kind[kind][0] for kind in order or sorted(kinds, key=list(group.of_kind).index))
        if _dims(wholes[whole].shape, [parts[key].shape for key in known]):
            yield known
            return
    alike = tuple(group.others.get(len(wholes[whole].shape), ()))
    if not order and 2 <= len(alike) <= 4 and _dims(wholes[whole].shape, [parts[key].shape for key in alike]):
        yield alike


def _dims(whole: tuple[int, ...], parts: Sequence[tuple[int, ...]]) -> list[tuple[int, bool]]:
    """Return all (dimension, is transposed) for which the concatenation of ``parts`` has the shape ``whole``."""
    found = [(dim, False) for dim in range(min(len(whole), 2)) if _fits(whole, parts, dim)]
    return found + ([(0, True)] if len(whole) == 2 and _fits(whole[::-1], parts, 0) else [])


def _fits(whole: tuple[int, ...], parts: Sequence[tuple[int, ...]], dim: int) -> bool:
    rest = (*whole[:dim], *whole[dim + 1 :])
    fit = all(len(one) == len(whole) and (*one[:dim], *one[dim + 1 :]) == rest for one in parts)
    return fit and sum(one[dim] for one in parts) == whole[dim]


def _made(whole: str, chosen: tuple[str, ...], tensors: tuple[Tensors, Tensors], turned: Turned) -> Fused:
    wholes, parts = tensors
    dims = _dims(wholes[whole].shape, [parts[key].shape for key in chosen])
    if not order_of_parts(whole):
        return Fused(whole, chosen, unknown="the order of the parts is not known")
    if place_of(whole).module in BY_HEAD:
        return Fused(whole, chosen, unknown="the rows may be grouped by heads, or each part may be in one piece")
    if len(wholes[whole].shape) > 2:
        return Fused(whole, chosen, unknown="the parts may be interleaved")
    if len(dims) > 1:
        is_turned = turned(whole)
        if is_turned is None:
            return Fused(whole, chosen, unknown="the parts may be transposed")
        dims = [(dim, turn) for dim, turn in dims if turn == is_turned] or dims
    return Fused(whole, chosen, *dims[0])
