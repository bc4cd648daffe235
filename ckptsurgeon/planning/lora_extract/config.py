"""PEFT's ``adapter_config.json`` for an extracted adapter, and the check of an edited plan against it."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from ...errors import PlanError
from ...methods.lora.conv1d import is_named_conv1d
from ...util.text import brief_repr, escape
from ..plan.compute import Factor
from ..plan.files import PlanCompanion
from ..plan.plan import Plan
from ..plan.step import Step
from .steps import PREFIX, factor_name, module_of, unwrapped

__all__ = ["CONFIG", "WEIGHTS", "adapter_config", "check_adapter"]


def adapter_config(steps: Sequence[Step], keys: Collection[str], base: str) -> dict[str, Any]:
    """Return PEFT's configuration of the adapter that the steps make; ``keys`` are the keys of the network.

    ``base`` becomes ``base_model_name_or_path``. Target modules have their full names. ``r`` and ``lora_alpha`` are
    taken from the module with the largest rank; modules with another rank or alpha have entries in ``rank_pattern`` and
    ``alpha_pattern``. Raises PlanError if the steps do not make an adapter.
    """
    factored = _factored(steps)
    first = max(factored.values(), key=lambda step: _factor(step).rank)
    rank, alpha = _factor(first).rank, _alpha(first)
    ranks = {module: _factor(step).rank for module, step in factored.items() if _factor(step).rank != rank}
    alphas = {module: _alpha(step) for module, step in factored.items() if _alpha(step) != alpha}
    copied = [step.key.removeprefix(PREFIX) for step in steps if step.op != "factor"]
    biases, saved = _saved(copied, list(factored), keys)
    return {
        "peft_type": "LORA",
        "base_model_name_or_path": base,
        "task_type": None,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {f"^{re.escape(module)}": one for module, one in ranks.items()},
        "alpha_pattern": {f"^{re.escape(module)}": one for module, one in alphas.items()},
        "target_modules": _targets(list(factored), keys),
        "modules_to_save": saved or None,
        "bias": "lora_only" if biases else "none",
        "fan_in_fan_out": _transposed(factored.values()),
        "lora_dropout": 0.0,
        "use_rslora": False,
        "use_dora": False,
        "init_lora_weights": True,
    }


def _factor(step: Step) -> Factor:
    assert step.factor is not None  # ensured by _factored
    return step.factor


def _alpha(step: Step) -> float:
    """Return alpha, the scale times the rank, as an integer if it is whole: PEFT computes the scale as alpha / rank."""
    alpha = float(f"{_factor(step).scale * _factor(step).rank:.15g}")
    return int(alpha) if alpha.is_integer() else alpha


def _factored(steps: Sequence[Step]) -> dict[str, Step]:
    """Return {module: the first of the two steps that make its factors A and B}.

    Raises PlanError unless each module has exactly one factor A and one matching B, under their names in PEFT.
    """
    parts: dict[str, dict[str, Step]] = {}
    for step in steps:
        name = factor_name(step.key)
        if (name is None) != (step.factor is None) or not step.key.startswith(PREFIX):
            raise _no_adapter(f"{escape(step.key)} is not a PEFT name for the operation {step.op}")
        if name is not None and step.factor is not None:
            if step.factor.part != name.part:
                raise _no_adapter(f"{escape(step.key)} would get the values of factor {escape(step.factor.part)}")
            parts.setdefault(name.module, {})[name.ending] = step
    for module, pair in parts.items():
        _check_pair(module, pair)
    if not parts:
        raise _no_adapter("it has no factors")
    return {module: next(iter(pair.values())) for module, pair in parts.items()}


def _check_pair(module: str, pair: Mapping[str, Step]) -> None:
    if {ending.rpartition("_")[0] for ending in pair} not in ({"lora"}, {"lora_embedding"}) or len(pair) != 2:
        raise _no_adapter(f"{escape(module)} does not have exactly one factor A and one factor B")
    first, second = pair.values()
    ours, theirs = ((one.inputs, _factor_settings(_factor(one))) for one in (first, second))
    if ours != theirs:
        raise _no_adapter(
            f"the two factors of {escape(module)} have different inputs or settings (rank, scale, layout, seed)"
        )


def _factor_settings(factor: Factor) -> tuple[int, float, bool, int]:
    return factor.rank, factor.scale, factor.transposed, factor.seed


def _saved(names: Sequence[str], factored: Sequence[str], keys: Collection[str]) -> tuple[list[str], list[str]]:
    """Return (saved biases of layers with factors, names of modules and parameters that the adapter saves unchanged).

    ``names`` are PEFT's names of the saved tensors, ``factored`` the modules with factors, ``keys`` the network's keys.
    """
    within = {module_of(module) for module in map(module_of, keys)} | {""}
    biases: list[str] = []
    saved: dict[str, None] = {}
    for name in names:
        key = unwrapped(name)
        module = module_of(key)
        if module in factored and key.endswith(".bias"):
            biases.append(key)
        elif module in factored or module in within:
            saved[key] = None
        else:
            saved[module] = None
    _check_whole(saved, names, keys)
    modules = set(map(module_of, keys))
    return biases, [_only(one, modules) for one in saved]


def _check_whole(saved: Collection[str], names: Collection[str], keys: Collection[str]) -> None:
    """Raise PlanError if a saved module has a tensor that is not saved: PEFT could not load such an adapter."""
    lacking = [key for key in keys if module_of(key) in saved and key not in set(names)]
    if lacking:
        raise _no_adapter(f"it saves {escape(module_of(lacking[0]))}, but not {escape(lacking[0])}")


def _only(name: str, modules: Collection[str]) -> str:
    """Return ``name``, with PEFT's prefix if the names of other modules also end with ``name``.

    PEFT selects modules by the ends of their names: without the prefix, it would save the other modules, too.
    """
    return f"{PREFIX}{name}" if any(other != name and other.endswith(name) for other in modules) else name


def _transposed(factors: Collection[Step]) -> bool:
    """Return whether the weights of some layers have the layout (in, out).

    PEFT derives the layout of a weight from the type of its layer. So if only some weights are (in, out), they must be
    exactly those with the names of transformers' Conv1D layers; raises PlanError if they are not.
    """
    matrices = [step for step in factors if len(step.source_shape) == 2 and "lora_embedding_" not in step.key]
    lie = {step.source_key: _factor(step).transposed for step in matrices}
    if len(set(lie.values())) > 1 and any(is_named_conv1d(key) != lies for key, lies in lie.items()):
        raise _no_adapter("some of its factors are transposed, and some are not")
    return True in lie.values()


def _targets(modules: Sequence[str], keys: Collection[str]) -> list[str] | str:
    """Return PEFT's ``target_modules`` for the modules: a list of their names, or a regular expression.

    PEFT also adapts every other module whose name ends with a name in the list. If there is such a module, the result
    is a regular expression that matches whole names.
    """
    chosen = set(modules)
    others = set(map(module_of, keys)) - chosen
    tails = {other[at + 1 :] for other in others for at in range(len(other)) if other[at] == "."}
    return "|".join(map(re.escape, modules)) if tails & chosen else list(modules)


def _no_adapter(why: str) -> PlanError:
    return PlanError(
        f"the plan does not make an adapter that PEFT can open: {why}.", hint="Make a new plan, with other options."
    )


# Checks a plan of an adapter, which may have been edited, against its configuration.

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"

FREE = {"auto_mapping", "base_model_name_or_path", "inference_mode", "peft_version", "revision", "task_type"}
"""Settings that do not depend on the tensors."""


def check_adapter(plan: Plan, keys: Collection[str]) -> None:
    """Raise PlanError if the adapter that a plan makes, for a network with ``keys``, does not fit its configuration."""
    configs = [one for one in plan.target.companions if one.name == CONFIG]
    if not any(step.op == "factor" for step in plan.steps) and not any(one.text for one in configs):
        return
    if plan.target.weights != WEIGHTS or not configs:
        raise _contradicts(f"it makes an adapter, but not as the files {WEIGHTS} and {CONFIG}")
    wanted, settings = adapter_config(plan.steps, keys, ""), _settings_of(configs[0])
    for name in sorted((wanted.keys() | settings.keys()) - FREE):
        if name not in wanted:
            raise _contradicts(f"its {CONFIG} sets {brief_repr(name)}, which no step needs")
        if not _same(wanted[name], settings.get(name)):
            there = brief_repr(settings[name]) if name in settings else "nothing"
            raise _contradicts(
                f"its {CONFIG} has {there} for {name}, but the factors that it writes need {brief_repr(wanted[name])}"
            )


def _settings_of(config: PlanCompanion) -> Mapping[str, Any]:
    try:
        data = json.loads(config.text)
    except (ValueError, RecursionError):
        data = None
    if not isinstance(data, dict):
        raise _contradicts(f"its {CONFIG} is not a JSON object")
    return data


def _same(ours: Any, theirs: Any) -> bool:
    """Return whether two settings of a configuration have equal values of the same type; lists may differ in order."""
    if isinstance(ours, list) and isinstance(theirs, list):
        ours, theirs = sorted(map(str, ours)), sorted(map(str, theirs))
    return json.dumps(ours, sort_keys=True) == json.dumps(theirs, sort_keys=True)


def _contradicts(why: str) -> PlanError:
    return PlanError(f"the plan contradicts itself: {why}.", hint="Make a new plan, with other options.")
