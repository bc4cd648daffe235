"""Refuses a Gemma 2 or 3 whose attention llama.cpp would compute differently.

In llama.cpp, the scale of the attention and the order of the layers with a sliding window are not read from the
metadata: both are fixed in ``llama-model.cpp``. It has another scale for the 27 B models, which it recognises by their
number of layers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .fields import check_only

__all__ = ["check_gemma"]

LARGE = {"gemma2": 46, "gemma3": 62}
"""The number of layers of the 27 B model, by llama.cpp's architecture."""
PERIOD = {"gemma2": 2, "gemma3": 6}
"""The period of the layers, by llama.cpp's architecture: the last layer of each period has no sliding window."""


def check_gemma(config: Mapping[str, Any], architecture: str, *, size: int, layers: int) -> None:
    """Raise PlanError if config.json has another scale of attention or other sliding windows than llama.cpp.

    ``size`` is the size of a head, and ``layers`` the number of layers.
    """
    scaled_by = config["hidden_size"] // config["num_attention_heads"] if layers == LARGE[architecture] else size
    check_only(config, "query_pre_attn_scalar", scaled_by)
    kinds = ["sliding_attention" if (layer + 1) % PERIOD[architecture] else "full_attention" for layer in range(layers)]
    check_only(config, "layer_types", kinds)
