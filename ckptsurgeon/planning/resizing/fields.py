"""The fields of a configuration that determine sizes, and the objects that each of them counts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

__all__ = ["EXPERT_GROUPS", "ORDER", "USED_EXPERTS", "role_of"]

_NAMES: Mapping[str, Iterable[str]] = {
    "channels": (
        "intermediate_size", "d_ff", "n_inner", "ffn_dim", "encoder_ffn_dim", "decoder_ffn_dim", "hidden_dim",
        "moe_intermediate_size", "shared_expert_intermediate_size", "intermediate_size_mlp", "dim_feedforward",
        "ffn_hidden_size", "shared_intermediate_size", "mlp_dim", "d_inner",
    ),
    "experts": ("num_local_experts", "num_experts", "n_routed_experts"),
    "width": ("hidden_size", "d_model", "n_embd", "dim"),
    "kv_heads": ("num_key_value_heads", "num_kv_heads", "n_head_kv"),
    "heads": (
        "num_attention_heads", "num_heads", "n_head", "n_heads", "encoder_attention_heads", "decoder_attention_heads",
        "attention_heads", "heads", "nhead",
    ),
    "depth": (
        "encoder_num_hidden_layers", "decoder_num_hidden_layers",
        "num_hidden_layers", "num_layers", "n_layer", "n_layers", "num_decoder_layers", "num_encoder_layers",
        "encoder_layers", "decoder_layers",
    ),
    "vocabulary": ("vocab_size",),
}  # fmt: skip
ORDER = tuple(_NAMES)
"""The values of ``role_of``, in the order in which sizes are changed: layers are copied after all other changes.

The rows of a vocabulary are mapped last, when the results are made.
"""
_ROLES = {name: role for role, names in _NAMES.items() for name in names}


USED_EXPERTS = (
    "num_experts_per_tok", "num_experts_per_token", "experts_per_token", "top_k", "moe_topk", "moe_k", "moe_top_k",
    "router_top_k",
)  # fmt: skip
"""The fields with the number of experts that each position uses."""

EXPERT_GROUPS = ("n_group", "num_expert_group")
"""The fields with the number of groups into which routers divide the experts; Kimi-Linear and Ling have the second."""


def role_of(field: str) -> str:
    """Return the role of a field: the kind of object that it counts; '' for a field of another kind.

    A field may count "channels" (of feed-forward layers), "experts", "width", "heads", "kv_heads" (of keys and values),
    "depth" and "vocabulary".

    ``field`` may be the path of a field in a part of the configuration (``text_config.hidden_size``).
    """
    return _ROLES.get(field.rpartition(".")[2], "")
