"""Which task of ESPnet a configuration is for, and what ESPnet's names of tensors mean."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..tensors.info import TensorInfo
from ._document import Document

__all__ = ["Task", "layers_of", "task_of", "vocabulary_of"]

# Which task of ESPnet a configuration is for: they do not say it, but each has entries that no other has.


@dataclass(frozen=True)
class Task:
    """A task by the class that builds its models."""

    module: str
    name: str


_ASR = Task("espnet2.tasks.asr", "ASRTask")
_LM = Task("espnet2.tasks.lm", "LMTask")
_S2T = Task("espnet2.tasks.s2t", "S2TTask")

_OTHERS = {
    "subtask_series": "enhancement with recognition (enh_s2t)",
    "src_token_list": "translation (st, mt)",
    "deliberationencoder": "spoken language understanding (slu)",
    "joint_network_conf": "the standalone transducer (asr_transducer)",
    "promptencoder": "s2t_ctc",
    "tts": "speech synthesis (tts)",
    "svs": "singing voice synthesis (svs)",
    "separator": "enhancement (enh)",
    "extractor": "target speaker extraction (enh_tse)",
    "label_aggregator": "diarisation (diar)",
    "pooling": "speaker recognition (spk, lid)",
    "segmenter": "unsupervised recognition (uasr)",
    "codec": "codecs (gan_codec)",
    "num_classes": "self-supervision (hubert, ssl)",
    "losses": "anti-spoofing (asvspoof)",
    "model_name": "ps2st",
    "tgt_feats_extract": "speech-to-speech translation (s2st)",
}
"""An entry of the tasks that are not built here, and what to call the task."""
_WHOLE = "required"
"""What only a configuration has that a run wrote: every argument of its task stands in it."""


def task_of(document: Document, values: Mapping[str, Any]) -> Task:
    """Return the task; raises ConfigError for one that is not built here. ASR is what has nothing of another."""
    other = next((name for mark, name in _OTHERS.items() if mark in values), None)
    if other is None and _WHOLE in values and not values.keys() & {"ctc_conf", "lm"}:
        other = "a task without CTC (cls)"
    if other is not None:
        raise document.fail(
            f"it is ESPnet's, for {other}; built here are asr, s2t and lm.",
            "ckpt init a checkpoint of it, -o dst.yaml, says the model without ESPnet.",
        )
    if "lm" in values:
        return _LM
    return _S2T if values.get("preprocessor") == "s2t" else _ASR


# What ESPnet's names mean: which tensors run along the vocabulary, and which layer follows which.

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
