"""DeepSeek-V2 and V3, and networks with their names: Kimi K2, Moonlight, GLM-4.7-Flash; transformers and Megatron-core.

These networks have multi-latent attention. The router of DeepSeek-V2 has no bias, and the smallest DeepSeek-V2 has no
first matrix of queries.
"""

from __future__ import annotations

from ...parts.megatron_latent import LATENT_ATTENTION, LATENT_NORMS
from ...parts.routed_decoder import RoutedDecoder

__all__ = ["FAMILY"]

FAMILY = RoutedDecoder(
    "deepseek",
    (*LATENT_ATTENTION, *LATENT_NORMS["local"], "self_attn.o_proj"),
    ("self_attn.kv_a_proj_with_mqa.weight",),
    has_latent=True,
).family()
