"""What the configuration beside the weights says of them: the dtype that they are planned in, not the model's own."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from typing import Any

from ...planning.plan.plan import Plan, PlanCompanion
from ...planning.target import TargetSpec
from ...tensors.dtypes import DTYPES

__all__ = ["with_dtype_said"]

_OF_MODELS = ("float32", "bfloat16", "float16", "float64")
"""What a model can be made in, the default first."""


def with_dtype_said(plan: Plan, target: TargetSpec) -> Plan:
    """Return a plan whose config.json names the dtype of its weights: from_pretrained would cast them to another.

    Where they have several, which the model itself has not, it stays and a note says so.
    """
    config = next((one for one in plan.target.companions if one.name == "config.json" and one.text), None)
    floating = [step for step in plan.steps if DTYPES[step.dtype].kind == "float"]
    if config is None or all(step.dtype == target.tensors[step.key].dtype for step in floating):
        return plan
    fields = json.loads(config.text)
    said = fields.get("dtype") or _OF_MODELS[0]
    planned = sorted({step.dtype for step in floating})
    if planned == [said]:
        return plan
    if len(planned) > 1 or planned[0] not in _OF_MODELS:
        note = f"config.json says {said}, which from_pretrained makes of weights that are {' and '.join(planned)} here"
        return replace(plan, notes=(*plan.notes, note))
    text = json.dumps({**_renamed(fields, planned[0]), "dtype": planned[0]}, indent=2, sort_keys=True) + "\n"
    data = text.encode()
    said_so = PlanCompanion(config.name, len(data), hashlib.sha256(data).hexdigest(), text=text)
    beside = tuple(said_so if one is config else one for one in plan.target.companions)
    return replace(plan, target=replace(plan.target, companions=beside))


def _renamed(fields: dict[str, Any], dtype: str) -> dict[str, Any]:
    """Return fields with another dtype wherever one is named, in the configurations of parts too."""
    changed = {key: _renamed(value, dtype) if isinstance(value, dict) else value for key, value in fields.items()}
    return {**changed, "dtype": dtype} if str(fields.get("dtype")) in DTYPES else changed
