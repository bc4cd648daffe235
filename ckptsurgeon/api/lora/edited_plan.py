"""Checks that the plan of an adapter, which may have been edited, does not contradict its configuration."""

from __future__ import annotations

from collections.abc import Collection

from ...errors import CheckpointError, PlanError
from ...methods.lora.config import parse_config
from ...methods.lora.reading import read_adapter
from ...planning.lora_extract.config import check_adapter
from ...planning.lora_merge.expert_stacks import stack_modules
from ...planning.lora_output.peft import CONFIG, WEIGHTS
from ...planning.lora_output.stacked_experts import target_stacks, with_layers_only
from ...planning.plan.plan import Plan
from ...storage.json_text import read_json
from ...tensors.info import TensorInfo
from ...util.text import escape

__all__ = ["check_edited_adapter"]

MADE = ("lora concat", "lora convert", "lora resize")
"""The verbs that make adapters from adapters."""


def check_edited_adapter(plan: Plan, keys: Collection[str]) -> None:
    """Raise PlanError if a plan makes an adapter whose tensors do not fit its adapter_config.json.

    ``keys`` are the keys of the plan's first source, which is the tuned model for ``lora extract``.
    """
    if plan.verb not in MADE:
        check_adapter(plan, keys)
        return
    if plan.target.weights != WEIGHTS:
        return
    tensors = {step.key: TensorInfo(step.dtype, step.shape) for step in plan.steps}
    texts = [one.text for one in plan.target.companions if one.name == CONFIG]
    try:
        data = read_json(texts[0] if texts else "")
        has_stacks = isinstance(data, dict) and bool(target_stacks(data))
        config = parse_config(with_layers_only(data) if has_stacks else data, CONFIG)
        stacks = stack_modules(tensors, data, config, CONFIG, {}) if has_stacks else ()
        read_adapter(tensors, config, "the output", lambda key: 1.0, stacks=stacks)
    except (ValueError, CheckpointError) as error:
        why = error.message if isinstance(error, CheckpointError) else f"its {CONFIG} is not valid JSON"
        raise PlanError(
            f"the plan contradicts itself: {escape(why.rstrip('.'))}.", hint="Make a new plan, with other options."
        ) from error
