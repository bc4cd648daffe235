"""WavLM: transformers, Microsoft's UniLM (and its copies, as in s3prl), torchaudio and SpeechBrain.

torchaudio joins queries, keys and values. https://github.com/microsoft/unilm/tree/master/wavlm,
https://github.com/speechbrain/speechbrain/blob/develop/speechbrain/integrations/huggingface/wavlm.py
"""

from __future__ import annotations

from ..changes import Fused
from ..layout import Family
from ..parts.speech import LAYERS, NORMS, in_fairseq, in_speechbrain, in_torchaudio, in_transformers

__all__ = ["FAMILY"]

_OURS = "wavlm."
_ATTENTION = f"{LAYERS}attention."
_RELATIVE = {
    f"{_ATTENTION}gru_rel_pos_const": f"{LAYERS}self_attn.grep_a",
    f"{_ATTENTION}gru_rel_pos_linear": f"{LAYERS}self_attn.grep_linear",
    f"{_ATTENTION}rel_attn_embed": f"{LAYERS}self_attn.relative_attention_bias",
}
_CTC = {"lm_head": "lm_head"}
_FIRST = "encoder.layers.0.attention.gru_rel_pos_const"
_IN_TORCHAUDIO = {
    **{ours: ours for ours in _RELATIVE},
    **{f"{_ATTENTION}{kind}_proj": "" for kind in "qkv"},
    f"{_ATTENTION}out_proj": f"{_ATTENTION}attention.out_proj",
}
_JOINED = tuple(
    Fused(
        tuple(f"{_OURS}{_ATTENTION}{kind}_proj.{part}" for kind in "qkv"),
        f"encoder.transformer.layers.{{n}}.attention.attention.in_proj_{part}",
    )
    for part in ("weight", "bias")
)

FAMILY = Family(
    "wavlm",
    (
        *in_transformers(
            "transformers", "transformers", _OURS, _OURS, _CTC, more=_RELATIVE, marks=(f"{_OURS}{_FIRST}",)
        ),
        *in_transformers("transformers", "transformers", _OURS, "", {}, more=_RELATIVE, marks=(_FIRST,)),
        *in_fairseq(
            "unilm", "UniLM, s3prl", "s3prl 0.4.18", _OURS, "", {}, more=_RELATIVE,
            marks=("encoder.layers.0.self_attn.grep_a",),
        ),
        *in_torchaudio(
            _OURS, _IN_TORCHAUDIO, _JOINED, ("encoder.transformer.layers.0.attention.attention.in_proj_weight",)
        ),
        *in_speechbrain(_OURS, more=_RELATIVE, marks=(_FIRST,)),
    ),
    some=((f"{_OURS}{NORMS}",), (f"{_OURS}{_ATTENTION}rel_attn_embed",)),
)  # fmt: skip
