"""``explain``: says why each tensor of a plan has its source, rule and policy."""

from __future__ import annotations

from ..analysis.explain import explain as explained
from ..analysis.explanation import Explained
from ..engine.inputs import PlanInputs
from ..errors import ConfigError
from ..planning.plan.plan import Plan
from .inputs.argument_types import Patterns

__all__ = ["explain"]


def explain(plan: Plan, keys: Patterns) -> Explained:
    """Explain the destination tensors that ``keys`` match (a key, a pattern, or several), in the destination's order.

    The result has the source, rule and policy of each tensor, and the alternatives to them. Alternatives are known only
    if ``transplant`` made the plan in this process. Raises PatternError for a pattern that matches no destination
    key, ConfigError for a plan of another verb.
    """
    if plan.verb != "transplant":
        raise ConfigError(f"explain needs a plan of transplant, but this is a plan of {plan.verb}.")
    patterns = [keys] if isinstance(keys, str) else list(keys or ())
    planning = plan.inputs.planning if isinstance(plan.inputs, PlanInputs) else None
    return explained(plan, patterns, planning)
