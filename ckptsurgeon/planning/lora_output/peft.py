"""PEFT's names and configuration for the modules of a new adapter."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ..plan.files import PlanCompanion
from ..plan.step import Step
from .modules import NewModule, factor_step, most_common
from .stacked_experts import FIRST, nested_key, selected_fields, selects_matrix

__all__ = ["CONFIG", "FIELDS", "WEIGHTS", "companion", "peft_fields", "peft_steps", "ranks_and_alphas"]

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
TWICE = ".base_layer.out_proj."
"""A part of the keys of factors for the output layer of torch's MultiheadAttention, which PEFT wraps twice."""

FIELDS: Mapping[str, Any] = {
    "peft_type": "LORA", "base_model_name_or_path": None, "task_type": None, "inference_mode": True, "bias": "none",
    "modules_to_save": None, "fan_in_fan_out": False, "lora_dropout": 0.0, "use_dora": False, "lora_bias": False,
    "init_lora_weights": True,
}  # fmt: skip
"""The fields of a configuration of PEFT that do not depend on its modules, with the values of a new adapter."""

_NAMED = re.compile(r"(\.lora_(?:embedding_)?A)(?:\.(?!weight$)[^.]+)?(\.weight)?$")


def peft_steps(modules: Sequence[NewModule]) -> list[Step]:
    """Return the steps of all factors, with PEFT's names."""
    return [factor_step(_key(module, part), module, part) for module in _nested(modules) for part in "AB"]


def _nested(modules: Sequence[NewModule]) -> list[NewModule]:
    """Return the modules with the wrappers that PEFT nests around stacks of experts, of which a module may have two.

    PEFT wraps the joined matrix of gate and up first, unless an adapter of both shows another order.
    """
    groups: dict[str, list[NewModule]] = {}
    for one in modules:
        if one.experts:
            groups.setdefault(one.name.rpartition(".")[0], []).append(one)
    inner = {_inner(group) for group in groups.values() if len(group) > 1}
    return [
        replace(one, origin=nested_key(one.origin, is_inner=one.name in inner)) if one.experts else one
        for one in modules
    ]


def _inner(stacks: Sequence[NewModule]) -> str:
    """Return the name of the stack, one of two in a module, that gets the inner wrapper."""
    shown = [one.name for one in stacks if any(".base_layer." in given.key for given in one.a.inputs)]
    return next(iter(shown), next(one.name for one in stacks if one.name.endswith(FIRST)))


def _key(module: NewModule, part: str) -> str:
    """Return PEFT's name of a factor, with the same wrappers around the layer as in the source's name."""
    origin = f"{PREFIX}{module.origin.removeprefix(PREFIX)}" if module.experts else module.origin
    found = _NAMED.search(origin) if origin.startswith(PREFIX) else None
    if found is not None:
        return f"{origin[: found.start()]}{found[1][:-1]}{part}{found[2] or ''}"
    ending = f"lora_embedding_{part}" if module.embedding else f"lora_{part}.weight"
    return f"{PREFIX}{module.name}.{ending}"


def ranks_and_alphas(modules: Sequence[NewModule], settings: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return PEFT's ``r``, ``lora_alpha``, ``rank_pattern`` and ``alpha_pattern``; most modules need no pattern.

    ``settings`` are other fields of the configuration: PEFT compares patterns with the name of the weight of a module
    that ``target_parameters`` selects.
    """
    patterns = {one.name: _pattern(one.name, settings or {}) for one in modules}
    alphas = {module.name: _alpha(module) for module in modules}
    rank = int(most_common(module.rank for module in modules))
    alpha = most_common(alphas[module.name] for module in modules if module.rank == rank)
    return {
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {patterns[one.name]: one.rank for one in modules if one.rank != rank},
        "alpha_pattern": {patterns[one.name]: alphas[one.name] for one in modules if alphas[one.name] != alpha},
        "use_rslora": False,
    }


def _pattern(name: str, settings: Mapping[str, Any]) -> str:
    return f"^{re.escape(name)}" + (r"\.weight" if selects_matrix(name, settings) else "")


def _alpha(module: NewModule) -> float:
    """Return alpha, the scale times the rank, as an integer if it is whole: PEFT computes the scale as alpha / rank."""
    scale = module.scale / (2 if TWICE in _key(module, "A") else 1)
    product = scale * module.rank
    alpha = next((one for one in (float(f"{product:.15g}"), product) if one / module.rank == scale), product)
    return int(alpha) if alpha.is_integer() else alpha


def peft_fields(modules: Sequence[NewModule], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the configuration of an adapter; ``settings`` are fields that do not follow from its modules.

    If ``settings`` has no ``target_modules``, the targets are the full names of the modules.
    """
    stacks = [module.name for module in modules if module.experts]
    names = list(dict.fromkeys(module.name for module in modules if not module.experts))
    targets = selected_fields(names, stacks, settings) if "target_modules" not in settings else {}
    return {**FIELDS, **settings, **targets, **ranks_and_alphas(modules, settings)}


def companion(fields: Mapping[str, Any], name: str = CONFIG) -> PlanCompanion:
    """Return the file ``name`` with a configuration as JSON."""
    text = json.dumps(fields, indent=2, sort_keys=True) + "\n"
    data = text.encode("utf-8", "surrogatepass")
    return PlanCompanion(name, len(data), hashlib.sha256(data).hexdigest(), text=text)
