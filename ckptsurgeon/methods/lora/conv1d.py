"""Lists the layers of transformers' models that are Conv1D, whose weights are (in, out). Opens no file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["KnownModel", "is_named_conv1d", "known_model"]

_MLP = frozenset({"c_fc", "c_proj"})
_BLOCK = _MLP | {"c_attn", "q_attn"}

CONV1D: Mapping[str, frozenset[str]] = {
    "gpt2": _BLOCK,
    "openai-gpt": _BLOCK,
    "imagegpt": _BLOCK,
    "decision_transformer": _BLOCK,
    "clvp": _MLP,
    "clvp_decoder": _MLP,
}
"""The last part of the names of all Conv1D layers, by model_type, in transformers 5.23 (``models/*/modeling_*.py``).

PEFT merges Conv1D layers as (in, out) and torch's Linear as (out, in), whatever ``fan_in_fan_out`` is. PEFT sets this
field by the type of each layer that it wraps, so the saved value fits the last layer (peft 0.21,
``tuners/lora/layer.py``, dispatch_default).
"""


@dataclass(frozen=True)
class KnownModel:
    """A model of transformers: its model_type (``kind``), and the last part of the names of its Conv1D layers.

    If ``conv1d`` is empty, CONV1D does not list the model. Then its layers are torch's Linear, unless ``own_code`` is
    true: the model's code is not part of transformers.
    """

    kind: str
    conv1d: frozenset[str] = frozenset()
    own_code: bool = False

    @property
    def is_linear(self) -> bool:
        """Return whether it is known that no layer of the model is a Conv1D."""
        return not (self.conv1d or self.own_code)

    def has_conv1d(self, key: str) -> bool:
        """Return whether a key is the weight of one of the model's Conv1D layers."""
        return _layer(key) in self.conv1d


def known_model(config: Mapping[str, Any]) -> KnownModel | None:
    """Return the model that the data of a config.json describes; None if it has no model_type.

    If it contains other models, such as a vision and a text model, the names of their Conv1D layers are included.
    """
    kinds = list(_kinds(config))
    listed = [kind for kind in kinds if kind in CONV1D]
    if listed:
        return KnownModel(listed[0], frozenset().union(*(CONV1D[kind] for kind in listed)))
    return KnownModel(kinds[0], own_code=bool(config.get("auto_map"))) if kinds else None


def is_named_conv1d(key: str) -> bool:
    """Return whether a key has one of the names of Conv1D weights; other layers may have such names, too."""
    return _layer(key) in _BLOCK


def _kinds(config: Mapping[str, Any]) -> Iterator[str]:
    kind = config.get("model_type")
    if isinstance(kind, str):
        yield kind
    for part in config.values():
        if isinstance(part, dict) and isinstance(part.get("model_type"), str):
            yield part["model_type"]


def _layer(key: str) -> str:
    return key.removesuffix(".weight").rpartition(".")[2]
