"""Reads the state of an optimizer of torch: which values belong to which parameter of the network."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

from ...checkpoint.checkpoint import Checkpoint
from ...checkpoint.extras import why_not_plain
from ...checkpoint.opening import open_optimizer
from ...checkpoint.optimizer_states import GROUPS, STATE
from ...checkpoint.wrappers import unwrap
from ...errors import ConfigError, PlanError
from ...planning.keys.spelling import numberless
from ...planning.resizing.axes import Network
from ...planning.resizing.gradients import FIRST, SECOND
from ...tensors.info import TensorInfo
from ...util.text import count, escape, shape_text

__all__ = ["OptimizerSource", "ParameterState", "open_optimizer_source"]

FILE = "optimizer.pt"
"""The file of the optimizer in the folder of a checkpoint of transformers' Trainer."""
NAMES = "param_names"
"""The entry of a group with the names of its parameters, if the optimizer was given ``named_parameters()``."""
_NAME_THEM = (
    "Give the optimizer model.named_parameters() instead of model.parameters(): then its state has the names "
    "(torch 2.6 and newer)."
)
LARGEST = 3.4028234663852886e38
"""The largest number of float32, as which numbers such as ``step`` are written."""
MOMENTS = (*FIRST, *SECOND)
ParameterId = str | int
"""The number or name of a parameter in the state of an optimizer."""


@dataclass(frozen=True)
class ParameterState:
    """What an optimizer stores for one parameter: ``id``, its number or name there, its tensors, and its numbers."""

    id: ParameterId
    tensors: dict[str, TensorInfo] = field(default_factory=dict)
    numbers: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class OptimizerSource:
    """The open state of an optimizer: the state of each parameter by its name, and the names in each group.

    ``has_names`` is whether parameters are identified by names, ``lists_names`` whether groups list names, too.
    """

    checkpoint: Checkpoint
    states: Mapping[str, ParameterState]
    groups: Sequence[Sequence[str]]
    has_names: bool
    lists_names: bool

    def group_of(self, name: str, shape: Sequence[int]) -> int | None:
        """Return the index of the group for a parameter of the output; None if the optimizer does not train it.

        It is the group of the parameter of the same name; else that of the same parameter of another layer. A parameter
        that the source's network lacks gets the group of others with as many dimensions.
        """
        for same in (lambda one: one == name, lambda one: numberless(one) == numberless(name)):
            for number, names in enumerate(self.groups):
                if any(map(same, names)):
                    return number
        return self._by_dimensions.get(len(shape))

    @property
    def _by_dimensions(self) -> dict[int, int]:
        found: dict[int, int] = {}
        for number, names in enumerate(self.groups):
            for name in names:
                for info in self.states[name].tensors.values() if name in self.states else ():
                    found.setdefault(len(info.shape), number)
        return found


def open_optimizer_source(path: str, network: Network, names: Sequence[str]) -> OptimizerSource:
    """Open the state of an optimizer that trained ``network``, whose parameters have the ``names``, in order.

    Raises ConfigError if it is not known which values belong to which parameter, PlanError if their shapes differ.
    """
    beside = os.path.join(path, FILE)
    checkpoint = open_optimizer(beside if os.path.isfile(beside) else path)
    try:
        groups = _groups(checkpoint)
        ids = [list(group["params"]) for group in groups]
        every = [one for own in ids for one in own]
        by_id = _states(checkpoint, every)
        named = _named(groups, by_id, network, names)
        if named is None:
            raise ConfigError(
                f"{escape(checkpoint.path)} does not say which of its {count(len(every), 'parameter')} are which of "
                f"the {len(names)} of the network, and their number, groups or shapes do not show it.",
                hint=_NAME_THEM,
            )
        pairs = [pair for one, own in zip(ids, named, strict=True) for pair in zip(one, own, strict=True)]
        states = {name: by_id[one] for one, name in pairs if one in by_id}
        _check_shapes(checkpoint, states, network)
        has_names = any(isinstance(one, str) for one, _ in pairs)
        return OptimizerSource(checkpoint, states, named, has_names, any(NAMES in one for one in groups))
    except BaseException:
        checkpoint.close()
        raise


