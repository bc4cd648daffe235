"""Turns each feed-forward layer into experts that are copies of it, or one expert into a feed-forward layer.

Sparse upcycling (https://arxiv.org/abs/2212.05055): if the weights of the chosen experts sum to 1, the network computes
the same at first, because all experts of a layer are equal.

Smaller experts are parts of the feed-forward layer (granular upcycling, https://arxiv.org/abs/2410.07524): G successive
experts together are a copy of it, a virtual group. The router has equal rows for them. So a token uses all experts of a
group or none, and each expert gets 1 / G of the group's weight. To make up for this, the output projections are
multiplied by G.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from ...errors import ConfigError, PlanError
from ...util.text import count, escape, listing, shape_text
from ..keys.spelling import numberless, quoted
from .axes import Network
from .change import Change

__all__ = ["expert_alone", "upcycled"]

_PARTS = {
    "gate_proj": "gate", "w1": "gate", "up_proj": "up", "w3": "up", "down_proj": "down", "w2": "down",
    "gate_up_proj": "gate_up",
}  # fmt: skip
"""{name of a linear layer: its role in a feed-forward layer with a gate}."""
_FORMS = ({"gate", "up", "down"}, {"gate_up", "down"})
_ROUTING = ("router", "experts")
_ONLY_PLAIN = (
    "Feed-forward layers can only be turned into experts, or experts into feed-forward layers, if they have a gate and "
    "no biases."
)

Parts = Mapping[str, str]
"""The key of each part of a feed-forward layer."""


def upcycled(before: Network, after: Network) -> Change:
    """Return the change that gives a dense network experts, each a copy or a part of the feed-forward layer.

    All other new tensors are initialised: routers, and shared experts, whose output projections are zero. The caller
    sets the fields ``said`` and ``is_exact``. Raises PlanError if the networks differ in other tensors, or if the parts
    of a feed-forward layer are not recognised.
    """
    change = Change("", True)
    layers = _different_layers(before, after)
    dense = {layer: _plain(old) for layer, (old, _) in layers.items()}
    for own, layer in _alike(dense, before):
        new = layers[layer][1]
        experts = _stacked(new, after)
        parts = _parts_of(before, dense[layer], after, experts)
        if parts > 1:
            change.repeated.update(dict.fromkeys(_routers(layers, after), parts))
        beside = _beside(new, after)
        change.after += _copies(before, dense[layer], after, experts, beside, own, parts)
        change.after += _zeroed(before.tensors[dense[layer]["down"]].shape, beside, after, own)
    return change


def expert_alone(before: Network, after: Network, number: int) -> Change:
    """Return the change of a network with experts to a dense one, with the expert ``number`` of each layer.

    The caller sets the field ``said``. Raises ConfigError if there is no such expert, and PlanError in the same cases
    as ``upcycled``.
    """
    change = Change("", False)
    layers = _different_layers(before, after)
    dense = {layer: _plain(new) for layer, (_, new) in layers.items()}
    for own, layer in _alike(dense, after):
        experts = _stacked(layers[layer][0], before)
        experts_in = before.tensors[experts["down"]].shape[0]
        if number >= experts_in:
            raise ConfigError(f"--expert {number}: a layer has the experts 0 to {experts_in - 1}.")
        _check_size(after, dense[layer], before, experts)
        change.after += _taken_out(after, dense[layer], experts, number, own)
        change.left += [own(key) for key in layers[layer][0] if key not in experts.values()]
    return change


# Finds the layers that differ, and the parts of their feed-forward layers.


def _different_layers(before: Network, after: Network) -> dict[str, tuple[list[str], list[str]]]:
    """Return, for each layer, the keys that only ``before`` has, and the keys that only ``after`` has.

    Raises PlanError if a tensor has different shapes in the two networks, or if only one of them has a tensor outside
    the layers.
    """
    shared = [key for key in before.tensors if key in after.tensors]
    other = [key for key in shared if before.tensors[key].shape != after.tensors[key].shape]
    if other:
        old, new = (shape_text(network.tensors[other[0]].shape) for network in (before, after))
        more = f", and {count(len(other) - 1, 'more', 'more')} have other shapes" if len(other) > 1 else ""
        raise _another(f"{escape(other[0])} is {new} instead of {old}{more}")
    found: dict[str, tuple[list[str], list[str]]] = {}
    for side, (network, rest) in enumerate(((before, after), (after, before))):
        for key in network.tensors:
            if key not in rest.tensors and key not in network.ties:
                found.setdefault(_layer(key), ([], []))[side].append(key)
    lone = [key for layer, (old, new) in found.items() if not layer or not (old and new) for key in (*old, *new)]
    if lone:
        raise _another(listing(lone))
    if not found:
        raise PlanError(
            "the two networks have the same tensors, so there is nothing to do.",
            hint="Choose a different type with --as.",
        )
    return found


def _another(what: str) -> PlanError:
    return PlanError(
        f"the two types of network must differ only in their feed-forward layers, but also differ in this: {what}.",
        hint="Choose a type whose layers differ only in the feed-forward layer.",
    )


def _layer(key: str) -> str:
    """Return the layer of a key: the key up to its first number, such as ``layers.3``; "" if it has no number."""
    parts = key.split(".")
    first = next((at for at, part in enumerate(parts) if part.isdigit()), -1)
    return ".".join(parts[: first + 1])


def _plain(keys: Iterable[str]) -> dict[str, str]:
    """Return the keys of a dense feed-forward layer by role ("gate", "up", "down"); raises PlanError for other keys."""
    found: dict[str, str] = {}
    for key in keys:
        module, _, name = key.rpartition(".")
        part = _PARTS.get(module.rpartition(".")[2], "") if name == "weight" else ""
        if not part or part in found:
            raise PlanError(f"{escape(key)} is not recognised as a part of a feed-forward layer.", hint=_ONLY_PLAIN)
        found[part] = key
    if found.keys() not in _FORMS:
        raise PlanError(
            f"{listing(list(found.values()))}: these parts do not make a whole feed-forward layer.", hint=_ONLY_PLAIN
        )
    return found


def _stacked(keys: Sequence[str], network: Network) -> dict[str, str]:
    """Return the keys of a layer's stacked experts by role ("gate_up", "down"); raises PlanError for other experts."""
    kinds = {key: network.kinds.get(key, "other") for key in keys}
    found = {_PARTS.get(key.rpartition(".")[2], key): key for key, kind in kinds.items() if "experts" in kind}
    if found.keys() != {"gate_up", "down"} or {kinds[key] for key in found.values()} != {"experts"}:
        raise PlanError(f"{listing(list(keys))}: these experts are not stacked as gate_up_proj and down_proj.")
    return found


