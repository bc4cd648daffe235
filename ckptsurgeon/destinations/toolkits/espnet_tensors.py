"""What ESPnet's names mean: which tensors run along the vocabulary, and which layer follows which."""

from __future__ import annotations

from collections.abc import Mapping

from ...tensors.info import TensorInfo

__all__ = ["layers_of", "vocabulary_of"]

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
"""The axis of each tensor that ESPnet sizes by the vocabulary: transformer, RNN and transducer decoders, CTC, LMs."""

_WITH_MASK = ("decoder.embed.0.weight", "decoder.output_layer.weight", "decoder.output_layer.bias")
"""What has one row more in the decoder of mask-CTC, for the mask (espnet2/asr/decoder/mlm_decoder.py)."""

_ENCODER = ("encoder.embed", "encoder.encoders", "encoder.after_norm")
_DECODER = ("decoder.embed", "decoder.decoders", "decoder.after_norm", "decoder.output_layer")


def vocabulary_of(tensors: Mapping[str, TensorInfo], size: int, decoder: object) -> dict[str, int]:
    """Return the axis along which each tensor holds a row for every one of ``size`` tokens.

    Those of the decoder ``mlm`` are declared too, so that none is copied in another order: no list is as long as they.
    """
    sizes = {key: size + (decoder == "mlm" and key in _WITH_MASK) for key in _AXES}
    return {key: axis for key, axis in _AXES.items() if _size(tensors, key, axis) == sizes[key]}


def _size(tensors: Mapping[str, TensorInfo], key: str, axis: int) -> int:
    shape = tensors[key].shape if key in tensors else ()
    return shape[axis] if axis < len(shape) else -1


def layers_of(tensors: Mapping[str, TensorInfo]) -> tuple[str, ...]:
    """Return the layers of a model with one way out, CTC or decoder; of one with both, no layer is the last."""
    heads = {key.partition(".")[0] for key in tensors}
    if "joint_network" in heads or ("ctc" in heads) == ("decoder" in heads):
        return ()
    modules = (*_ENCODER, *(_DECODER if "decoder" in heads else ("ctc",)))
    found = {module: _layers_in(module, tensors) for module in modules}
    if not (found["encoder.encoders"] and found[modules[-1]]):
        return ()  # RNN and others, whose layers have other names
    return tuple(layer for layers in found.values() for layer in layers)


def _layers_in(module: str, tensors: Mapping[str, TensorInfo]) -> list[str]:
    """Return a module, or where its parts are numbered, each of them."""
    inside = [key[len(module) + 1 :] for key in tensors if key.startswith(f"{module}.")]
    if not module.endswith("coders"):
        return [module] if inside else []
    return [f"{module}.{part}" for part in dict.fromkeys(key.partition(".")[0] for key in inside)]
