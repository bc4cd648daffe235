"""Plans the state of an optimizer for a network of another size: moments change as the gradients of the weights do."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ...checkpoint.optimizer_states import STATE
from ...destinations.parameter_names import parameter_names
from ...engine.inputs import PlanInputs
from ...errors import ConfigError, PatternError, PlanError
from ...planning.edit import plan_edit
from ...planning.keys.spelling import numberless, quoted
from ...planning.plan.plan import CarriedEntries, ParameterGroup, Plan
from ...planning.resizing.axes import Network
from ...planning.resizing.depth import final_keys
from ...planning.resizing.fused import fused_keys
from ...planning.resizing.gradients import FIRST, SECOND, added, gradient_rows, why_lost
from ...planning.target import TargetSpec
from ...planning.transplant.options import Options
from ...tensors.info import TensorInfo
from ...util.text import count, escape, grouped, together
from ..inputs.inputs import names_of, plan_source, view_of
from ..inputs.operations import OperatedCheckpoint, operate
from .optimizer_source import NAMES, OptimizerSource, ParameterId, ParameterState, open_optimizer_source

__all__ = ["ResizedNetwork", "optimizer_plan"]

_OLD = "old"
"""The temporary prefix of values that are copied to new parameters unchanged, such as ``step``."""
_MOST_ROWS = 10_000
"""The largest number of operations in a plan: a limit on the size of its file."""
_PARTS = re.compile(r"^pad:parts=([0-9]{1,4}),dim=([0-9])$")
_ADDED_LAYER = re.compile(r"^(.*\.resized\.[0-9]+\.)")
_LOST = "{names} {are} {why}"
"""The template of what a note says of parameters that begin with a new state."""


@dataclass(frozen=True)
class ResizedNetwork:
    """How the weights of a network change: the ``rows`` of operations on tensors with the keys of ``first``.

    ``kinds`` are the kinds of the tensors of ``first``. ``policies`` maps patterns without numbers to the policy that
    adds initialised elements. ``untied`` are the keys of tensors that are tied only in ``first``. If ``moves_rows`` is
    true, the rows of the tensors in ``last.vocabulary`` are moved with their tokens. ``unlike`` are the keys of tensors
    whose copies have different gradients; queries, keys and values are separate there.
    """

    first: TargetSpec
    last: TargetSpec
    kinds: Mapping[str, str]
    rows: Sequence[Mapping[str, Any]]
    policies: Mapping[str, str] = field(default_factory=dict)
    untied: frozenset[str] = frozenset()
    moves_rows: bool = False
    unlike: frozenset[str] = frozenset()

    def named_as_stored(self, keys: Iterable[str]) -> set[str]:
        """Return the patterns of the tensors in the output that have ``keys``, which may be patterns, or parts of them.

        Parts are queries, keys and values that the network has in one tensor.
        """
        first = Network(self.first.tensors, self.kinds, self.first.ties)
        fused = {numberless(part): numberless(key) for part, key in fused_keys(first).items()}
        patterns = {key if "{" in key else numberless(final_keys(key)) for key in keys}
        return {fused.get(pattern, pattern) for pattern in patterns}


def optimizer_plan(
    path: str, network: ResizedNetwork, *, arguments: Mapping[str, Any], notes: Sequence[str], others: Sequence[str]
) -> Plan:
    """Return the plan of the optimizer's state in the file ``path`` for the resized network.

    ``notes`` are those on the change of the weights, ``others`` are files that the output must not overwrite. Raises
    ConfigError if it is not known which values belong to which parameter, PlanError if none can be kept.
    """
    names = parameter_names(network.first)
    if not names:
        raise ConfigError(
            "the order of the network's parameters is not known, as no code builds it.",
            hint="Leave --optimizer out: training then starts with a new optimizer state.",
        )
    source = open_optimizer_source(path, Network(network.first.tensors, network.kinds, network.first.ties), names)
    try:
        found = _Moments(source, network).resized(parameter_names(network.last))
        view = view_of(
            plan_source(names_of([source.checkpoint.path])[0], source.checkpoint, operations=found.made.derived.rows),
            found.made.checkpoint,
        )
        plan = plan_edit(
            "resize", replace(view, made=found.made.derived.by), Options.of(include=[STATE]), arguments=arguments,
            carried=CarriedEntries(source.checkpoint.root, (), found.groups), notes=[*notes, *found.notes],
        )  # fmt: skip
    except BaseException:
        source.checkpoint.close()
        raise
    steps = tuple(replace(step, tied_to="") for step in plan.steps)  # an optimizer changes each of them in place
    return replace(plan, excluded=0, steps=steps, inputs=PlanInputs((found.made.checkpoint,), None, tuple(others)))


@dataclass(frozen=True)
class _Found:
    """The resized state: its tensors, the groups of parameters, and notes."""

    made: OperatedCheckpoint
    groups: tuple[ParameterGroup, ...]
    notes: Sequence[str]


class _Moments:
    """Resizes the moments in ``source`` as the gradients of the weights of ``network`` change."""

    def __init__(self, source: OptimizerSource, network: ResizedNetwork) -> None:
        self._source, self._network = source, network
        self._lost: dict[str, str] = {}
        self._unusable: dict[str, str] = {}
        self._filled = set[str]()
        self._padded = network.named_as_stored(row["pad"] for row in network.rows if "pad" in row)
        self._by_final: tuple[Mapping[str, TensorInfo], Mapping[str, str]] | None = None
        self._added_layers = _added_layers(network.rows)
        self._own = set(map(numberless, network.first.tensors))
        self._stored = [
            {one for name in names if name in source.states for one in source.states[name].tensors}
            for names in source.groups
        ]
        self._unlike = network.named_as_stored(network.unlike)
        self._estimated = dict[str, None]()

    def resized(self, parameters: Sequence[str]) -> _Found:
        """Return the state for the ``parameters`` of the resized network, in order; raises PlanError if it is empty."""
        states, names = self._source.states, {state.id: name for name, state in self._source.states.items()}
        self._made = operate([self._source.checkpoint], [])[0]
        self._made = self._made.further([row for name, state in states.items() for row in self._beginning(name, state)])
        moments = [one for one in (*FIRST, *SECOND) if any(one in state.tensors for state in states.values())]
        for moment in moments:
            self._apply([new for row in self._network.rows for new in gradient_rows(row, moment)])
        groups = self._groups(parameters)
        ids = {name: one for group, named in groups for one, name in zip(group["params"], named, strict=True)}
        kept, rows = dict[str, ParameterState](), list[Mapping[str, Any]]()
        for name in parameters:
            if name in ids:
                origin, own = self._kept(name, ids[name], self._moments_beside(name, moments))
                kept.update({name: states[names[origin]]} if origin is not None else {})
                rows += own
        self._made = self._made.further([*rows, *self._copied_numbers(kept, ids)])
        if not kept:
            why = f": {self._said_lost()}" if self._lost else ""
            raise PlanError(
                f"no parameter of the output can keep its moments in {escape(self._source.checkpoint.path)}{why}.",
                hint="Leave --optimizer out: training then starts with a new optimizer state.",
            )
        if len(self._made.derived.rows) > _MOST_ROWS:
            raise PlanError(
                f"{escape(self._source.checkpoint.path)} has more values than {_MOST_ROWS} operations can change.",
                hint="Leave --optimizer out: training then starts with a new optimizer state.",
            )
        return _Found(self._made, tuple(group for group, _ in groups), list(self._notes(len(kept), len(ids))))

    def _beginning(self, name: str, state: ParameterState) -> Iterator[dict[str, Any]]:
        """Yield the operations that give the values of a parameter temporary keys; note values of an unknown kind."""
        unknown = [one for one, info in state.tensors.items() if info.shape and one not in (*FIRST, *SECOND)]
        if unknown:
            self._unusable[numberless(name)] = f"stored as {', '.join(unknown)}, which cannot follow a change of shape"
        for one, info in state.tensors.items():
            is_moment = bool(info.shape or not self._network.first.tensors[name].shape) and one in (*FIRST, *SECOND)
            new = f"{one}.{quoted(name)}" if is_moment else f"{_OLD}.{quoted(str(state.id))}.{quoted(one)}"
            if not unknown or not is_moment:
                yield {"copy": quoted(f"{STATE}.{state.id}.{one}"), "into": [new]}
            else:
                yield {"copy": quoted(f"{STATE}.{state.id}.{one}"), "into": [f"{_OLD}.{new}"]}

    def _apply(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Apply operations one by one; those on tensors that the optimizer does not have are left out."""
        for row in rows:
            try:
                self._made = self._made.further([row])
            except PatternError:
                continue

    def _kept(
        self, name: str, new: ParameterId, moments: Sequence[str]
    ) -> tuple[ParameterId | None, list[Mapping[str, Any]]]:
        """Return the id of the source's parameter, and the operations that give its moments their final keys.

        The id is None if the parameter keeps no moments; ``self._lost`` then says why.
        """
        tensors = self._made.checkpoint
        keys = {one: key for one in moments if (key := self._key(f"{one}.{name}", tensors)) is not None}
        if not keys or len(keys) < len(moments):
            self._lost[name] = self._why_absent(name, [one for one in moments if keys and one not in keys])
            return None, []
        why = self._why_lost(name, [tensors[key] for key in keys.values()], next(iter(keys.values())))
        origins = {self._origin(key) for key in keys.values()}
        if why or len(origins) != 1:
            self._lost[name] = why or "0 at first"
            return None, []
        (origin,) = origins
        if numberless(name) in self._padded:
            self._filled.add(numberless(name))
        if numberless(name) in self._unlike:
            self._estimated[numberless(name)] = None
        rows = list[Mapping[str, Any]]()
        for one, key in keys.items():
            rows += [*self._fitted(key, name, one), {"copy": quoted(key), "into": [quoted(f"{STATE}.{new}.{one}")]}]
        return origin, rows

    def _key(self, key: str, tensors: Mapping[str, TensorInfo]) -> str | None:
        """Return the present key of the tensor that is called ``key`` in the output; layers have temporary keys."""
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
        """Return those of ``moments`` that any parameter has in the source's group of the parameter ``name``.

        Groups may have different settings, so that only some of them have a momentum.
        """
        number = self._source.group_of(name, self._network.last.tensors[name].shape)
        beside = self._stored[number] if number is not None else ()
        return [one for one in moments if one in beside]

    def _why_absent(self, name: str, lacking: Sequence[str]) -> str:
        """Return why a parameter has no moments, or none with the names ``lacking``."""
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
        """Yield the operations that give a moment the shape of the parameter ``name``: new elements at the end."""
        info, wanted = self._made.checkpoint[key], self._network.last.tensors[name].shape
        policy = _PARTS.match(self._network.policies.get(numberless(name), ""))
        for dim, (old, new) in enumerate(zip(info.shape, wanted, strict=False)):
            if old == new:
                continue
            if new > old:
                self._filled.add(numberless(name))
            parts = int(policy[1]) if policy is not None and int(policy[2]) == dim else 1
            if new < old:
                yield {"slice": quoted(key), "dim": dim, "begin": 0, "end": new}
            elif parts == 1:
                yield from added(quoted(key), dim, new, moment)
            else:
                pieces = [f"{_OLD}.{moment}.{quoted(name)}.{number}" for number in range(parts)]
                yield {"split": quoted(key), "into": pieces, "dim": dim}
                for piece in pieces:
                    yield from added(piece, dim, new // parts, moment)
                yield {"concat": pieces, "into": quoted(key), "dim": dim}

    def _groups(self, parameters: Sequence[str]) -> list[tuple[ParameterGroup, list[str]]]:
        """Return the groups of the output: the entries that change, and the names of the parameters."""
        last = self._network.last.tensors
        members: list[list[str]] = [[] for _ in self._source.groups]
        for name in parameters:
            number = self._source.group_of(name, last[name].shape)
            if number is not None:
                members[number].append(name)
        found, at = list[tuple[ParameterGroup, list[str]]](), 0
        for names in members:
            ids = tuple(names) if self._source.has_names else tuple(range(at, at + len(names)))
            at += len(names)
            found.append(({"params": ids, **({NAMES: tuple(names)} if self._source.lists_names else {})}, names))
        return found

    def _copied_numbers(
        self, kept: Mapping[str, ParameterState], ids: Mapping[str, ParameterId]
    ) -> Iterator[dict[str, Any]]:
        """Yield the operations that copy one number for a parameter, such as ``step``, to all that are made from it."""
        into: dict[str, list[str]] = {}
        for name, state in kept.items():
            for one, info in state.tensors.items():
                if not info.shape and one not in (*FIRST, *SECOND):
                    key = f"{_OLD}.{quoted(str(state.id))}.{quoted(one)}"
                    into.setdefault(key, []).append(quoted(f"{STATE}.{ids[name]}.{one}"))
            for one, value in state.numbers.items():
                key = f"{STATE}.{ids[name]}.{one}"
                yield {"constant": key, "values": [float(value)]}
                yield {"reshape": quoted(key), "shape": []}
        yield from ({"copy": key, "into": keys} for key, keys in into.items())

    def _notes(self, kept: int, number: int) -> Iterator[str]:
        name = escape(os.path.basename(self._source.checkpoint.path))
        yield f"the moments of {kept} of {count(number, 'parameter')} are those in {name}, changed as gradients change"
        if self._filled:
            stored = {one for state in self._source.states.values() for one in state.tensors}
            values = ["a first moment of 0"] * (not stored.isdisjoint(FIRST))
            values += ["second moments of others"] * (not stored.isdisjoint(SECOND))
            filled = grouped([(one, "") for one in sorted(self._filled)], "{names}")
            yield f"new elements of {filled} begin with {' and '.join(values)}"
        if self._estimated:
            yield (
                f"the moments of {together(list(self._estimated))} are estimates: each copy of a head has an equal "
                "share, but different queries read the copies, so their gradients differ"
            )
        if self._lost:
            yield f"parameters that begin with a new state: {self._said_lost()}"

    def _said_lost(self) -> str:
        """Return which parameters begin anew, and why; a pattern stands for parameters that all do for one reason."""
        whys: dict[str, set[str]] = {}
        for name in self._network.last.tensors:
            whys.setdefault(numberless(name), set()).add(self._lost.get(name, ""))
        said = {(numberless(one) if len(whys[numberless(one)]) == 1 else one): why for one, why in self._lost.items()}
        return grouped(list(said.items()), _LOST)


def _added_layers(rows: Sequence[Mapping[str, Any]]) -> set[str]:
    """Return the beginnings of the temporary keys of layers that only pass their input on."""
    found = (_ADDED_LAYER.match(row["zero"]) for row in rows if "zero" in row)
    return {match[1] for match in found if match is not None}
