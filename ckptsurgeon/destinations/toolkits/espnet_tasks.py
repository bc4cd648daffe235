"""Which task of ESPnet a configuration is for: they do not say it, but each has entries that no other has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .._document import Document

__all__ = ["Task", "task_of"]


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
