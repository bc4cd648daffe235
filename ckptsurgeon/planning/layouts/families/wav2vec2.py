"""wav2vec 2.0 and HuBERT: transformers, fairseq, torchaudio and SpeechBrain.

fairseq and torchaudio have the same names for both, so they are one family; transformers names the module of HuBERT
``hubert``. https://github.com/facebookresearch/fairseq, https://github.com/pytorch/audio

SpeechBrain's wrappers have the network of another library as their module ``model``: that of transformers in
https://github.com/speechbrain/speechbrain/blob/develop/speechbrain/integrations/huggingface/wav2vec2.py (``Wav2Vec2``,
``HuBERT``; ``Wav2Vec2Pretrain`` has the quantiser, too), and that of fairseq, without what only pre-training uses, in
https://github.com/speechbrain/speechbrain/blob/develop/speechbrain/lobes/models/fairseq_wav2vec.py.
"""

from __future__ import annotations

from dataclasses import replace

from ..layout import Family
from ..parts.speech import NORMS, in_fairseq, in_speechbrain, in_torchaudio, in_transformers

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
_IN_SPEECHBRAIN = {ours: f"model.{ours}" for ours in _PRE_TRAINED}
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
        *in_speechbrain(_OURS),
        *(
            replace(one, tested="speechbrain 1.1.2")
            for one in in_transformers(
                "speechbrain", "SpeechBrain", _OURS, "model.wav2vec2.", _IN_SPEECHBRAIN,
                training=tuple(_IN_SPEECHBRAIN.values()),
            )
        ),
        *in_fairseq(
            "speechbrain-fairseq", "SpeechBrain (FairseqWav2Vec2)", "speechbrain 1.1.2, fairseq 0.12.2", _OURS,
            "model.", {},
        ),
    ),
    some=((f"{_OURS}{NORMS}",),),
)  # fmt: skip
