"""Finds the parameter of a network for each number or name in the state of an optimizer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

from ....checkpoint.wrappers import unwrap
from ....planning.resizing.axes import Network
from ....planning.resizing.gradients import FIRST, SECOND
from ....tensors.info import TensorInfo

__all__ = ["MOMENTS", "NAMES", "ParameterId", "ParameterState", "listed", "named_groups"]

NAMES = "param_names"
"""The entry of a group with the names of its parameters, if the optimizer was given ``named_parameters()``."""
MOMENTS = (*FIRST, *SECOND)
ParameterId = str | int
"""The number or name of a parameter in the state of an optimizer."""


@dataclass(frozen=True)
class ParameterState:
    """The state of one parameter in an optimizer: the parameter's number or name (``id``), tensors, and numbers."""

    id: ParameterId
    tensors: dict[str, TensorInfo] = field(default_factory=dict)
    numbers: dict[str, float] = field(default_factory=dict)


def named_groups(
    groups: Sequence[Mapping[str, Any]],
    states: Mapping[ParameterId, ParameterState],
    network: Network,
    names: Sequence[str],
) -> list[list[str]] | None:
    """Return, for each of ``groups``, the names of its parameters, in the group's order; None if they are not known.

    ``groups`` are the parameter groups of the optimizer, and ``states`` has the state of each parameter by its id.
    ``names`` are the names of the network's parameters, in order.
    """
    ids = [list(group["params"]) for group in groups]
    said = [listed(group.get(NAMES)) or own for group, own in zip(groups, ids, strict=True)]
    plain = _without_wrappers(said, network)
    if _are_names(plain, ids, network):
        return [list(map(str, own)) for own in plain]
    if any(isinstance(one, str) for own in ids for one in own) or any(NAMES in group for group in groups):
        return None  # the names are those of another network, so the order of the parameters is not known either
    found = list[list[list[str]]]()
    for is_first in _ORDERS.get(sum(map(bool, ids)), ()):
        order = sorted(names, key=lambda name: is_first(name, network) != is_first(names[0], network))  # a stable sort
        ends = list(accumulate(map(len, ids)))
        named = [order[end - len(own) : end] for own, end in zip(ids, ends, strict=True)]
        is_possible = ends[-1] == len(names) and _is_apart(named, is_first, network)
        if is_possible and _fits(ids, named, states, network) and named not in found:
            found.append(named)
    return found[0] if len(found) == 1 else None


def _without_wrappers(said: Sequence[Sequence[Any]], network: Network) -> list[list[Any]]:
    """Return the names without a prefix that training added to all of them, such as ``module.``."""
    names = [name for own in said for name in own if isinstance(name, str)]
    plain = {stored: key for key, stored in unwrap(names, network.tensors).stored.items()}
    return [[plain.get(name, name) if isinstance(name, str) else name for name in own] for own in said]


def _are_names(said: Sequence[Sequence[Any]], ids: Sequence[Sequence[ParameterId]], network: Network) -> bool:
    """Return whether ``said`` has, for each of ``ids``, the name of a parameter of the network, and no name twice."""
    every = [name for own in said for name in own]
    is_whole = all(len(own) == len(one) for own, one in zip(said, ids, strict=True))
    is_known = all(isinstance(name, str) and name in network.tensors for name in every)
    return is_whole and is_known and len(set(every)) == len(every)


def listed(value: Any) -> list[Any]:
    """Return a value of a file if it is a list, else []."""
    return value if isinstance(value, list) else []


def _is_apart(groups: Sequence[Sequence[str]], is_first: Callable[[str, Network], bool], network: Network) -> bool:
    """Return whether no group mixes parameters for which ``is_first`` is true with parameters for which it is false."""
    return all(len({is_first(name, network) for name in own}) < 2 for own in groups)


def _fits(
    ids: Sequence[Sequence[ParameterId]],
    names: Sequence[Sequence[str]],
    states: Mapping[ParameterId, ParameterState],
    network: Network,
) -> bool:
    pairs = [pair for one, own in zip(ids, names, strict=True) for pair in zip(one, own, strict=True)]
    return all(
        info.shape == network.tensors[name].shape
        for one, name in pairs
        if one in states
        for entry, info in states[one].tensors.items()
        if entry in MOMENTS
    )


def _any(name: str, network: Network) -> bool:
    return True


def _decays(name: str, network: Network) -> bool:
    """Return whether transformers' Trainer puts a parameter into its first group, the one with weight decay."""
    return not name.endswith("bias") and network.kinds.get(name) != "norm"


def _is_matrix(name: str, network: Network) -> bool:
    return len(network.tensors[name].shape) > 1


_ORDERS: Mapping[int, Sequence[Callable[[str, Network], bool]]] = {1: (_any,), 2: (_decays, _is_matrix)}
"""{number of groups: tests, each of which divides the parameters into these groups}: as in Trainer, as in nanoGPT.

The group with the network's first parameter comes first. Groups that are made in another way, such as one for the
output layer, are not recognised. Their parameters may have any order, and the shapes would not show a wrong order:
embeddings and output layer have the same shape.
"""
