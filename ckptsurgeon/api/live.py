"""``load_into``: a transplant into a module that is alive."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from ..configs import module_destination
from ..plan import Plan
from ..planners import Options
from .inputs import close_inputs, inputs_of
from .planning import plan_into, rules_as_text, specs_of
from .types import Mismatch, Patterns, Rules, Sources

if TYPE_CHECKING:
    from torch import nn

__all__ = ["load_into"]


def load_into(
    model: nn.Module,
    source: Sources,
    *,
    include: Patterns = (),
    exclude: Patterns = (),
    map: Rules = (),
    on_mismatch: Mismatch = (),
    on_missing: str = "init",
    require: Patterns = (),
    strict: bool = False,
    root: str | None = None,
) -> Plan:
    """Load one or more sources into a live module by the rules of ``transplant``; returns the plan carried out.

    What no source gives keeps its values, and dtypes follow the module. On failure not a value, flag or tie of the
    module has changed. Raises what ``transplant`` raises.
    """
    from torch import Tensor

    from ..engine import load_tensors

    target = module_destination(model)
    options = Options.of(
        include=include, exclude=exclude, rules=rules_as_text(map), on_mismatch=on_mismatch, require=require,
        on_missing=on_missing, strict=strict,
    )  # fmt: skip
    plan = plan_into(specs_of(source), target, options, seed=0, arguments={}, root=root)
    inputs = inputs_of(plan)
    try:
        tensors = {k: v for k, v in model.state_dict(keep_vars=True).items() if isinstance(v, Tensor)}
        lost = load_tensors(plan, inputs, tensors)
    finally:
        close_inputs(inputs)
    return replace(plan, inputs=None, notes=(*plan.notes, *lost))