def _parts_of(plain: Network, dense: Parts, with_experts: Network, experts: Parts) -> int:
    """Return the number of experts that together are as large as the dense layer; PlanError if the sizes do not fit."""
    width, size = plain.tensors[dense["down"]].shape
    both, down = (with_experts.tensors[experts[part]].shape for part in ("gate_up", "down"))
    parts = size // max(1, down[2])
    if parts * down[2] != size or (both[1:], down[1]) != ((2 * down[2], width), width) or down[0] % max(1, parts):
        raise _other_size(plain, dense, with_experts, experts)
    if parts > 1 and "gate_up" in dense:
        raise PlanError(
            f"{escape(dense['gate_up'])} has the rows of both gate and up projection, so it cannot be cut into "
            f"{parts} experts.",
            hint="Set the size of an expert to the size of the feed-forward layer.",
        )
    return parts


def _check_size(plain: Network, dense: Parts, with_experts: Network, experts: Parts) -> None:
    """Raise PlanError unless an expert is as large as the dense layer."""
    own = with_experts.tensors[experts["down"]].shape[2]
    if plain.tensors[dense["down"]].shape[1] != own:
        hint = f"Give the feed-forward layer the size of an expert, {own}."
        raise _other_size(plain, dense, with_experts, experts, hint)
    _parts_of(plain, dense, with_experts, experts)


def _other_size(plain: Network, dense: Parts, with_experts: Network, experts: Parts, hint: str = "") -> PlanError:
    down, own = plain.tensors[dense["down"]].shape, with_experts.tensors[experts["down"]].shape
    return PlanError(
        f"the sizes do not fit: an expert of {escape(experts['down'])} is {shape_text(own[1:])}, but "
        f"{escape(dense['down'])} is {shape_text(down)}.",
        hint=hint
        or "Give an expert the size of the feed-forward layer, or this size divided by a divisor of the number of "
        f"experts, {own[0]}.",
    )


def _routers(layers: Mapping[str, tuple[Sequence[str], Sequence[str]]], after: Network) -> Iterator[str]:
    """Yield the keys of the routers (matrices with a row for each expert) among the tensors that the layers get.

    ``layers`` has, for each layer, the keys that it loses and the keys that it gets.
    """
    for _, new in layers.values():
        yield from (key for key in new if after.kinds.get(key) == "router" and len(after.tensors[key].shape) == 2)


class _Own:
    """A function that turns the key of a layer into a pattern: for this layer, or for the same key in all layers."""

    def __init__(self, *, is_one: bool) -> None:
        self._is_one = is_one

    def __call__(self, key: str) -> str:
        return quoted(key) if self._is_one else numberless(key)


