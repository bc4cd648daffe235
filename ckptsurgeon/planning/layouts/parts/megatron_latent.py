"""The names of multi-latent attention in Megatron-core: DeepSeek-V2 and V3, Kimi K2, Moonlight, GLM-4.7-Flash.

The rows have the order of transformers: Megatron-core rotates pairs of rows in this attention, too. With modules of
Transformer Engine, the norms before the second projections are parts of these; with Megatron's own, they are modules.
The norm before the attention is a module in both.
https://github.com/NVIDIA/Megatron-LM/blob/core_v0.16.1/megatron/core/transformer/multi_latent_attention.py,
https://github.com/NVIDIA-NeMo/Megatron-Bridge/blob/main/src/megatron/bridge/models/deepseek/common.py
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..layout import Unfit

__all__ = ["LATENT_ATTENTION", "LATENT_MARK", "LATENT_NORMS", "unfit_rotation"]

LATENT_ATTENTION = {
    f"self_attn.{ours}.weight": f"self_attention.{theirs}.weight"
    for ours, theirs in {
        "q_proj": "linear_q_proj",
        "q_a_proj": "linear_q_down_proj",
        "q_b_proj": "linear_q_up_proj",
        "kv_a_proj_with_mqa": "linear_kv_down_proj",
        "kv_b_proj": "linear_kv_up_proj",
    }.items()
}
"""{name of a matrix in a layer of transformers: Megatron's name}. Small networks have one matrix of queries."""
LATENT_MARK = "self_attention.linear_kv_down_proj.weight"
"""The matrix that every layer with this attention has."""
LATENT_NORMS: Mapping[str, Mapping[str, str]] = {
    kind: {f"self_attn.{one}_a_layernorm.weight": f"self_attention.{name.format(one)}" for one in ("q", "kv")}
    for kind, name in (("te", "linear_{}_up_proj.layer_norm_weight"), ("local", "{}_layernorm.weight"))
}
"""{"te" (Transformer Engine) or "local" (Megatron's own modules): names of the norms in a layer}."""


def unfit_rotation(config: Mapping[str, Any]) -> Unfit | None:
    """Return why Megatron-core cannot compute a network with this configuration; None if it can."""
    if config.get("rope_interleave", True) is not False:
        return None
    return Unfit(
        "config.json has rope_interleave: false, and Megatron-core rotates pairs of rows in this attention",
        "Reorder the rows that are rotated with --operations first, and remove rope_interleave from config.json.",
    )
