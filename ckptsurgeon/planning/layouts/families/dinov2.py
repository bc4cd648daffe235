"""DINOv2 without register tokens, and the layouts that it shares with DINOv2 with them: transformers, Meta, timm.

Names and shapes: https://github.com/facebookresearch/dinov2/blob/main/dinov2/models/vision_transformer.py and
https://github.com/huggingface/pytorch-image-models/blob/main/timm/models/vision_transformer.py, whose
``_convert_dinov2`` changes Meta's files for timm.
"""

from __future__ import annotations

from collections.abc import Iterable

from ..changes import Fused
from ..class_position import ClassPosition
from ..layout import Family, Layout, Tensors

__all__ = ["FAMILY", "family"]

_LAYER = "encoder.layer.{n}"
_BLOCK = "blocks.{n}"
_CLASS, _POSITIONS, _MASK, _REGISTERS = (
    f"embeddings.{name}" for name in ("cls_token", "position_embeddings", "mask_token", "register_tokens")
)
_QKV = tuple(f"{_LAYER}.attention.{kind}_proj" for kind in "qkv")
_GATE_UP = (f"{_LAYER}.mlp.gate_proj", f"{_LAYER}.mlp.up_proj")
_DOWN = f"{_LAYER}.mlp.down_proj"
_SHARED = {
    _CLASS: "cls_token",
    _POSITIONS: "pos_embed",
    "embeddings.patch_embeddings.projection": "patch_embed.proj",
    f"{_LAYER}.norm1": f"{_BLOCK}.norm1",
    f"{_LAYER}.attention.o_proj": f"{_BLOCK}.attn.proj",
    f"{_LAYER}.layer_scale1.lambda1": f"{_BLOCK}.ls1.gamma",
    f"{_LAYER}.norm2": f"{_BLOCK}.norm2",
    f"{_LAYER}.layer_scale2.lambda1": f"{_BLOCK}.ls2.gamma",
    "layernorm": "norm",
}
_MLP = {f"{_LAYER}.mlp.fc1": f"{_BLOCK}.mlp.fc1", f"{_LAYER}.mlp.fc2": f"{_BLOCK}.mlp.fc2"}
_META = {**_SHARED, _MASK: "mask_token", **_MLP, _DOWN: f"{_BLOCK}.mlp.w3"}
_MARKS = ("cls_token", "pos_embed", "patch_embed.proj.weight", "blocks.0.attn.qkv.weight", "blocks.0.ls1.gamma")
_FILES = {
    "attention.q_proj": "attention.attention.query",
    "attention.k_proj": "attention.attention.key",
    "attention.v_proj": "attention.attention.value",
    "attention.o_proj": "attention.output.dense",
    "mlp.down_proj": "mlp.weights_out",
}
_HEAD = {"classifier": "linear_head"}
_SIZES = (
    "config.json must have image_size, patch_size and num_attention_heads of the network (Meta's files: 518, 14, and "
    "the width divided by 64)"
)
_OFFSET = (
    "for images of another size than image_size, Meta's networks without registers resize the position embeddings with "
    "an offset of 0.1, transformers' without one"
)
_ONCE = (
    "timm resizes the position embeddings once, when it loads a file, transformers for each image of another size than "
    "image_size"
)
_SUMMED = (
    "timm's cls_token includes its position embedding; after a conversion back, the sum is the cls_token, and its "
    "position embedding is zeros"
)


def family(name: str, prefix: str, *, has_registers: bool) -> Family:
    """Return the family called ``name``, whose names in transformers begin with ``prefix``."""
    registers = (_REGISTERS,) if has_registers else ()
    return Family(
        name,
        (*_in_transformers(prefix, registers), *_in_meta(prefix, registers), *_in_timm(prefix, registers)),
    )


