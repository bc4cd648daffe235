"""ViT, DeiT without distillation and DINO: the layouts of transformers, of timm, DeiT and DINO, and of torchvision.

transformers 5 writes files with the names of earlier versions; its networks in memory have others. torchvision also
reads its first files, whose MLPs have other names. https://github.com/huggingface/pytorch-image-models,
https://github.com/pytorch/vision/blob/main/torchvision/models/vision_transformer.py
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
_BLOCK = "encoder.layers.encoder_layer_{n}"
_TORCHVISION = {
    "vit.embeddings.cls_token": "class_token",
    "vit.embeddings.position_embeddings": "encoder.pos_embedding",
    "vit.embeddings.patch_embeddings.projection": "conv_proj",
    f"{_LAYER}.attention.output.dense": f"{_BLOCK}.self_attention.out_proj",
    f"{_LAYER}.intermediate.dense": f"{_BLOCK}.mlp.0",
    f"{_LAYER}.output.dense": f"{_BLOCK}.mlp.3",
    f"{_LAYER}.layernorm_before": f"{_BLOCK}.ln_1",
    f"{_LAYER}.layernorm_after": f"{_BLOCK}.ln_2",
    "vit.layernorm": "encoder.ln",
    "classifier": "heads.head",
}
_FIRST_TORCHVISION = {
    ours: name.replace("mlp.0", "mlp.linear_1").replace("mlp.3", "mlp.linear_2") for ours, name in _TORCHVISION.items()
}
_EPS = "{}'s layer norms have eps 1e-6, transformers' have 1e-12 unless config.json has layer_norm_eps"
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


def _torchvision(names: dict[str, str], *, only_read: bool = False) -> Layout:
    first = names[f"{_LAYER}.intermediate.dense"].format(n=0)
    return Layout(
        "torchvision", "torchvision", "its network, written out", names,
        ("class_token", "conv_proj.weight", "encoder.pos_embedding", f"{first}.weight"),
        tuple(
            Fused(tuple(f"{part}.{role}" for part in _PARTS), f"{_BLOCK}.self_attention.in_proj_{role}")
            for role in ("weight", "bias")
        ),
        settings=_EPS.format("torchvision"),
        only_read=only_read,
        biases=dict.fromkeys(_PARTS, 0),
    )  # fmt: skip


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
            settings=_EPS.format("timm"),
        ),
        _torchvision(_TORCHVISION),
        _torchvision(_FIRST_TORCHVISION, only_read=True),
    ),
)  # fmt: skip
