"""Copies the entries of a source that are not tensors, such as ``epoch``, or the settings of an optimizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ...checkpoint.checkpoint import Checkpoint
from ...checkpoint.optimizer_states import GROUPS, STATE
from ...checkpoint.other_entries import why_not_plain
from ...errors import PlanError
from ...formats.base.header import ExtraEntries
from ...planning.plan.plan import Plan
from ...util.text import escape, listing

__all__ = ["carried_entries"]


def carried_entries(plan: Plan, sources: Sequence[Checkpoint]) -> ExtraEntries:
    """Return the entries other than tensors (such as ``epoch``) that a plan copies from the first of its ``sources``.

    Raises PlanError if the source lacks one of these entries.
    """
    carried = plan.carried
    if carried.groups:
        return _optimizer_state(plan, sources[0])
    source = sources[0] if sources else None
    path = source.root_names if source is not None else None
    if source is None or path is None or source.root != carried.root:
        where = escape(carried.root) if carried.root else "the top level"
        raise PlanError(
            f"the plan copies entries that are not tensors from the state dict at {where}, but the source has no state "
            "dict there.",
            hint="Make a new plan.",
        )
    wanted = set(carried.entries)
    entries = [entry for entry in source.to_carry() if not entry.why and entry.name in wanted]
    lacking = wanted - {entry.name for entry in entries}
    if lacking:
        raise PlanError(
            f"the plan copies entries that {escape(source.path)} lacks: {listing(sorted(lacking))}.",
            hint="Make a new plan.",
        )
    depths = range(len(path) + 1)
    levels = tuple({e.key: e.value for e in entries if len(e.place) == depth} for depth in depths)
    _check_apart(plan, path, levels)
    return ExtraEntries(path, levels)


def _check_apart(plan: Plan, path: Sequence[str], levels: Sequence[Mapping[str, object]]) -> None:
    """Raise PlanError if a copied entry has the same name as a tensor, or as a dict that contains the tensors.

    The dict of tensors may be in nested dicts: ``path`` are the keys that lead to it, from the outermost dict inwards.
    ``levels`` has the copied entries of each of these dicts, in the same order.
    """
    taken = [step.key for step in plan.steps if step.key in levels[-1]]
    taken += [name for name, level in zip(path, levels, strict=False) if name in level]
    if taken:
        raise PlanError(
            "the plan copies entries that are not tensors, but the output has tensors with the same names: "
            f"{listing(taken)}.",
            hint="Make a new plan.",
            details=taken,
        )


def _optimizer_state(plan: Plan, source: Checkpoint) -> ExtraEntries:
    """Return what an optimizer's state contains besides the tensors: ``param_groups``, and where each tensor belongs.

    The settings of each parameter group, such as the learning rate, come from the source. Raises PlanError if the
    parameter groups of the source have changed since the plan was made.
    """
    given = source.others.get(GROUPS)
    groups = given if isinstance(given, list) else []
    wanted = plan.carried.groups
    if len(groups) != len(wanted) or not all(isinstance(one, dict) for one in groups) or why_not_plain(groups):
        raise PlanError(
            f"the plan copies {len(wanted)} parameter groups of an optimizer from {escape(source.path)}, whose groups "
            "have changed.",
            hint="Make a new plan.",
        )
    merged = [
        {**one, **{name: list(ids) for name, ids in new.items()}} for one, new in zip(groups, wanted, strict=True)
    ]
    every: Mapping[str, Any] = {str(one): one for group in wanted for one in group["params"]}
    places = {step.key: _place(step.key, every) for step in plan.steps}
    return ExtraEntries((), ({GROUPS: merged},), places)


def _place(key: str, parameters: Mapping[str, Any]) -> tuple[str | int, ...]:
    """Return the keys that lead to a tensor in nested dicts: "state.0.exp_avg" -> ("state", 0, "exp_avg").

    ``parameters`` is {parameter, as it is in the key: its index or name in the optimizer's state}.
    """
    parameter, _, name = key.removeprefix(f"{STATE}.").rpartition(".")
    return STATE, parameters.get(parameter, parameter), name
