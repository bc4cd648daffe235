"""The change of icefall's scaled layers, which store the logarithm of a scale with each parameter.

The parameter is multiplied by the scale when the layer is run.

https://github.com/k2-fsa/icefall/blob/master/egs/librispeech/ASR/pruned_transducer_stateless2/scaling.py
(``ScaledLinear``, ``ScaledConv1d``, ``ScaledConv2d``, ``ScaledLSTM``, ``ScaledEmbedding``)
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from ..keys.spelling import numberless
from .layout import Numbers, Row, Tensors

__all__ = ["ScaledLayers"]

_SCALE = "_scale"
_EMBEDDING, _OF_EMBEDDING = "embedding.weight", "embedding.scale"
_PARAMETER = re.compile(r"(weight|bias|pos_bias_[uv]|(weight|bias)_[a-z]{2}_l\d+)")


@dataclass(frozen=True)
class ScaledLayers:
    """A change of all parameters of a network: the other layout stores a parameter and the logarithm of its scale.

    The family's own layout stores their product: the parameter times e to the power of the logarithm. The norms of such
    a network have only an ``eps``, which has no scale.
    """

    made: str = ""

    def there(self, tensors: Tensors, numbers: Numbers, at: Callable[[str], str]) -> list[Row]:
        """Return the operations that add a logarithm of 0 for each parameter: a scale of 1 changes no value."""
        found = [key for key in tensors if _PARAMETER.fullmatch(key.rpartition(".")[2])]
        return [row for key in _patterns(found) for row in _unscaled(key)]

    def back(self, tensors: Tensors, numbers: Numbers, at: Callable[[str], str]) -> list[Row]:
        """Return the operations that multiply each parameter by its scale and remove the scale."""
        found = [of for key in tensors if (of := _scaled(key)) in tensors]
        return [{"exp_scale": [key, _scale_of(key)], "into": key} for key in _patterns(found)]


def _scaled(key: str) -> str:
    """Return the key of the parameter that is multiplied by the scale ``key``; '' if ``key`` does not name a scale."""
    if key.endswith(_OF_EMBEDDING):
        return key.removesuffix(_OF_EMBEDDING) + _EMBEDDING
    return key.removesuffix(_SCALE) if key.endswith(_SCALE) else ""


def _scale_of(key: str) -> str:
    """Return the key of the scale of a parameter."""
    return key.removesuffix(_EMBEDDING) + _OF_EMBEDDING if key.endswith(_EMBEDDING) else f"{key}{_SCALE}"


def _patterns(keys: Iterable[str]) -> list[str]:
    """Return patterns that match the keys, in their order: one for keys that differ only in numbers."""
    return [*dict.fromkeys(numberless(key) for key in keys)]


def _unscaled(key: str) -> list[Row]:
    """Return the operations that add a scale of 1 to each parameter that ``key`` matches: the logarithm 0."""
    scale = _scale_of(key)
    return [
        {"copy": key, "into": [key, scale]},
        {"zero": scale},
        {"reshape": scale, "shape": [-1]},
        {"slice": scale, "end": 1},
        {"reshape": scale, "shape": []},
    ]
