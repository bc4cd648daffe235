"""Makes the metadata entries of GGUF that only Cohere's Command R and Aya have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .fields import check_only, number_in
from .rope import rope_fields

__all__ = ["cohere_entries"]

SCALE = 0.0625
"""transformers' default for ``logit_scale``, the scale of the output."""


def cohere_entries(config: Mapping[str, Any]) -> dict[str, str]:
    """Return the metadata entries that only Cohere's models have, without the architecture as prefix.

    Raises PlanError for a field with a value that llama.cpp cannot compute with.

    The context length is ``model_max_length``: Aya and Command R were trained on this number of positions, which is
    larger than ``max_position_embeddings``.
    """
    check_only(config, "attention_bias", False)
    check_only(rope_fields(config), "rope_type", "default")
    found = {"logit_scale": str(number_in(config, "logit_scale", SCALE)), "rope.scaling.type": "none"}
    if type(config.get("model_max_length")) is int:
        found["context_length"] = str(config["model_max_length"])
    return found
