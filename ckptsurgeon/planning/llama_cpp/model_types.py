"""The models of transformers that llama.cpp has an architecture for, and transformers' defaults for their fields."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from .names import COHERE, DEEPSEEK, GPT_OSS, PHI_3

__all__ = ["DEFAULTS", "MODEL_TYPES", "Defaults"]

MODEL_TYPES: Mapping[str, str] = {
    "llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "gemma": "gemma", "gemma2": "gemma2",
    "gemma3_text": "gemma3", "mixtral": "llama", "qwen2_moe": "qwen2moe", "qwen3_moe": "qwen3moe",
    "deepseek_v2": DEEPSEEK, "deepseek_v3": DEEPSEEK, "kimi_k2": DEEPSEEK, "gpt_oss": GPT_OSS,
    "phi3": PHI_3, "olmo2": "olmo2", "starcoder2": "starcoder2", "cohere": COHERE,
}  # fmt: skip
"""The architecture of each ``model_type`` of transformers."""


@dataclass(frozen=True)
class Defaults:
    """The assumptions of transformers and of llama.cpp about a model type.

    ``theta`` (the base of the rotary embedding) and ``epsilon`` (of norms) are transformers' defaults for fields that
    config.json lacks. llama.cpp has only one activation for the model type; ``activations`` are its names. ``norm``
    is the field that contains the epsilon; if it begins with ``rms``, norms divide by the root mean square.
    """

    theta: float = 1e4
    epsilon: float = 1e-6
    activations: tuple[str, ...] = ("silu", "swish")
    norm: str = "rms_norm_eps"


_GELU = ("gelu_pytorch_tanh", "gelu")
"""The names of Gemma's activation; transformers computes ``gelu_pytorch_tanh`` for the old name ``gelu`` too."""
DEFAULTS: Mapping[str, Defaults] = {
    **{name: Defaults() for name in ("llama", "mistral", "qwen2", "qwen3", "qwen2_moe", "qwen3_moe")},
    **{name: Defaults() for name in ("deepseek_v2", "deepseek_v3", "kimi_k2")},
    "phi3": Defaults(epsilon=1e-5),
    "olmo2": Defaults(epsilon=1e-5),
    "starcoder2": Defaults(epsilon=1e-5, activations=_GELU[:1], norm="norm_epsilon"),
    "cohere": Defaults(theta=5e5, epsilon=1e-5, norm="layer_norm_eps"),
    "gpt_oss": Defaults(theta=1.5e5, epsilon=1e-5),
    "mixtral": Defaults(theta=1e6, epsilon=1e-5),
    "gemma": Defaults(activations=_GELU),
    "gemma2": Defaults(activations=_GELU[:1]),
    "gemma3_text": Defaults(theta=1e6, activations=_GELU[:1]),
}
"""The defaults of each ``model_type``, as in its configuration class in transformers."""
