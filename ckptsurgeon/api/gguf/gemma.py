"""What llama.cpp computes for Gemma 2 and 3 whatever the metadata say: a config.json with something else is an error.

``llama-model.cpp`` has the scale of the attention and the order of the layers with a window; the 27 B models, whose
scale is another, are told by the number of their layers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .fields import check_only

__all__ = ["check_gemma"]

LARGE = {"gemma2": 46, "gemma3": 62}
"""The number of layers of the 27 B model, by llama.cpp's architecture."""
PERIOD = {"gemma2": 2, "gemma3": 6}
"""Every so many layers one attends to the whole text, by llama.cpp's architecture."""


def check_gemma(config: Mapping[str, Any], architecture: str, *, size: int, layers: int) -> None:
    """Raise PlanError if config.json scales the attention, or has windows, in another way than llama.cpp.

    ``size`` is that of a head.
    """
    scaled_by = config["hidden_size"] // config["num_attention_heads"] if layers == LARGE[architecture] else size
    check_only(config, "query_pre_attn_scalar", scaled_by)
    kinds = ["sliding_attention" if (layer + 1) % PERIOD[architecture] else "full_attention" for layer in range(layers)]
    check_only(config, "layer_types", kinds)
