"""The sliding window of attention for llama.cpp: the metadata entry, and a note if llama.cpp ignores the window."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...planning.llama_cpp.names import GPT_OSS, PHI_3

__all__ = ["window_entries", "window_notes"]

WINDOWED = ("gemma2", "gemma3", GPT_OSS, PHI_3)
"""The architectures for which llama.cpp reads a sliding window."""
OF_CLASS = {"mistral": 4096}
"""The sliding window that transformers uses if config.json does not set one, by model type."""
SWITCHED = ("qwen2", "qwen3", "qwen2_moe", "qwen3_moe")
"""Model types with a window only if ``use_sliding_window`` is true, and only from layer ``max_window_layers`` on."""
FIRST_WINDOWED = 28
"""transformers' default for ``max_window_layers``."""


def window_entries(config: Mapping[str, Any], architecture: str) -> dict[str, str]:
    """Return the entry for the sliding window, without the architecture as prefix; {} if llama.cpp reads none."""
    window = config.get("sliding_window")
    return {"attention.sliding_window": str(window)} if architecture in WINDOWED and type(window) is int else {}


def window_notes(config: Mapping[str, Any], architecture: str, layers: int) -> tuple[str, ...]:
    """Return a note if a model has a sliding window that llama.cpp does not read; else ().

    ``layers`` is the number of layers. There is no note on a window that is at least as long as the longest text,
    because it has no effect.
    """
    window = config.get("sliding_window", OF_CLASS.get(str(config.get("model_type"))))
    longest = config.get("max_position_embeddings")
    if architecture in WINDOWED or type(window) is not int or type(longest) is not int or window >= longest:
        return ()
    if not _has_window(config, layers):
        return ()
    return (
        f"llama.cpp computes without the sliding_window of {window:,} tokens in config.json: it will give other "
        "results for longer texts",
    )


def _has_window(config: Mapping[str, Any], layers: int) -> bool:
    """Return whether any layer of a model with the field ``sliding_window`` uses the window."""
    kinds = config.get("layer_types")
    if config.get("model_type") in SWITCHED:
        first = config.get("max_window_layers", FIRST_WINDOWED)
        is_late = type(first) is int and first < layers
        is_on = config.get("use_sliding_window") is True
        return is_on and ("sliding_attention" in kinds if isinstance(kinds, list) else is_late)
    return config.get("use_sliding_window") is not False
