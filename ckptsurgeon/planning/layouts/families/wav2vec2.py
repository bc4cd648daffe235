"""wav2vec 2.0 and HuBERT: transformers, fairseq and torchaudio.

fairseq and torchaudio have the same names for both, so they are one family; transformers names the module of HuBERT
``hubert``. https://github.com/facebookresearch/fairseq, https://github.com/pytorch/audio
"""

from __future__ import annotations

from ..layout import Family
from ..parts.speech import NORMS, in_fairseq, in_torchaudio, in_transformers

__all__ = ["FAMILY"]

_OURS = "wav2vec2."
_CTC = {"lm_head": "lm_head"}
_PRE_TRAINED = {
    "quantizer.codevectors": "quantizer.vars",
    "quantizer.weight_proj": "quantizer.weight_proj",
    "project_q": "project_q",
    "project_hid": "final_proj",
}
_HEADS = {ours: ours for ours in (*_CTC, *_PRE_TRAINED)}
_LEFT = ("quantizer", "project_q", "final_proj", "label_embs_concat")

FAMILY = Family(
    "wav2vec2",
    (
        *in_transformers(
            "transformers", "transformers (Wav2Vec2)", _OURS, _OURS, _HEADS, training=tuple(_PRE_TRAINED)
        ),
        *in_transformers("transformers", "transformers (Wav2Vec2)", _OURS, "", {}),
        *in_transformers("transformers-hubert", "transformers (Hubert)", _OURS, "hubert.", _CTC),
        *in_fairseq("fairseq", "fairseq", "fairseq 0.12.2", _OURS, "", _PRE_TRAINED, training=_LEFT[:-1]),
        *in_fairseq(
            "fairseq", "fairseq", "fairseq 0.12.2", _OURS, "", {}, training=_LEFT, marks=("label_embs_concat",)
        ),
        *in_fairseq(
            "fairseq", "fairseq", "fairseq 0.12.2", _OURS, "w2v_encoder.w2v_model.", {"lm_head": "w2v_encoder.proj"},
            training=_LEFT,
        ),
        *in_torchaudio(_OURS, {}),
    ),
    some=((f"{_OURS}{NORMS}",),),
)  # fmt: skip
