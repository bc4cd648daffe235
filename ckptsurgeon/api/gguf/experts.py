"""Makes llama.cpp's metadata for the experts of a mixture-of-experts model of transformers."""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import Any

from ...errors import PlanError
from ...planning.llama_cpp.names import ARCHITECTURES, GPT_OSS
from ...util.text import brief_repr

__all__ = ["expert_entries"]

_COUNTS = ("num_local_experts", "num_experts")
_USED, _NORMED = "num_experts_per_tok", "norm_topk_prob"
_SAYING_NORMED = ("qwen2moe", "qwen3moe")
"""llama.cpp's architectures for models whose config.json has the field ``norm_topk_prob``."""
_SIZES = {
    "moe_intermediate_size": "expert_feed_forward_length",
    "shared_expert_intermediate_size": "expert_shared_feed_forward_length",
}


def expert_entries(config: Mapping[str, Any], architecture: str, numbers: Set[int]) -> dict[str, str]:
    """Return the entries for experts, without the architecture as prefix; {} for a model without experts.

    ``numbers`` has every number of experts that a layer of the weights has: {8} if each layer has 8 experts. Raises
    PlanError if config.json contradicts ``numbers``, or if the model chooses experts in another way than llama.cpp.
    """
    if not numbers:
        return {}
    name = next((name for name in _COUNTS if name in config), _COUNTS[-1])
    if numbers != {config.get(name)}:
        raise PlanError(
            f"config.json gives {name} as {brief_repr(config.get(name), 40)}, but the layers have "
            f"{' or '.join(map(str, sorted(numbers)))} experts.",
            hint="Correct config.json.",
        )
    used = config.get(_USED)
    if type(used) is not int or not 0 < used <= config[name]:
        raise PlanError(
            f"config.json gives {_USED} as {brief_repr(used, 40)}, not a number from 1 to {config[name]}.",
            hint="Correct config.json.",
        )
    normed = ARCHITECTURES[architecture].normed
    if architecture in _SAYING_NORMED and bool(config.get(_NORMED, False)) != normed:
        raise PlanError(
            f"config.json gives {_NORMED} as {brief_repr(config.get(_NORMED), 40)}, but llama.cpp's {architecture} "
            f"{'always' if normed else 'never'} divides the weights of the chosen experts by their sum.",
            hint="Convert without changing the layout: --layout keep.",
        )
    if architecture == GPT_OSS:
        config = {**config, "moe_intermediate_size": config.get("intermediate_size")}
    sizes = {theirs: str(config[ours]) for ours, theirs in _SIZES.items() if type(config.get(ours)) is int}
    return {"expert_count": str(config[name]), "expert_used_count": str(used), **sizes}
