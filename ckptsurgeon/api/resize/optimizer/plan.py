"""Plans the state of an optimizer for a network of another size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ....checkpoint.optimizer_states import STATE
from ....destinations.parameter_names import parameter_names
from ....engine.inputs import PlanInputs
from ....errors import ConfigError
from ....planning.edit import plan_edit
from ....planning.plan.plan import CarriedEntries, Plan
from ....planning.resizing.axes import Network
from ....planning.transplant.options import Options
from ...inputs.inputs import names_of, plan_source, view_of
from .moments import Moments
from .network import ResizedNetwork
from .source import open_optimizer_source

__all__ = ["optimizer_plan"]


def optimizer_plan(
    path: str, network: ResizedNetwork, *, arguments: Mapping[str, Any], notes: Sequence[str], others: Sequence[str]
) -> Plan:
    """Return the plan of the optimizer's state in the file ``path`` for the resized network.

    ``notes`` are the notes on the change of the weights, ``others`` are files that the output must not overwrite.
    Raises ConfigError if it is not known which values belong to which parameter, PlanError if none can be kept.
    """
    names = parameter_names(network.first)
    if not names:
        raise ConfigError(
            "the order of the network's parameters is not known, as no code builds it.",
            hint="Leave --optimizer out: training then starts with a new optimizer state.",
        )
    source = open_optimizer_source(path, Network(network.first.tensors, network.kinds, network.first.ties), names)
    try:
        found = Moments(source, network).resized(parameter_names(network.last))
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
    steps = tuple(replace(step, tied_to="") for step in plan.steps)  # an optimizer changes moments in place: share none
    return replace(plan, excluded=0, steps=steps, inputs=PlanInputs((found.made.checkpoint,), None, tuple(others)))
