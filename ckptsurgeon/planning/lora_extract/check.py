"""Holds a plan of an adapter, which may have been edited, against the configuration that goes with it. Pure."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Any

from ...errors import PlanError
from ...util.text import brief_repr
from ..plan.plan import Plan, PlanCompanion
from .config import adapter_config

__all__ = ["CONFIG", "WEIGHTS", "check_adapter"]

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"

FREE = {"auto_mapping", "base_model_name_or_path", "inference_mode", "peft_version", "revision", "task_type"}
"""Settings that say nothing of the tensors."""


def check_adapter(plan: Plan, keys: Collection[str]) -> None:
    """Raise PlanError where a plan makes an adapter of a network with ``keys`` that its configuration does not fit."""
    configs = [one for one in plan.target.companions if one.name == CONFIG]
    if not any(step.op == "factor" for step in plan.steps) and not any(one.text for one in configs):
        return
    if plan.target.weights != WEIGHTS or not configs:
        raise _contradicts(f"it makes an adapter, which is {WEIGHTS} and {CONFIG}")
    wanted, said = adapter_config(plan.steps, keys, ""), _said(configs[0])
    for name in sorted((wanted.keys() | said.keys()) - FREE):
        if name not in wanted:
            raise _contradicts(f"its {CONFIG} sets {brief_repr(name)}, which its steps do not")
        if not _same(wanted[name], said.get(name)):
            there = brief_repr(said[name]) if name in said else "nothing"
            raise _contradicts(f"its {CONFIG} has {there} for {name}, its steps make that {brief_repr(wanted[name])}")


def _said(config: PlanCompanion) -> Mapping[str, Any]:
    try:
        data = json.loads(config.text)
    except (ValueError, RecursionError):
        data = None
    if not isinstance(data, dict):
        raise _contradicts(f"its {CONFIG} is no JSON object")
    return data


def _same(ours: Any, theirs: Any) -> bool:
    """Whether two settings are alike, their types included; of lists of names the order does not count."""
    if isinstance(ours, list) and isinstance(theirs, list):
        ours, theirs = sorted(map(str, ours)), sorted(map(str, theirs))
    return json.dumps(ours, sort_keys=True) == json.dumps(theirs, sort_keys=True)


def _contradicts(why: str) -> PlanError:
    return PlanError(f"the plan contradicts itself: {why}.", hint="Plan again, with other options.")