def _in_transformers(prefix: str, registers: tuple[str, ...]) -> Iterable[Layout]:
    """Yield transformers' layouts: first those of networks in memory, then those of files.

    Files have the names of version 4 of transformers.
    """
    memory = {name: name for name in (*_META, *registers, *_QKV, *_GATE_UP)}
    files = {ours: _in_file(name) for ours, name in memory.items() if ours not in _GATE_UP}
    for names, is_file in ((memory, False), (files, True)):
        for before in (prefix, ""):
            spelled = {f"{prefix}{ours}": f"{before}{name}" for ours, name in names.items()}
            joined = Fused(_within(prefix, _GATE_UP), f"{before}{_LAYER}.mlp.weights_in")
            marks = (_CLASS, f"{names[_QKV[0]]}.weight", f"{_LAYER}.layer_scale1.lambda1", *registers)
            yield Layout(
                "transformers", "transformers", "transformers 5.23.0",
                {**spelled, **{head: head for head in _HEAD if before}},
                tuple(mark.replace("{n}", "0") for mark in _within(before, marks)),
                (joined,) if is_file else (),
                training=(f"{before}{_MASK}",),
                zeros=_zeros(prefix),
                written=_SIZES,
                only_read=not is_file,
            )  # fmt: skip


def _in_meta(prefix: str, registers: tuple[str, ...]) -> Iterable[Layout]:
    """Yield Meta's layouts: of the network alone, and in its classifier, with a head for one layer or for four."""
    names = {**_META, **dict.fromkeys(registers, "register_tokens")}
    for before, head in (("", {}), ("backbone.", _HEAD), ("backbone.", {})):
        marks = (*_MARKS, "register_tokens" if registers else "mask_token")
        yield Layout(
            "meta", "Meta (facebookresearch/dinov2)", "timm 1.0.31, and dinov2 at b8931f7",
            {**{f"{prefix}{ours}": f"{before}{name}" for ours, name in names.items()}, **head},
            (*_within(before, marks), *(f"{name}.weight" for name in head.values())),
            (
                Fused(_within(prefix, _QKV), f"{before}{_BLOCK}.attn.qkv"),
                Fused(_within(prefix, _GATE_UP), f"{before}{_BLOCK}.mlp.w12"),
            ),
            training=(f"{before}mask_token",),
            zeros=_zeros(prefix),
            fits=_has_head_of_one_layer if head else lambda tensors: True,
            settings="" if registers else _OFFSET,
        )  # fmt: skip


def _in_timm(prefix: str, registers: tuple[str, ...]) -> Iterable[Layout]:
    """Yield timm's layouts: with an MLP of two matrices, and with SwiGLU, whose first matrix has the same name."""
    attention = Fused(_within(prefix, _QKV), f"{_BLOCK}.attn.qkv")
    gated = Fused(_within(prefix, _GATE_UP), f"{_BLOCK}.mlp.fc1")
    positions = ClassPosition(*_within(prefix, (_CLASS, _POSITIONS, *registers)))
    for mlp, joined in ((_MLP, ()), ({_DOWN: f"{_BLOCK}.mlp.fc2"}, (gated,))):
        names = {**_SHARED, **mlp, **dict.fromkeys(registers, "reg_token")}
        yield Layout(
            "timm", "timm", "timm 1.0.31",
            {f"{prefix}{ours}": name for ours, name in names.items()},
            (*_MARKS, "blocks.0.ls2.gamma", "blocks.0.mlp.fc1.weight", "blocks.0.mlp.fc2.weight",
             *("reg_token" for _ in registers)),
            (attention, *joined, positions),
            fits=_has_gate if joined else lambda tensors: not _has_gate(tensors),
            settings=_ONCE,
            written=_SUMMED if registers else "",
        )  # fmt: skip


def _within(before: str, names: Iterable[str]) -> tuple[str, ...]:
    return tuple(f"{before}{name}" for name in names)


def _in_file(name: str) -> str:
    for now, stored in _FILES.items():
        name = name.replace(now, stored)
    return name


def _zeros(prefix: str) -> dict[str, tuple[str, tuple[int, ...]]]:
    return {f"{prefix}{_MASK}": (f"{prefix}{_CLASS}", (1, -1))}


def _has_head_of_one_layer(tensors: Tensors) -> bool:
    """Return whether the head in Meta's classifier reads class token and mean of the patches, as in transformers."""
    head, token = (tensors[key].shape for key in ("linear_head.weight", "backbone.cls_token"))
    return len(head) == 2 and len(token) == 3 and head[1] == 2 * token[2]


def _has_gate(tensors: Tensors) -> bool:
    """Return whether timm's MLP is SwiGLU: its first matrix then also has the rows of the gate."""
    first, second = (tensors[f"blocks.0.mlp.{name}.weight"].shape for name in ("fc1", "fc2"))
    return len(first) == len(second) == 2 and first[0] == 2 * second[1]


FAMILY = family("dinov2", "dinov2.", has_registers=False)
