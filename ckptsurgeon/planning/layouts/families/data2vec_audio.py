"""data2vec-audio: transformers and fairseq, which have several convolutions of positions, without a weight norm.

https://github.com/facebookresearch/fairseq/tree/main/examples/data2vec
"""

from __future__ import annotations

from ..layout import Family, Layout
from ..parts.speech import CORE, MASK, NORMS, within

__all__ = ["FAMILY"]

_OURS = "data2vec_audio."
_NAMES = {
    **CORE,
    NORMS: "feature_extractor.conv_layers.{n}.2.1",
    "encoder.pos_conv_embed.layers.{n}.conv": "encoder.pos_conv.{n}.0",
}
_SAME = {ours: ours for ours in _NAMES}
_LEFT = ("mask_emb", "final_proj", "_ema")


def _transformers(before: str, heads: dict[str, str]) -> Layout:
    return Layout(
        "transformers", "transformers", "transformers 5.23.0 and 4.40.2", {**within(_OURS, before, _SAME), **heads},
        (f"{before}feature_projection.projection.weight", f"{before}encoder.pos_conv_embed.layers.0.conv.weight"),
        training=(f"{before}{MASK}",), is_bare=not before,
    )  # fmt: skip


def _fairseq(before: str, heads: dict[str, str]) -> Layout:
    return Layout(
        "fairseq", "fairseq", "fairseq 0.12.2", {**within(_OURS, before, _NAMES), **heads},
        (f"{before}post_extract_proj.weight", f"{before}encoder.pos_conv.0.0.weight"),
        training=tuple(f"{before}{name}" for name in _LEFT),
    )  # fmt: skip


FAMILY = Family(
    "data2vec-audio",
    (
        _transformers(_OURS, {"lm_head": "lm_head"}),
        _transformers("", {}),
        _fairseq("", {}),
        _fairseq("w2v_encoder.w2v_model.", {"lm_head": "w2v_encoder.proj"}),
    ),
)
