"""Reads the state of an optimizer of torch: which values belong to which parameter of the network."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ....checkpoint.checkpoint import Checkpoint
from ....checkpoint.opening import open_optimizer
from ....checkpoint.optimizer_states import GROUPS, STATE
from ....checkpoint.other_entries import why_not_plain
from ....errors import ConfigError, PlanError
from ....planning.keys.spelling import numberless
from ....planning.plan.plan import ParameterGroup
from ....planning.resizing.axes import Network
from ....tensors.info import TensorInfo
from ....util.text import count, escape, shape_text
from .names import MOMENTS, NAMES, ParameterId, ParameterState, listed, named_groups

__all__ = ["OptimizerSource", "open_optimizer_source"]

FILE = "optimizer.pt"
"""The file of the optimizer in the folder of a checkpoint of transformers' Trainer."""
_NAME_THEM = (
    "Give the optimizer model.named_parameters() instead of model.parameters(): then its state has the names "
    "(torch 2.6 and newer)."
)
LARGEST = 3.4028234663852886e38
"""The largest float32; numbers such as ``step`` are written as float32."""


@dataclass(frozen=True)
class OptimizerSource:
    """The open state of an optimizer: the state of each parameter by its name, and the names in each group.

    ``parameters`` are the names of all parameters of the network, also of those that are in no group. ``has_names`` is
    true if parameters are identified by names, ``lists_names`` if groups also list names.
    """

    checkpoint: Checkpoint
    states: Mapping[str, ParameterState]
    groups: Sequence[Sequence[str]]
    parameters: frozenset[str]
    has_names: bool
    lists_names: bool

    def group_of(self, name: str, shape: Sequence[int]) -> int | None:
        """Return the index of the group for a parameter of the output; None if no group trains it.

        It is the group of the source's parameter with the same name, and none if this parameter is in no group. For a
        name that the source's network lacks, it is the group of the same name in another layer, or else of a parameter
        that has a state and the same number of dimensions.
        """
        for number, names in enumerate(self.groups):
            if name in names:
                return number
        if name in self.parameters:
            return None
        for number, names in enumerate(self.groups):
            if any(numberless(one) == numberless(name) for one in names):
                return number
        return self._by_dimensions.get(len(shape))

    def groups_for(self, parameters: Mapping[str, Sequence[int]]) -> list[tuple[ParameterGroup, list[str]]]:
        """Return the groups of the output: the entries that change, and the names of the parameters.

        ``parameters`` maps the parameters of the output, in order, to their shapes.
        """
        members: list[list[str]] = [[] for _ in self.groups]
        for name, shape in parameters.items():
            number = self.group_of(name, shape)
            if number is not None:
                members[number].append(name)
        found, at = list[tuple[ParameterGroup, list[str]]](), 0
        for names in members:
            ids = tuple(names) if self.has_names else tuple(range(at, at + len(names)))
            at += len(names)
            found.append(({"params": ids, **({NAMES: tuple(names)} if self.lists_names else {})}, names))
        return found

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
        named = named_groups(groups, by_id, network, names)
        if named is None:
            raise ConfigError(
                f"{escape(checkpoint.path)} has {count(len(every), 'parameter')} and the network has "
                f"{len(names)}; neither names nor groups nor shapes show which parameter is which.",
                hint=_NAME_THEM,
            )
        pairs = [pair for one, own in zip(ids, named, strict=True) for pair in zip(one, own, strict=True)]
        states = {name: by_id[one] for one, name in pairs if one in by_id}
        _check_shapes(checkpoint, states, network)
        has_names = any(isinstance(one, str) for one, _ in pairs)
        return OptimizerSource(
            checkpoint, states, named, frozenset(names), has_names, any(NAMES in one for one in groups)
        )
    except BaseException:
        checkpoint.close()
        raise


def _groups(checkpoint: Checkpoint) -> list[dict[str, Any]]:
    """Return the parameter groups; raises ConfigError if they do not have torch's form."""
    found = checkpoint.others.get(GROUPS)
    groups = listed(found)
    lists = [listed(one.get("params")) for one in groups if isinstance(one, dict)]
    if not any(lists) or len(lists) != len(groups):
        raise ConfigError(
            f"{escape(checkpoint.path)}: param_groups is not a list of dicts with params, as torch saves it."
        )
    why = why_not_plain(groups)
    if why:
        raise ConfigError(
            f"{escape(checkpoint.path)}: the settings in param_groups cannot be written into another file: {why}.",
            hint="Replace tensors in param_groups, such as lr, by numbers, and save the state again.",
        )
    ids = [one for each in lists for one in each]
    if len({str(one) for one in ids}) != len(ids) or not all(type(one) in (int, str) for one in ids):
        raise ConfigError(
            f"{escape(checkpoint.path)}: param_groups lists a parameter twice, or lists something that is neither a "
            "number nor a name."
        )
    return groups


def _states(checkpoint: Checkpoint, ids: Sequence[ParameterId]) -> dict[ParameterId, ParameterState]:
    """Return {number or name of a parameter: its state} for the parameters that have a state.

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
                    f"{escape(checkpoint.path)}: the number {escape(key)} is NaN, or too large for float32.",
                    hint="Save the state of the optimizer again.",
                )
            own.numbers[name] = value
    return found


def _check_shapes(checkpoint: Checkpoint, states: Mapping[str, ParameterState], network: Network) -> None:
    for name, state in states.items():
        for entry, info in state.tensors.items():
            if entry in MOMENTS and info.shape != network.tensors[name].shape:
                raise PlanError(
                    f"{escape(checkpoint.path)}: {entry} of {escape(name)} is {shape_text(info.shape)}, but the "
                    f"parameter is {shape_text(network.tensors[name].shape)}.",
                    hint="Name the state of the optimizer that trained these weights.",
                )
