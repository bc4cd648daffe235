"""The metadata that llama.cpp has for Cohere's Command R alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .fields import check_only, number_in
from .rope import rope_fields

__all__ = ["cohere_entries"]

SCALE = 0.0625
"""The scale of the output that transformers takes if config.json has none."""


def cohere_entries(config: Mapping[str, Any]) -> dict[str, str]:
    """Return the entries, without the architecture before them; raises PlanError for what llama.cpp cannot compute.

    Aya and Command R were trained on more positions than ``max_position_embeddings`` says: ``model_max_length``.
    """
    check_only(config, "attention_bias", False)
    check_only(rope_fields(config), "rope_type", "default")
    found = {"logit_scale": str(number_in(config, "logit_scale", SCALE)), "rope.scaling.type": "none"}
    if type(config.get("model_max_length")) is int:
        found["context_length"] = str(config["model_max_length"])
    return found
