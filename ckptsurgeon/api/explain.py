"""``explain``: why a tensor of a plan is what it is."""

from __future__ import annotations

from ..analysis.explain import explain as explained
from ..analysis.explanation import Explained
from ..errors import ConfigError
from ..planning.plan.plan import Plan
from .inputs.argument_types import Patterns
from .inputs.inputs import OpenInputs

__all__ = ["explain"]


def explain(plan: Plan, keys: Patterns) -> Explained:
    """Explain the destination tensors that ``keys`` name (a key, a pattern, or several), in the destination's order.

    What each is made of, by which rule and policy, and what it could have been; the alternatives are known of plans
    that ``transplant`` made in this process. Raises PatternError for what matches no destination key, ConfigError for
    a plan of another verb.
    """
    if plan.verb != "transplant":
        raise ConfigError(f"this is a plan of {plan.verb}; explain is for those of transplant.")
    patterns = [keys] if isinstance(keys, str) else list(keys or ())
    planning = plan.inputs.planning if isinstance(plan.inputs, OpenInputs) else None
    return explained(plan, patterns, planning)
