"""Resizes the moments of an optimizer in the same way in which the gradients of the resized weights change."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ....checkpoint.optimizer_states import STATE
from ....errors import PatternError, PlanError
from ....planning.keys.spelling import numberless, quoted
from ....planning.plan.plan import ParameterGroup
from ....planning.resizing.depth import final_keys
from ....planning.resizing.gradients import FIRST, SECOND, added, gradient_rows, why_lost
from ....tensors.info import TensorInfo
from ....util.text import escape
from ...inputs.operations import OperatedCheckpoint, operate
from .names import ParameterId, ParameterState
from .network import ResizedNetwork
from .numbers import OLD, copied_numbers
from .report import MomentsReport
from .source import OptimizerSource

__all__ = ["Moments", "ResizedState"]

_MOST_ROWS = 10_000
"""The largest number of operations in a plan: a limit on the size of its file."""
_PARTS = re.compile(r"^pad:parts=([0-9]{1,4}),dim=([0-9])$")
_ADDED_LAYER = re.compile(r"^(.*\.resized\.[0-9]+\.)")


@dataclass(frozen=True)
class ResizedState:
    """The state of an optimizer after resizing: its tensors, the parameter groups, and notes."""

    made: OperatedCheckpoint
    groups: tuple[ParameterGroup, ...]
    notes: Sequence[str]


class Moments:
    """Resizes the moments in ``source``, in the way in which the gradients of the weights of ``network`` change."""

    def __init__(self, source: OptimizerSource, network: ResizedNetwork) -> None:
        self._source, self._network = source, network
        self._report = MomentsReport(source.checkpoint.path, network.last.tensors)
        self._unusable: dict[str, str] = {}
        self._padded = network.named_as_stored(row["pad"] for row in network.rows if "pad" in row)
        self._by_final: tuple[Mapping[str, TensorInfo], Mapping[str, str]] | None = None
        self._added_layers = _added_layers(network.rows)
        self._own = set(map(numberless, network.first.tensors))
        self._stored = [
            {one for name in names if name in source.states for one in source.states[name].tensors}
            for names in source.groups
        ]
        self._unlike = network.named_as_stored(network.unlike)

    def resized(self, parameters: Sequence[str]) -> ResizedState:
        """Return the state for the ``parameters`` of the resized network, in order.

        Raises PlanError if the state is empty, or if making it takes too many operations.
        """
        states, names = self._source.states, {state.id: name for name, state in self._source.states.items()}
        self._made = operate([self._source.checkpoint], [])[0]
        self._made = self._made.further([row for name, state in states.items() for row in self._beginning(name, state)])
        moments = [one for one in (*FIRST, *SECOND) if any(one in state.tensors for state in states.values())]
        for moment in moments:
            self._apply([new for row in self._network.rows for new in gradient_rows(row, moment)])
        groups = self._source.groups_for({name: self._network.last.tensors[name].shape for name in parameters})
        ids = {name: one for group, named in groups for one, name in zip(group["params"], named, strict=True)}
        kept, rows = dict[str, ParameterState](), list[Mapping[str, Any]]()
        for name in parameters:
            if name in ids:
                origin, own = self._kept(name, ids[name], self._moments_beside(name, moments))
                kept.update({name: states[names[origin]]} if origin is not None else {})
                rows += own
        self._made = self._made.further([*rows, *copied_numbers(kept, ids)])
        if not kept:
            why = f": {self._report.said_lost()}" if self._report.lost else ""
            raise PlanError(
                f"no moments in {escape(self._source.checkpoint.path)} fit a parameter of the output{why}.",
                hint="Leave --optimizer out: training then starts with a new optimizer state.",
            )
        if len(self._made.derived.rows) > _MOST_ROWS:
            raise PlanError(
                f"{escape(self._source.checkpoint.path)} has too many values: resizing them would take more than "
                f"{_MOST_ROWS} operations.",
                hint="Leave --optimizer out: training then starts with a new optimizer state.",
            )
        stored = {one for state in states.values() for one in state.tensors}
        notes = list(self._report.notes(len(kept), len(ids), stored))
        return ResizedState(self._made, tuple(group for group, _ in groups), notes)

    def _beginning(self, name: str, state: ParameterState) -> Iterator[dict[str, Any]]:
        """Yield the operations that copy the values of the parameter ``name`` to temporary keys.

        If the state has tensors of an unknown kind, the reason why they cannot be resized is recorded.
        """
        unknown = [one for one, info in state.tensors.items() if info.shape and one not in (*FIRST, *SECOND)]
        if unknown:
            self._unusable[numberless(name)] = f"stored as {', '.join(unknown)}, which cannot follow a change of shape"
        for one, info in state.tensors.items():
            is_moment = bool(info.shape or not self._network.first.tensors[name].shape) and one in (*FIRST, *SECOND)
            new = f"{one}.{quoted(name)}" if is_moment else f"{OLD}.{quoted(str(state.id))}.{quoted(one)}"
            if not unknown or not is_moment:
                yield {"copy": quoted(f"{STATE}.{state.id}.{one}"), "into": [new]}
            else:
                yield {"copy": quoted(f"{STATE}.{state.id}.{one}"), "into": [f"{OLD}.{new}"]}

    def _apply(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Apply operations one by one; an operation on a tensor that the optimizer does not have is left out."""
        for row in rows:
            try:
                self._made = self._made.further([row])
            except PatternError:
                continue

    def _kept(
        self, name: str, new: ParameterId, moments: Sequence[str]
    ) -> tuple[ParameterId | None, list[Mapping[str, Any]]]:
        """Return the id of the source's parameter, and the operations that give its moments their final keys.

        The id is None if the parameter keeps no moments; ``MomentsReport.lost`` then says why.
        """
        tensors = self._made.checkpoint
        keys = {one: key for one in moments if (key := self._key(f"{one}.{name}", tensors)) is not None}
        if not keys or len(keys) < len(moments):
            self._report.lost[name] = self._why_absent(name, [one for one in moments if keys and one not in keys])
            return None, []
        why = self._why_lost(name, [tensors[key] for key in keys.values()], next(iter(keys.values())))
        origins = {self._origin(key) for key in keys.values()}
        if why or len(origins) != 1:
            self._report.lost[name] = why or "0 at first"
            return None, []
        (origin,) = origins
        if numberless(name) in self._padded:
            self._report.filled.add(numberless(name))
        if numberless(name) in self._unlike:
            self._report.estimated[numberless(name)] = None
        rows = list[Mapping[str, Any]]()
        for one, key in keys.items():
            rows += [*self._fitted(key, name, one), {"copy": quoted(key), "into": [quoted(f"{STATE}.{new}.{one}")]}]
        return origin, rows

    def _key(self, key: str, tensors: Mapping[str, TensorInfo]) -> str | None:
        """Return the key that the output's tensor ``key`` has at present; None if it is not in ``tensors``.

        Tensors of layers have temporary keys until the last operations give them the keys of the output.
        """
        if self._by_final is None or self._by_final[0] is not tensors:
            layers = {final_keys(one): one for one in tensors if final_keys(one) != one}
            self._by_final = tensors, layers
        found = self._by_final[1].get(key, key)
        return found if found in tensors else None

    def _origin(self, key: str) -> ParameterId:
        """Return the id of the first parameter of the source from which a moment was made."""
        parameter = self._made.derived.by[key].of[0].removeprefix(f"{STATE}.").rpartition(".")[0]
        return next(state.id for state in self._source.states.values() if str(state.id) == parameter)

    def _moments_beside(self, name: str, moments: Sequence[str]) -> list[str]:
        """Return the names in ``moments`` that at least one parameter in the source's group of ``name`` has.

        Groups may have different settings, so that only some of them have a momentum.
        """
        number = self._source.group_of(name, self._network.last.tensors[name].shape)
        beside = self._stored[number] if number is not None else ()
        return [one for one in moments if one in beside]

    def _why_absent(self, name: str, lacking: Sequence[str]) -> str:
        """Return the reason why a parameter has no moments, or lacks the moments ``lacking``."""
        if numberless(name) in self._unusable:
            return self._unusable[numberless(name)]
        if numberless(name) not in self._own:
            return "not in the source's network"
        what = f"without {', '.join(lacking)}" if lacking else "without a state"
        return f"{what} in {os.path.basename(self._source.checkpoint.path)}"

    def _why_lost(self, name: str, infos: Sequence[TensorInfo], key: str) -> str:
        if name in self._network.untied:
            return "no longer tied, and the gradient of each alone is not known"
        if self._network.moves_rows and name in self._network.last.vocabulary:
            return "rows of another vocabulary"
        layer = _ADDED_LAYER.match(key.partition(".")[2])
        if layer is not None and layer[1] in self._added_layers:
            return "in layers that only pass their input on"
        return next(filter(None, map(why_lost, infos)), "")

    def _fitted(self, key: str, name: str, moment: str) -> Iterator[dict[str, Any]]:
        """Yield the operations that give the moment ``key`` the shape of the parameter ``name``.

        Elements are added or removed at the end of a dimension. If the policy of the parameter divides the dimension
        into parts, they are added at the end of each part. ``moment`` is the name of the moment, such as ``exp_avg``.
        """
        info, wanted = self._made.checkpoint[key], self._network.last.tensors[name].shape
        policy = _PARTS.match(self._network.policies.get(numberless(name), ""))
        for dim, (old, new) in enumerate(zip(info.shape, wanted, strict=False)):
            if old == new:
                continue
            if new > old:
                self._report.filled.add(numberless(name))
            parts = int(policy[1]) if policy is not None and int(policy[2]) == dim else 1
            if new < old:
                yield {"slice": quoted(key), "dim": dim, "begin": 0, "end": new}
            elif parts == 1:
                yield from added(quoted(key), dim, new, moment)
            else:
                pieces = [f"{OLD}.{moment}.{quoted(name)}.{number}" for number in range(parts)]
                yield {"split": quoted(key), "into": pieces, "dim": dim}
                for piece in pieces:
                    yield from added(piece, dim, new // parts, moment)
                yield {"concat": pieces, "into": quoted(key), "dim": dim}


def _added_layers(rows: Sequence[Mapping[str, Any]]) -> set[str]:
    """Return the prefixes of the temporary keys of added layers that only pass their input on."""
    found = (_ADDED_LAYER.match(row["zero"]) for row in rows if "zero" in row)
    return {match[1] for match in found if match is not None}
