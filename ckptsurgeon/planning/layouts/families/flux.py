"""Flux.1: the transformer in diffusers' layout, and in the layout of Black Forest Labs' files, which ComfyUI reads.

The original files have queries, keys and values in one matrix; in single blocks, this matrix contains the first layer
of the MLP, too. In the last modulation, they have the shift before the scale, diffusers the scale before the shift.
https://github.com/black-forest-labs/flux
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ..changes import Fused, Swapped
from ..layout import NO_NUMBERS, Change, Family, Layout, Numbers, Tensors

__all__ = ["FAMILY", "IN_PIPELINE"]

_DOUBLE, _SINGLE = "transformer_blocks.{n}", "single_transformer_blocks.{n}"
_THEIR_DOUBLE, _THEIR_SINGLE = "double_blocks.{n}", "single_blocks.{n}"
_EMBEDDERS = {"timestep": "time_in", "text": "vector_in", "guidance": "guidance_in"}
_OUTER = {
    "x_embedder": "img_in",
    "context_embedder": "txt_in",
    **{
        f"time_text_embed.{ours}_embedder.linear_{number}": f"{theirs}.{side}_layer"
        for ours, theirs in _EMBEDDERS.items()
        for number, side in ((1, "in"), (2, "out"))
    },
    "norm_out.linear": "final_layer.adaLN_modulation.1",
    "proj_out": "final_layer.linear",
}
_STREAMS = {
    "norm1.linear": "img_mod.lin",
    "attn.norm_q.weight": "img_attn.norm.query_norm.scale",
    "attn.norm_k.weight": "img_attn.norm.key_norm.scale",
    "attn.to_out.0": "img_attn.proj",
    "ff.net.0.proj": "img_mlp.0",
    "ff.net.2": "img_mlp.2",
    "norm1_context.linear": "txt_mod.lin",
    "attn.norm_added_q.weight": "txt_attn.norm.query_norm.scale",
    "attn.norm_added_k.weight": "txt_attn.norm.key_norm.scale",
    "attn.to_add_out": "txt_attn.proj",
    "ff_context.net.0.proj": "txt_mlp.0",
    "ff_context.net.2": "txt_mlp.2",
}
_JOINED_STREAM = {
    "norm.linear": "modulation.lin",
    "attn.norm_q.weight": "norm.query_norm.scale",
    "attn.norm_k.weight": "norm.key_norm.scale",
    "proj_out": "linear2",
}
_THEIRS = {
    **_OUTER,
    **{f"{_DOUBLE}.{ours}": f"{_THEIR_DOUBLE}.{theirs}" for ours, theirs in _STREAMS.items()},
    **{f"{_SINGLE}.{ours}": f"{_THEIR_SINGLE}.{theirs}" for ours, theirs in _JOINED_STREAM.items()},
}
_IMAGE, _TEXT, _BOTH = (
    tuple(f"{block}.{name}" for name in names)
    for block, names in (
        (_DOUBLE, ("attn.to_q", "attn.to_k", "attn.to_v")),
        (_DOUBLE, ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj")),
        (_SINGLE, ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")),
    )
)
_COMFY = "model.diffusion_model."
_LAST = (f"{_SINGLE}.proj_out.weight", f"{_THEIR_SINGLE}.linear2.weight")
_MARKS = ("double_blocks.0.img_mod.lin.weight", "single_blocks.0.linear1.weight", "vector_in.in_layer.weight")


def _widths(tensors: Tensors, config: Mapping[str, Any]) -> Numbers:
    """Return the numbers of rows of queries ("width") and of the MLP ("mlp"), from the last layer of a single block.

    This layer has as many rows as the queries, and as many columns as the queries and the MLP together have rows.
    """
    keys = (f"{prefix}{name.format(n=0)}" for name in _LAST for prefix in ("", _COMFY))
    shape = next((tensors[key].shape for key in keys if key in tensors), ())
    return {"width": shape[0], "mlp": shape[1] - shape[0]} if len(shape) == 2 and shape[1] > shape[0] else NO_NUMBERS


def _bfl(prefix: str) -> Layout:
    joined = (
        (_IMAGE, f"{_THEIR_DOUBLE}.img_attn.qkv", ()),
        (_TEXT, f"{_THEIR_DOUBLE}.txt_attn.qkv", ()),
        (_BOTH, f"{_THEIR_SINGLE}.linear1", ("width", "width", "width", "mlp")),
    )
    changes: list[Change] = []
    for role in ("weight", "bias"):  # nothing else of these modules, such as scales, can be split
        for parts, made, ratio in joined:
            changes.append(Fused(tuple(f"{part}.{role}" for part in parts), f"{prefix}{made}.{role}", ratio))
        changes.append(Swapped(f"norm_out.linear.{role}"))
    return Layout(
        "bfl", "Black Forest Labs, ComfyUI", "diffusers 0.42.1",
        {ours: f"{prefix}{theirs}" for ours, theirs in _THEIRS.items()},
        tuple(f"{prefix}{mark}" for mark in _MARKS), tuple(changes),
    )  # fmt: skip


def _diffusers(prefix: str = "") -> Layout:
    marks = (
        "x_embedder.weight", "time_text_embed.text_embedder.linear_1.weight",
        "transformer_blocks.0.norm1_context.linear.weight", "single_transformer_blocks.0.proj_mlp.weight",
    )  # fmt: skip
    return Layout(
        "diffusers", "diffusers", "diffusers 0.42.1",
        {ours: f"{prefix}{ours}" for ours in (*_THEIRS, *_IMAGE, *_TEXT, *_BOTH)},
        tuple(f"{prefix}{mark}" for mark in marks),
    )  # fmt: skip


FAMILY = Family(
    "flux",
    (_diffusers(), _bfl(""), _bfl(_COMFY)),
    _widths,
    some=(tuple(name for name in _OUTER if "guidance" in name),),
    alike=(tuple(name for name in _OUTER if "guidance" not in name),),
)
IN_PIPELINE = replace(FAMILY, layouts=(*FAMILY.layouts, _diffusers("transformer.")))
"""The family with the names of a transformer in a pipeline of diffusers, too; these names are only checked."""
