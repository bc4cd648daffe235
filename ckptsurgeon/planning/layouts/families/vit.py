"""ViT, DeiT without distillation and DINO: transformers' layouts, and that of timm, whose names DeiT and DINO share.

transformers 5 writes files with the names of earlier versions; its networks in memory have others.
https://github.com/huggingface/pytorch-image-models
"""

from __future__ import annotations

from ..changes import Fused
from ..layout import Family, Layout

__all__ = ["FAMILY"]

_LAYER = "vit.encoder.layer.{n}"
_PARTS = tuple(f"{_LAYER}.attention.attention.{kind}" for kind in ("query", "key", "value"))
_TIMM = {
    "vit.embeddings.cls_token": "cls_token",
    "vit.embeddings.position_embeddings": "pos_embed",
    "vit.embeddings.patch_embeddings.projection": "patch_embed.proj",
    f"{_LAYER}.attention.output.dense": "blocks.{n}.attn.proj",
    f"{_LAYER}.intermediate.dense": "blocks.{n}.mlp.fc1",
    f"{_LAYER}.output.dense": "blocks.{n}.mlp.fc2",
    f"{_LAYER}.layernorm_before": "blocks.{n}.norm1",
    f"{_LAYER}.layernorm_after": "blocks.{n}.norm2",
    "vit.layernorm": "norm",
    "classifier": "head",
}
_NAMES = {ours: ours for ours in (*_TIMM, *_PARTS, "vit.pooler.dense")}
_MEMORY = {
    "encoder.layer.": "layers.",
    "attention.attention.query": "attention.q_proj",
    "attention.attention.key": "attention.k_proj",
    "attention.attention.value": "attention.v_proj",
    "attention.output.dense": "attention.o_proj",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
}


def _in_memory(name: str) -> str:
    for before, after in _MEMORY.items():
        name = name.replace(before, after)
    return name


def _form(names: dict[str, str]) -> Layout:
    norm = names[f"{_LAYER}.layernorm_before"]
    marks = (names["vit.embeddings.cls_token"], f"{names[_PARTS[0]]}.weight", f"{norm}.weight")
    return Layout(
        "transformers", "transformers", "transformers 5.23.0", names, tuple(mark.replace("{n}", "0") for mark in marks)
    )


_BARE = {ours: ours.removeprefix("vit.") for ours in _NAMES if ours != "classifier"}

FAMILY = Family(
    "vit",
    (
        _form(_NAMES),
        _form(_BARE),
        _form({ours: _in_memory(name) for ours, name in _NAMES.items()}),
        _form({ours: _in_memory(name) for ours, name in _BARE.items()}),
        Layout(
            "timm", "timm; DINO, DeiT", "timm 1.0.31", _TIMM,
            ("cls_token", "pos_embed", "patch_embed.proj.weight", "blocks.0.attn.qkv.weight"),
            (Fused(_PARTS, "blocks.{n}.attn.qkv"),),
            settings="timm's layer norms have eps 1e-6, transformers' have 1e-12 unless config.json has layer_norm_eps",
        ),
    ),
)  # fmt: skip
