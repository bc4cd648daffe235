"""icefall's transducers with scaled layers: the network as it is trained, and the same network with plain layers.

Conformers (``pruned_transducer_stateless2`` to ``6``), LSTMs (``lstm_transducer_stateless`` to ``3``) and Emformers
(``conv_emformer_transducer_stateless`` and ``2``) have a scale for each parameter. For its exports, icefall multiplies
the parameters by their scales. Later recipes, such as Zipformer's, have plain layers from the start.
https://github.com/k2-fsa/icefall/blob/master/egs/librispeech/ASR/pruned_transducer_stateless3/scaling_converter.py
"""

from __future__ import annotations

from ..layout import Family, Layout, Tensors
from ..scaled_layers import ScaledLayers

__all__ = ["FAMILY"]

_LAYERS = ("encoder.encoder.layers.{n}", "encoder.encoder.emformer_layers.{n}")
_OUTPUTS = ("decoder", "joiner", "simple_am_proj", "simple_lm_proj")
_NAMES = {one: one for one in (*_LAYERS, "encoder", *_OUTPUTS, *(f"{name}_giga" for name in _OUTPUTS))}
_NORM = ".norm_final.eps"
_PLAIN = ("encoder.encoder_embed.out.weight", "decoder.embedding.weight", "joiner.output_linear.weight")
_SCALED = ("encoder.encoder_embed.out.weight_scale", "decoder.embedding.scale", "joiner.output_linear.weight_scale")


def _has_layers(tensors: Tensors) -> bool:
    """Return whether layers of an encoder end with a norm whose only tensor is ``eps``, as in icefall."""
    return any(layer.format(n=0) + _NORM in tensors for layer in _LAYERS)


def _is_plain(tensors: Tensors) -> bool:
    """Return whether the tensors make up an icefall transducer with plain layers, which have no scales."""
    return _has_layers(tensors) and not any(mark in tensors for mark in _SCALED)


FAMILY = Family(
    "icefall-transducer",
    (
        Layout(
            "icefall-plain", "icefall with plain layers", "icefall at 36e0420", _NAMES,
            _PLAIN,
            fits=_is_plain,
        ),
        Layout(
            "icefall-scaled", "icefall with scaled layers", "icefall at 36e0420", _NAMES,
            _SCALED,
            (ScaledLayers(),),
            fits=_has_layers,
        ),
    ),
)  # fmt: skip
