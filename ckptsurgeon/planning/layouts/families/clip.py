"""CLIP: transformers' layouts, and the layout of OpenAI's code, which open_clip shares for vision transformers.

A file may have both towers, or one of them. https://github.com/openai/CLIP, https://github.com/mlfoundations/open_clip
"""

from __future__ import annotations

from ..changes import Transposed
from ..layout import Change, Family, Layout
from ..parts.clip import BLOCK, TEXT, TEXT_LAYER, joined

__all__ = ["FAMILY"]

_VISION_LAYER = "vision_model.encoder.layers.{n}"
_VISION = {
    "vision_model.embeddings.class_embedding": "visual.class_embedding",
    "vision_model.embeddings.patch_embedding": "visual.conv1",
    "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
    "vision_model.pre_layrnorm": "visual.ln_pre",
    **{f"{_VISION_LAYER}.{ours}": f"visual.transformer.resblocks.{{n}}.{theirs}" for ours, theirs in BLOCK.items()},
    "vision_model.post_layernorm": "visual.ln_post",
    "visual_projection.weight": "visual.proj",
}
_BOTH = {**TEXT, **_VISION, "logit_scale": "logit_scale"}
_ATTENTION = (
    *joined(TEXT_LAYER, "transformer.resblocks.{n}"),
    *joined(_VISION_LAYER, "visual.transformer.resblocks.{n}"),
)
_PARTS = tuple(part for change in _ATTENTION for part in change.parts)
_CHANGES: tuple[Change, ...] = (
    *_ATTENTION,
    Transposed("text_projection.weight"),
    Transposed("visual_projection.weight"),
)
_SIZES = ("input_resolution", "context_length", "vocab_size")
_TEXT_MARK, _VISION_MARK = "text_model.embeddings.token_embedding.weight", "vision_model.embeddings.class_embedding"
_THEIR_TEXT, _THEIR_VISION = "transformer.resblocks.0.attn.in_proj_weight", "visual.class_embedding"


def _ours(names: dict[str, str], marks: tuple[str, ...], tower: str = "") -> Layout:
    """Return transformers' layout of a file with both towers or, if ``tower`` is given, with this tower alone.

    In a file of one tower, names lack its prefix, such as ``text_model.``. ``marks`` is a field of the layout.
    """
    spelled = {
        name: name.removeprefix(f"{tower}.") for name in (*names, *_PARTS) if not tower or name.startswith(f"{tower}.")
    }
    computed = ("embeddings.position_ids",) if tower else tuple(f"{one}.embeddings.position_ids" for one in _TOWERS)
    return Layout("transformers", "transformers", "transformers 5.23.0", spelled, marks, computed=computed)


def _theirs(names: dict[str, str], marks: tuple[str, ...]) -> Layout:
    return Layout(
        "openai", "OpenAI, open_clip", "open_clip 3.3.0", names, marks, _CHANGES, _SIZES,
        settings="OpenAI's networks have the activation quick_gelu, most of open_clip's have gelu "
        "(hidden_act in config.json)",
    )  # fmt: skip


_TOWERS = ("text_model", "vision_model")

FAMILY = Family(
    "clip",
    (
        _ours(_BOTH, (_TEXT_MARK, _VISION_MARK)),
        _ours(TEXT, (_TEXT_MARK,)),
        _ours(_VISION, (_VISION_MARK,)),
        _ours(TEXT, ("embeddings.token_embedding.weight", "encoder.layers.0.self_attn.q_proj.weight"), "text_model"),
        _ours(_VISION, ("embeddings.class_embedding", "pre_layrnorm.weight"), "vision_model"),
        _theirs(_BOTH, (_THEIR_TEXT, _THEIR_VISION)),
        _theirs(TEXT, (_THEIR_TEXT, "token_embedding.weight", "ln_final.weight")),
        _theirs(_VISION, (_THEIR_VISION, f"visual.{_THEIR_TEXT}")),
    ),
)
