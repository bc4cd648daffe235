"""The U-Net of Stable Diffusion: its structure, found from its keys, and its names in diffusers and the original code.

The original code numbers the blocks through all levels, diffusers within each level. So names depend on how many
residual blocks a level has. https://github.com/CompVis/latent-diffusion,
https://github.com/Stability-AI/generative-models
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from itertools import count, takewhile

__all__ = ["SIZES", "UNet", "completed", "groups_alike", "unet_in", "unet_names"]

Levels = tuple[tuple[int, ...], ...]
"""For each level, and each of its residual blocks, the number of transformer blocks after it; 0 without attention."""


@dataclass(frozen=True)
class UNet:
    """The structure of a U-Net: the numbers of transformer blocks after the residual blocks of each level.

    ``down`` is for the way down, ``up`` for the way up. ``middle`` is the number of transformer blocks in the middle; 0
    if they are missing.
    ``embedding`` is the module in diffusers that embeds sizes or classes, which the original code calls ``label_emb``;
    '' if there is none.
    """

    down: Levels
    middle: int
    up: Levels
    embedding: str


_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_OUTER = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
SIZES, CLASSES, TABLE = "add_embedding", "class_embedding", "class_embedding.weight"
"""The embeddings of SDXL's sizes, of the images of Stable Diffusion unCLIP, and of the noise levels of upscalers."""


def unet_in(keys: Collection[str], prefix: str, *, is_ldm: bool) -> UNet | None:
    """Return the structure of the U-Net whose keys begin with ``prefix``; None if there is none.

    ``is_ldm`` is true for the names of the original code, false for diffusers' names.
    """
    if is_ldm:
        down = _levels(keys, f"{prefix}input_blocks", 1, ("0.op",))
        up = _levels(keys, f"{prefix}output_blocks", 0, ("1.conv", "2.conv"))
        middle = _middle(keys, f"{prefix}middle_block.1", f"{prefix}middle_block.2")
        embedding = _their_embedding(keys, prefix, (*down, (middle,)))
    else:
        down, up = (tuple(_blocks(keys, f"{prefix}{way}_blocks")) for way in ("down", "up"))
        middle = _middle(keys, f"{prefix}mid_block.attentions.0", f"{prefix}mid_block.resnets.1")
        embedding = _embedding_in(keys, prefix)
    is_whole = middle > 0 and down and up and all(down) and all(up)
    second = "output_blocks.1.0.in_layers.0" if is_ldm else "up_blocks.1.resnets.0.norm1"
    has_way_up = any(up) or f"{prefix}{second}.weight" in keys  # a ControlNet has none
    is_part = middle >= 0 and has_way_up and any(map(any, (*down, *up)))
    return UNet(down, middle, up, embedding) if is_whole or is_part else None


def _middle(keys: Collection[str], attention: str, after: str) -> int:
    """Return the number of transformer blocks in the middle: 0 if they are missing, -1 in other networks.

    ``attention`` is their module, and ``after`` the residual block behind it. Smaller networks that were distilled from
    Stable Diffusion have neither of them, and other networks have another attention.
    """
    depth = _depth(keys, attention)
    is_other = not _has(keys, attention, "proj_in") and _has(keys, attention, "norm", "group_norm", "qkv", "to_q")
    is_missing = not is_other and _has(keys, after, "in_layers.0", "in_layers.2", "norm1", "conv1")
    return depth or (0 if is_missing else -1)


def _levels(keys: Collection[str], module: str, first: int, ends: tuple[str, ...]) -> Levels:
    """Return the levels of numbered blocks: a block with one of the modules ``ends`` is the last of its level.

    The blocks are in ``module`` and numbered from ``first`` on. Each level has, for each residual block, its number
    of transformer blocks.
    """
    levels: list[list[int]] = [[]]
    for block in (f"{module}.{number}" for number in count(first)):
        is_resnet, is_end = _has(keys, block, "0.in_layers.0", "0.in_layers.2", "1.proj_in"), _has(keys, block, *ends)
        if is_resnet:
            levels[-1].append(_depth(keys, f"{block}.1"))
        if is_end:
            levels.append([])
        if not is_resnet and not is_end:
            return tuple(map(tuple, levels))
    raise AssertionError("keys end, numbers do not")


def _blocks(keys: Collection[str], module: str) -> Iterator[tuple[int, ...]]:
    for level in (f"{module}.{number}" for number in count()):
        number = _number(keys, f"{level}.resnets.{{}}", ("norm1", "conv1"))
        if not number and not _has(keys, f"{level}.resnets.1", "norm1", "conv1"):  # the first one may be missing
            number = _number(keys, f"{level}.attentions.{{}}", ("proj_in", "proj_out"))
        if not number and not _has(keys, level, "downsamplers.0.conv", "upsamplers.0.conv"):
            return
        yield tuple(_depth(keys, f"{level}.attentions.{place}") for place in range(number))


def _depth(keys: Collection[str], attention: str) -> int:
    """Return the number of transformer blocks of the module ``attention``; 0 if it does not exist."""
    return _number(keys, f"{attention}.transformer_blocks.{{}}", ("norm1", "attn1.to_q"))


def _number(keys: Collection[str], modules: str, parts: tuple[str, ...]) -> int:
    """Return the number of ``modules`` that exist, counting from 0; ``{}`` in the name is the index.

    A module exists if it has the weight of any of ``parts``; so a module that lacks one of these tensors still counts.
    """
    return sum(1 for _ in takewhile(lambda n: _has(keys, modules.format(n), *parts), count()))


def _has(keys: Collection[str], module: str, *parts: str) -> bool:
    return any(f"{module}.{part}.weight" in keys for part in parts)