def _alike(layers: Mapping[str, Parts], network: Network) -> list[tuple[_Own, str]]:
    """Return the layers to change, each with a function that turns its keys into patterns.

    If all layers of ``network`` change in the same way, only one layer is returned: its patterns match all layers.
    """
    changed = {key for parts in layers.values() for key in parts.values()}
    patterns = {numberless(key) for key in changed}
    matched = {key for key in network.tensors if numberless(key) in patterns}
    one = {tuple(numberless(key) for key in parts.values()) for parts in layers.values()}
    if matched == changed and len(one) == 1:
        return [(_Own(is_one=False), next(iter(layers)))]
    return [(_Own(is_one=True), layer) for layer in layers]


# Operations on the tensors of a layer.


def _copies(
    before: Network, dense: Parts, after: Network, experts: Parts, beside: Sequence[str], own: _Own, parts: int
) -> list[dict[str, Any]]:
    """Return operations that make experts; each is one of ``parts`` equal parts of the feed-forward layer.

    ``dense`` and ``experts`` have the keys of the layer by role, before and after. ``beside`` are the keys of other new
    output projections; each gets a copy of the feed-forward layer's output projection. ``own`` turns keys into
    patterns.
    """
    both, down = own(experts["gate_up"]), own(experts["down"])
    number, rows, width = after.tensors[experts["gate_up"]].shape
    if parts > 1:
        gate, up, of = own(dense["gate"]), own(dense["up"]), [parts, rows // 2, width]
        return [
            {"reshape": gate, "shape": of},
            {"reshape": up, "shape": of},
            {"concat": [gate, up], "dim": 1, "into": both},
            {"tile": both, "times": number // parts},
            {"copy": own(dense["down"]), "into": [down, *map(own, beside)]},
            {"reshape": down, "shape": [width, parts, rows // 2]},
            {"permute": down, "dims": [1, 0, 2]},
            {"scale": down, "by": parts},
            {"tile": down, "times": number // parts},
        ]
    if "gate_up" in dense:
        made: dict[str, Any] = {"copy": own(dense["gate_up"]), "into": [both]}
    else:
        made = {"concat": [own(dense["gate"]), own(dense["up"])], "into": both}
    return [
        made,
        {"reshape": both, "shape": [1, rows, width]},
        {"tile": both, "times": number},
        {"copy": own(dense["down"]), "into": [down, *map(own, beside)]},
        {"reshape": down, "shape": [1, *before.tensors[dense["down"]].shape]},
        {"tile": down, "times": number},
    ]


def _beside(new: Sequence[str], after: Network) -> list[str]:
    """Return the keys of the output projections of other new modules, such as a shared expert.

    Raises PlanError if a layer has a new tensor that is neither in such a module (or its gate) nor for routing.
    """
    linear = [key for key in new if after.kinds.get(key) not in _ROUTING]
    found = [key for key in linear if _PARTS.get(_module(key)) == "down"]
    inside = {key.rpartition(".")[0].rpartition(".")[0] for key in found}
    unknown = [key for key in linear if not any(key.startswith((f"{one}.", f"{one}_gate.")) for one in inside)]
    if unknown:
        raise _another(listing(unknown))
    return found


def _zeroed(shape: Sequence[int], keys: Sequence[str], after: Network, own: _Own) -> list[dict[str, Any]]:
    """Return operations that set ``keys``, copies of an output projection, to zero, with their shapes in ``after``.

    ``shape`` is the shape of the copied output projection.
    """
    rows: list[dict[str, Any]] = []
    for key in keys:
        size = after.tensors[key].shape[1]
        rows.append({"zero": own(key)})
        if size > shape[1]:
            rows.append({"pad": own(key), "dim": 1, "size": size})
        elif size < shape[1]:
            rows.append({"slice": own(key), "dim": 1, "end": size})
    return rows


def _module(key: str) -> str:
    return key.rpartition(".")[0].rpartition(".")[2]


def _taken_out(after: Network, dense: Parts, experts: Parts, number: int, own: _Own) -> list[dict[str, Any]]:
    width, size = after.tensors[dense["down"]].shape
    halves = ("gate_up",) if "gate_up" in dense else ("gate", "up")
    rows: list[dict[str, Any]] = [{"copy": own(experts["gate_up"]), "into": [own(dense[part]) for part in halves]}]
    each = 2 * size // len(halves)
    for at, part in enumerate(halves):
        key = own(dense[part])
        rows += [
            {"slice": key, "begin": number, "end": number + 1},
            {"reshape": key, "shape": [2 * size, width]},
            {"slice": key, "begin": at * each, "end": (at + 1) * each},
        ]
    down = own(dense["down"])
    return [
        *rows,
        {"copy": own(experts["down"]), "into": [down]},
        {"slice": down, "begin": number, "end": number + 1},
        {"reshape": down, "shape": [width, size]},
    ]
