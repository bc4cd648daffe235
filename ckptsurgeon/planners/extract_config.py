"""What PEFT is to know of an adapter: its ``adapter_config.json``. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from ..tensors import TensorInfo
from .extract_options import Extraction
from .extract_sorting import Sorted, module_of
from .extract_steps import scale_of

__all__ = ["adapter_config"]


def adapter_config(found: Sorted, tuned: Mapping[str, TensorInfo], base: str, asked: Extraction) -> dict[str, Any]:
    """Return what PEFT is to know: targets by their whole names, other ranks where a matrix is smaller."""
    modules = {module_of(key): min(asked.rank, *tuned[key].shape) for key in found.factored}
    smaller = {module: rank for module, rank in modules.items() if rank != asked.rank}
    alpha = asked.rank if asked.alpha is None else asked.alpha
    return {
        "peft_type": "LORA",
        "base_model_name_or_path": base,
        "task_type": None,
        "inference_mode": True,
        "r": asked.rank,
        "lora_alpha": alpha,
        "rank_pattern": {f"^{_exact(module)}": rank for module, rank in smaller.items()},
        "alpha_pattern": {f"^{_exact(module)}": scale_of(asked) * rank for module, rank in smaller.items()},
        "target_modules": _targets(list(modules), tuned),
        "modules_to_save": found.modules or None,
        "bias": "lora_only" if found.biases else "none",
        "fan_in_fan_out": asked.transposed,
        "lora_dropout": 0.0,
        "use_rslora": False,
        "use_dora": False,
        "init_lora_weights": True,
    }


def _exact(module: str) -> str:
    return re.escape(module)


def _targets(modules: Sequence[str], tuned: Mapping[str, TensorInfo]) -> list[str] | str:
    """Return the names of layers, or, where others end with one of them, an expression that is these alone."""
    chosen = set(modules)
    others = {module_of(key) for key in tuned} - chosen
    tails = {other[at + 1 :] for other in others for at in range(len(other)) if other[at] == "."}
    return "|".join(map(_exact, modules)) if tails & chosen else list(modules)
