"""Finds vocabulary axes and the order of the layers of an ESPnet model, from the names of its tensors.

A vocabulary axis is the axis of a tensor that has one row for each token.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..tensors.info import TensorInfo

__all__ = ["layers_of", "vocabulary_of"]

# Tensors with a row for each token, and the order of layers.

_AXES = {
    "decoder.embed.0.weight": 0,
    "decoder.embed.weight": 0,
    "decoder.output_layer.weight": 0,
    "decoder.output_layer.bias": 0,
    "decoder.output.weight": 0,
    "decoder.output.bias": 0,
    "ctc.ctc_lo.weight": 0,
    "ctc.ctc_lo.bias": 0,
    "joint_network.lin_out.weight": 0,
    "joint_network.lin_out.bias": 0,
    "encoder.conditioning_layer.weight": 1,
    "lm.encoder.weight": 0,
    "lm.embed.weight": 0,
    "lm.decoder.weight": 0,
    "lm.decoder.bias": 0,
}
"""{key: axis with one row for each token}, for transformer, RNN and transducer decoders, CTC, and language models."""

_WITH_MASK = ("decoder.embed.0.weight", "decoder.output_layer.weight", "decoder.output_layer.bias")
"""Tensors that have an additional row for the mask token in mask-CTC (espnet2/asr/decoder/mlm_decoder.py)."""

_ENCODER = ("encoder.embed", "encoder.encoders", "encoder.after_norm")
_DECODER = ("decoder.embed", "decoder.decoders", "decoder.after_norm", "decoder.output_layer")


def vocabulary_of(tensors: Mapping[str, TensorInfo], size: int, decoder: object) -> dict[str, int]:
    """Return {key: axis} for the tensors with a vocabulary axis, which has one row for each of ``size`` tokens.

    If ``decoder``, the name of ESPnet's decoder, is "mlm", the result includes tensors with one more row than there are
    tokens, for the mask token. A token list does not contain that token, so mapping these tensors by token raises an
    error. If they were not in the result, their rows would be copied by position without a message, even if the order
    of the tokens differs.
    """
    sizes = {key: size + (decoder == "mlm" and key in _WITH_MASK) for key in _AXES}
    return {key: axis for key, axis in _AXES.items() if _size(tensors, key, axis) == sizes[key]}


def _size(tensors: Mapping[str, TensorInfo], key: str, axis: int) -> int:
    shape = tensors[key].shape if key in tensors else ()
    return shape[axis] if axis < len(shape) else -1


def layers_of(tensors: Mapping[str, TensorInfo]) -> tuple[str, ...]:
    """Return the names of a model's layers in the order of computation; () if no such order is known.

    No order is known for four kinds of models: models with both a CTC output and a decoder, because neither of the two
    is the last layer; models with neither a CTC output nor a decoder; models with a transducer's joint network; models
    whose layers do not have the names of a transformer's layers.
    """
    heads = {key.partition(".")[0] for key in tensors}
    if "joint_network" in heads or ("ctc" in heads) == ("decoder" in heads):
        return ()
    modules = (*_ENCODER, *(_DECODER if "decoder" in heads else ("ctc",)))
    found = {module: _layers_in(module, tensors) for module in modules}
    if not (found["encoder.encoders"] and found[modules[-1]]):
        return ()  # an RNN or another model whose layers do not have a transformer's names
    return tuple(layer for layers in found.values() for layer in layers)


def _layers_in(module: str, tensors: Mapping[str, TensorInfo]) -> list[str]:
    """Return the names of the layers in a stack of layers (``encoder.encoders``); [``module``] for any other module.

    Returns [] if the module has no tensors.
    """
    inside = [key[len(module) + 1 :] for key in tensors if key.startswith(f"{module}.")]
    if not module.endswith("coders"):
        return [module] if inside else []
    return [f"{module}.{part}" for part in dict.fromkeys(key.partition(".")[0] for key in inside)]