def _groups(checkpoint: Checkpoint) -> list[dict[str, Any]]:
    """Return the groups of parameters; raises ConfigError if they are not what torch stores."""
    found = checkpoint.others.get(GROUPS)
    groups = _listed(found)
    lists = [_listed(one.get("params")) for one in groups if isinstance(one, dict)]
    if not any(lists) or len(lists) != len(groups):
        raise ConfigError(f"{escape(checkpoint.path)}: param_groups is not a list of groups with params.")
    why = why_not_plain(groups)
    if why:
        raise ConfigError(
            f"{escape(checkpoint.path)}: the settings in param_groups cannot be written into another file: {why}.",
            hint="Replace tensors in them, such as lr, by numbers before the state is saved.",
        )
    ids = [one for each in lists for one in each]
    if len({str(one) for one in ids}) != len(ids) or not all(type(one) in (int, str) for one in ids):
        raise ConfigError(f"{escape(checkpoint.path)}: param_groups lists a parameter twice, or not by number or name.")
    return groups


def _states(checkpoint: Checkpoint, ids: Sequence[ParameterId]) -> dict[ParameterId, ParameterState]:
    """Return the state of each parameter that has one, by its number or name.

    Raises ConfigError for a number that is too large or not a number.
    """
    by_text = {str(one): one for one in ids}
    found: dict[ParameterId, ParameterState] = {}
    for key, value in (*checkpoint.items(), *checkpoint.others.items()):
        parameter, _, name = key.removeprefix(f"{STATE}.").rpartition(".")
        if not key.startswith(f"{STATE}.") or parameter not in by_text:
            continue
        own = found.setdefault(by_text[parameter], ParameterState(by_text[parameter]))
        if isinstance(value, TensorInfo):
            own.tensors[name] = value
        elif type(value) in (int, float):
            if not abs(value) <= LARGEST:  # also true for a NaN
                raise ConfigError(
                    f"{escape(checkpoint.path)}: {escape(key)} is a number that float32 does not have.",
                    hint="Save the state of the optimizer again.",
                )
            own.numbers[name] = value
    return found


def _named(
    groups: Sequence[Mapping[str, Any]],
    states: Mapping[ParameterId, ParameterState],
    network: Network,
    names: Sequence[str],
) -> list[list[str]] | None:
    """Return the names of the parameters of each group, in its order; None if they are not known."""
    ids = [list(group["params"]) for group in groups]
    said = [_listed(group.get(NAMES)) or own for group, own in zip(groups, ids, strict=True)]
    plain = _without_wrappers(said, network)
    if _are_names(plain, ids, network):
        return [list(map(str, own)) for own in plain]
    if any(isinstance(one, str) for own in ids for one in own) or any(NAMES in group for group in groups):
        return None  # names of another network: the order of its parameters is not known either
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
    """Return whether ``said`` has the name of another parameter of the network for each of ``ids``."""
    every = [name for own in said for name in own]
    is_whole = all(len(own) == len(one) for own, one in zip(said, ids, strict=True))
    is_known = all(isinstance(name, str) and name in network.tensors for name in every)
    return is_whole and is_known and len(set(every)) == len(every)


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _is_apart(groups: Sequence[Sequence[str]], is_first: Callable[[str, Network], bool], network: Network) -> bool:
    """Return whether each group has only parameters that come first, or only others."""
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
    """Return whether transformers' Trainer puts a parameter into its first group, that with a decay of weights."""
    return not name.endswith("bias") and network.kinds.get(name) != "norm"


def _is_matrix(name: str, network: Network) -> bool:
    return len(network.tensors[name].shape) > 1


_ORDERS: Mapping[int, Sequence[Callable[[str, Network], bool]]] = {1: (_any,), 2: (_decays, _is_matrix)}
"""How parameters are divided into so many groups: as in transformers' Trainer; matrices and others, as in nanoGPT.

The group with the network's first parameter comes first. Other groups, such as one for the output layer, may have the
parameters in any order, and equal shapes would hide it: a network has the same shape for embeddings and output layer.
"""


def _check_shapes(checkpoint: Checkpoint, states: Mapping[str, ParameterState], network: Network) -> None:
    for name, state in states.items():
        for entry, info in state.tensors.items():
            if entry in MOMENTS and info.shape != network.tensors[name].shape:
                raise PlanError(
                    f"{escape(checkpoint.path)}: {entry} of {escape(name)} is {shape_text(info.shape)}, but the "
                    f"parameter is {shape_text(network.tensors[name].shape)}.",
                    hint="Name the state of the optimizer that trained these weights.",
                )
