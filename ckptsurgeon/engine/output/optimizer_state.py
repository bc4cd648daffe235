"""Makes a state for ``Optimizer.load_state_dict`` of torch from tensors with flat keys, such as "state.0.exp_avg"."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...checkpoint.checkpoint import Checkpoint
from ...checkpoint.extras import why_not_plain
from ...checkpoint.optimizer_states import GROUPS, STATE
from ...errors import PlanError
from ...formats.base.header import ExtraEntries
from ...planning.plan.plan import Plan
from ...util.text import escape

__all__ = ["optimizer_state"]


def optimizer_state(plan: Plan, source: Checkpoint) -> ExtraEntries:
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
