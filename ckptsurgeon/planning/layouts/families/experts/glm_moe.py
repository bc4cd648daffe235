"""GLM-4.5, 4.6 and 4.7 with experts, and dots.llm1, which has their names: transformers, MLX and Megatron.

The queries and keys of each head may have norms.
"""

from __future__ import annotations

from ...heads import heads_of_decoder
from ...parts.megatron import HEAD_NORMS
from ...parts.routed_decoder import SHARED, RoutedDecoder

__all__ = ["FAMILY"]

FAMILY = RoutedDecoder(
    "glm-moe",
    (*(f"self_attn.{kind}_proj" for kind in "qkvo"), *HEAD_NORMS),
    ("self_attn.q_proj.weight", "mlp.gate.e_score_correction_bias", "mlp.shared_experts.down_proj.weight"),
    ("mlp.router.expert_bias", SHARED),
    (*HEAD_NORMS.items(),),
    numbers=heads_of_decoder,
).family()
