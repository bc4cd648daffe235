"""Makes the metadata of llama.cpp for a model of transformers, from the fields of its config.json.

https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import Any

from ...errors import PlanError
from ...planning.llama_cpp.names import COHERE, GPT_OSS, PHI_3
from .cohere import cohere_entries
from .experts import expert_entries
from .fields import check_activation, check_only, defaults_of, number_in
from .gemma import check_gemma
from .phi_3 import phi_3_entries
from .rope import rope_entries
from .sliding_window import window_entries

__all__ = ["common_entries", "described", "entries_of"]

_PAIRS = {
    "max_position_embeddings": "context_length",
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "vocab_size": "vocab_size",
}
_OF_GEMMA_2 = {"attn_logit_softcapping": "attn_logit_softcapping", "final_logit_softcapping": "final_logit_softcapping"}
_REQUIRED = ("hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers", "max_position_embeddings")


def described(
    config: Mapping[str, Any], architecture: str, *, layers: int, size: int, experts: Set[int] = frozenset()
) -> dict[str, str]:
    """Return the metadata entries of GGUF for a model of transformers, with their values as strings.

    ``layers`` is the number of layers in the weights, and ``size`` the size of an attention head. ``experts`` has every
    number of experts that a layer has: {8} if each layer has 8 experts. Raises PlanError for a field that llama.cpp
    needs and config.json lacks, or for a value that the metadata of GGUF cannot express.
    """
    if architecture == "olmo2":
        check_only(config, "attention_bias", False)
    if architecture == "starcoder2":
        check_only(config, "use_bias", True)
    found = common_entries(config, layers)
    if architecture in ("gemma2", "gemma3"):
        check_gemma(config, architecture, size=size, layers=layers)
    found |= {"attention.key_length": str(size), "attention.value_length": str(size)}
    found |= {"rope.dimension_count": str(size)} if architecture == "llama" else {}
    if architecture == PHI_3:
        found |= phi_3_entries(config, size)
    else:
        found |= dict(rope_entries(config, rounds=architecture == GPT_OSS))
    if architecture == COHERE:
        found |= cohere_entries(config)
    found |= expert_entries(config, architecture, experts)
    found = window_entries(config, architecture) | found
    if architecture == "gemma2":
        found |= {theirs: str(number_in(config, ours)) for ours, theirs in _OF_GEMMA_2.items() if ours in config}
    return entries_of(architecture, found)


def common_entries(config: Mapping[str, Any], layers: int) -> dict[str, str]:
    """Return the entries for sizes, heads, context length and epsilon, without the architecture as prefix.

    Raises PlanError if a required field is not an integer, and for an activation that llama.cpp does not have for the
    model.
    """
    for name in _REQUIRED:
        if type(config.get(name)) is not int:
            raise PlanError(f"config.json has no whole number {name}, which GGUF needs.", hint="Complete config.json.")
    check_activation(config)
    found = {"block_count": str(layers)}
    found |= {theirs: str(config[ours]) for ours, theirs in _PAIRS.items() if type(config.get(ours)) is int}
    default = defaults_of(config)
    entry = "layer_norm_rms_epsilon" if default.norm.startswith("rms") else "layer_norm_epsilon"
    return found | {f"attention.{entry}": str(number_in(config, default.norm, default.epsilon))}


def entries_of(architecture: str, found: Mapping[str, str]) -> dict[str, str]:
    """Return the entries ``found`` with prefix (``llama.block_count``), and the entries for architecture and type."""
    named = {f"{architecture}.{key}": value for key, value in found.items()}
    return {"general.architecture": architecture, "general.type": "model", **named}
