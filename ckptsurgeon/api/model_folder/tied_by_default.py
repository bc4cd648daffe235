"""Which models of transformers compute with their embedding as output layer if their config.json does not say it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["TIES", "UNTIED", "model_type_of", "untied_by_default"]

TIES = "tie_word_embeddings"
UNTIED = frozenset({
    "afmoe", "apertus", "arcee", "bamba", "bitnet", "codegen", "cwm", "dbrx", "deepseek_v2", "deepseek_v3", "diffllama",
    "doge", "dots1", "exaone4", "falcon_h1", "flex_olmo", "glm", "glm4", "glm4_moe", "gpt_neox", "gpt_oss", "gptj",
    "granite", "granitemoe", "granitemoehybrid", "granitemoeshared", "helium", "hunyuan_v1_dense", "hunyuan_v1_moe",
    "jamba", "llama", "llama4_text", "longcat_flash", "mamba2", "minimax", "ministral", "mistral", "mixtral",
    "nanochat", "nemotron", "olmo", "olmo2", "olmo3", "olmoe", "persimmon", "phi", "phi3", "phimoe", "qwen2",
    "qwen2_moe", "qwen3", "qwen3_moe", "qwen3_next", "rwkv", "seed_oss", "stablelm",
})  # fmt: skip
"""Model types of language models whose classes have false as default; for most others it is true."""


def model_type_of(config: Mapping[str, Any]) -> str:
    """Return the type of the model that a configuration gives a vocabulary: of its text part, if it has one."""
    text = config.get("text_config")
    found = text.get("model_type") if isinstance(text, dict) else config.get("model_type")
    return found if isinstance(found, str) else ""


def untied_by_default(config: Mapping[str, Any]) -> bool:
    """Whether the class of a configuration's model unties the output layer unless the configuration ties it."""
    return model_type_of(config) in UNTIED