def _embedding_in(keys: Collection[str], prefix: str) -> str:
    """Return the name of the embedding of sizes, images or noise levels of a U-Net in diffusers; '' if it has none."""
    if f"{prefix}{TABLE}" in keys:
        return TABLE
    return next((one for one in (SIZES, CLASSES) if _has(keys, f"{prefix}{one}", "linear_1", "linear_2")), "")


def _their_embedding(keys: Collection[str], prefix: str, levels: Levels) -> str:
    """Return diffusers' name of the embedding that the original code calls ``label_emb``; '' if there is none.

    The original code uses this name for the embedding of sizes and for the embedding of images. Only SDXL, which embeds
    sizes, has several transformer blocks after one residual block.
    """
    if f"{prefix}label_emb.weight" in keys:
        return TABLE
    if not _has(keys, f"{prefix}label_emb.0", "0", "2"):
        return ""
    return SIZES if any(depth > 1 for depths in levels for depth in depths) else CLASSES


def unet_names(unet: UNet, prefix: str, theirs: str) -> dict[str, str]:
    """Return a map from diffusers' names (with the prefix ``prefix``) to the original code's (with ``theirs``)."""
    names = {**_OUTER, **_embedding(unet.embedding)}
    number = 1
    for level, depths in enumerate(unet.down):
        for place, depth in enumerate(depths):
            names |= _block(f"down_blocks.{level}", place, f"input_blocks.{number}", depth)
            number += 1
        if level + 1 < len(unet.down):
            names[f"down_blocks.{level}.downsamplers.0.conv"] = f"input_blocks.{number}.0.op"
            number += 1
    names |= _resnet("mid_block.resnets.0", "middle_block.0") | _resnet("mid_block.resnets.1", "middle_block.2")
    names |= {"mid_block.attentions.0": "middle_block.1"} if unet.middle else {}
    number = 0
    for level, depths in enumerate(unet.up):
        for place, depth in enumerate(depths):
            names |= _block(f"up_blocks.{level}", place, f"output_blocks.{number}", depth)
            number += 1
        if level + 1 < len(unet.up):
            behind = 2 if any(depths[-1:]) else 1
            names[f"up_blocks.{level}.upsamplers.0.conv"] = f"output_blocks.{number - 1}.{behind}.conv"
    return {f"{prefix}{ours}": f"{theirs}{name}" for ours, name in names.items()}


def completed(unet: UNet) -> UNet:
    """Return the structure with the blocks that it must have, judging by its other blocks.

    A level on the way up has one residual block more than the level of the same size on the way down, and either all
    residual blocks of a level have attention, or none. The middle always has it.
    """
    levels = max(len(unet.down), len(unet.up))
    down, up = ((*way, *((),) * (levels - len(way))) for way in (unet.down, unet.up))
    numbers = [max(len(one), len(other) - 1) for one, other in zip(down, up[::-1], strict=True)]
    return replace(
        unet,
        middle=unet.middle or 1,
        down=tuple(_filled(one, number) for one, number in zip(down, numbers, strict=True)),
        up=tuple(_filled(one, number + 1) for one, number in zip(up, numbers[::-1], strict=True)),
    )


def _filled(depths: tuple[int, ...], number: int) -> tuple[int, ...]:
    return tuple(depth or max(depths, default=0) for depth in (*depths, *(0,) * (number - len(depths))))


def _embedding(name: str) -> dict[str, str]:
    if name in ("", TABLE):
        return {TABLE: "label_emb.weight"} if name else {}
    return {f"{name}.linear_{ours}": f"label_emb.0.{theirs}" for ours, theirs in ((1, 0), (2, 2))}


def _block(level: str, place: int, theirs: str, depth: int) -> dict[str, str]:
    names = _resnet(f"{level}.resnets.{place}", f"{theirs}.0")
    return {**names, f"{level}.attentions.{place}": f"{theirs}.1"} if depth else names


def _resnet(ours: str, theirs: str) -> dict[str, str]:
    return {f"{ours}.{name}": f"{theirs}.{other}" for name, other in _RESNET.items()}


def groups_alike(unet: UNet, prefix: str) -> tuple[tuple[str, ...], ...]:
    """Return groups of names of modules in diffusers; all modules of a group have the same tensors."""
    places = [("down", *one) for one in _places(unet.down)] + [("up", *one) for one in _places(unet.up)]
    blocks = [f"{way}_blocks.{level}.resnets.{number}" for way, level, number, _ in places]
    depths = {f"{way}_blocks.{level}.attentions.{number}": depth for way, level, number, depth in places if depth}
    depths |= {"mid_block.attentions.0": unet.middle} if unet.middle else {}
    scaled = [f"down_blocks.{level}.downsamplers.0.conv" for level in range(len(unet.down) - 1)]
    scaled += [f"up_blocks.{level}.upsamplers.0.conv" for level in range(len(unet.up) - 1)]
    groups = (
        [*blocks, "mid_block.resnets.0", "mid_block.resnets.1"],
        [f"{one}.transformer_blocks.{number}" for one, depth in depths.items() for number in range(depth)],
        [f"{one}.{part}" for one in depths for part in ("norm", "proj_in", "proj_out")],
        [*scaled, *_OUTER, *(_embedding(unet.embedding) if unet.embedding != TABLE else ())],
    )
    return tuple(tuple(f"{prefix}{one}" for one in group) for group in groups)


def _places(levels: Levels) -> Iterator[tuple[int, int, int]]:
    for level, depths in enumerate(levels):
        yield from ((level, number, depth) for number, depth in enumerate(depths))
