"""``explain``: says why each tensor of a transplant has its source, rule and policy, and how a tensor is merged."""

from __future__ import annotations

from ..analysis.explain import explain as explained
from ..analysis.explanation import Explained
from ..analysis.merge_explanation import ExplainedMerge
from ..engine.inputs import PlanInputs
from ..errors import ConfigError
from ..planning.plan.plan import Plan
from .inputs.argument_types import Patterns, checked

__all__ = ["explain"]


@checked
def explain(plan: Plan, keys: Patterns) -> Explained | ExplainedMerge:
    """Explain the destination tensors that ``keys`` match (a key, a pattern, or several), in the destination's order.

    For a plan of ``transplant``, the result has the source, rule and policy of each tensor, and the alternatives to
    them. Alternatives are known only if ``transplant`` made the plan in this process. For a plan of ``merge`` with a
    base, the result has the changes of the models from the base, and the agreement of these changes. It also has the
    share of each change that each merge method would keep: the method of the plan, and every other method. Raises
    PatternError for a pattern that matches no destination key, ConfigError for a plan of another verb, or if ``keys``
    match more than 16 tensors of a merge.
    """
    patterns = [keys] if isinstance(keys, str) else list(keys or ())
    if plan.verb == "merge":
        from .merge.explain import explain_merge

        return explain_merge(plan, patterns)
    if plan.verb != "transplant":
        raise ConfigError(
            f"explain needs a plan of transplant or merge, but this is a plan of {plan.verb}.",
            hint="Make the plan with transplant or merge.",
        )
    planning = plan.inputs.planning if isinstance(plan.inputs, PlanInputs) else None
    return explained(plan, patterns, planning)
