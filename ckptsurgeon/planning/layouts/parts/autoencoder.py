"""The autoencoder (VAE) of Stable Diffusion and Flux: its structure, and its names in diffusers and the original code.

The original code numbers the levels of the decoder from the last to the first, and its attention has convolutions of
size 1 where diffusers has linear layers. https://github.com/CompVis/latent-diffusion
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from itertools import count, pairwise, takewhile

__all__ = ["ATTENTION", "OLDER", "Autoencoder", "autoencoder_in", "autoencoder_names", "completed", "groups_alike"]


@dataclass(frozen=True)
class Autoencoder:
    """The number of residual blocks of each level, in the encoder (``down``) and the decoder (``up``), in order of use.

    It is 0 for a level that is missing: the encoder and the decoder have equally many levels.
    ``is_quantised`` is true if the autoencoder has ``quant_conv`` and ``post_quant_conv``, which Flux's lacks.
    """

    down: tuple[int, ...]
    up: tuple[int, ...]
    is_quantised: bool


_RESNET = {"norm1": "norm1", "conv1": "conv1", "norm2": "norm2", "conv2": "conv2", "conv_shortcut": "nin_shortcut"}
ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
OLDER = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
"""The names in files of diffusers before 0.18, which later versions read, too."""
_AROUND = ("quant_conv", "post_quant_conv")
_ENDS = {"conv_in": "conv_in", "conv_norm_out": "norm_out", "conv_out": "conv_out"}


def autoencoder_in(keys: Collection[str], prefix: str, *, is_ldm: bool) -> Autoencoder | None:
    """Return the structure of the autoencoder whose keys begin with ``prefix``; None if there is none.

    ``is_ldm`` is true for the names of the original code, false for diffusers' names.
    """
    encoder, decoder, block = ("down", "up", "block") if is_ldm else ("down_blocks", "up_blocks", "resnets")
    down = _levels(keys, f"{prefix}encoder.{encoder}", block)
    up = _levels(keys, f"{prefix}decoder.{decoder}", block)
    if not any(down) or not any(up):
        return None
    size = max(len(down), len(up))
    down, up = ((*one, *(0,) * (size - len(one))) for one in (down, up))
    is_quantised = any(f"{prefix}{one}.{leaf}" in keys for one in _AROUND for leaf in ("weight", "bias"))
    return Autoencoder(down, up[::-1] if is_ldm else up, is_quantised)


def _levels(keys: Collection[str], module: str, block: str) -> tuple[int, ...]:
    """Return the number of residual blocks of each level; 0 if they are missing, although the next level is there."""
    numbers = (_number(keys, f"{module}.{level}.{block}.{{}}") for level in count())
    found = takewhile(any, pairwise(numbers))
    return tuple(one for one, _ in found)


def _number(keys: Collection[str], modules: str) -> int:
    """Return the number of residual blocks, counted from 0 on; ``modules`` is their name, with ``{}`` for the number.

    A block counts even if one of its two convolutions is missing.
    """
    parts = ("conv1.weight", "conv2.weight")
    return sum(1 for _ in takewhile(lambda n: any(f"{modules.format(n)}.{part}" in keys for part in parts), count()))


def autoencoder_names(vae: Autoencoder, prefix: str, theirs: str) -> dict[str, str]:
    """Return a map from diffusers' names (with the prefix ``prefix``) to the original code's (with ``theirs``)."""
    names = dict(zip(_AROUND, _AROUND, strict=True)) if vae.is_quantised else {}
    for part in ("encoder", "decoder"):
        names |= {f"{part}.{ours}": f"{part}.{name}" for ours, name in _ENDS.items()}
        names |= _inside(f"{part}.mid_block.resnets.0", f"{part}.mid.block_1", _RESNET)
        names |= _inside(f"{part}.mid_block.attentions.0", f"{part}.mid.attn_1", ATTENTION)
        names |= _inside(f"{part}.mid_block.resnets.1", f"{part}.mid.block_2", _RESNET)
    for level, number in enumerate(vae.down):
        ours, other = f"encoder.down_blocks.{level}", f"encoder.down.{level}"
        names |= _blocks(ours, other, number)
        if level + 1 < len(vae.down):
            names[f"{ours}.downsamplers.0.conv"] = f"{other}.downsample.conv"
    for level, number in enumerate(vae.up):
        ours, other = f"decoder.up_blocks.{level}", f"decoder.up.{len(vae.up) - 1 - level}"
        names |= _blocks(ours, other, number)
        if level + 1 < len(vae.up):
            names[f"{ours}.upsamplers.0.conv"] = f"{other}.upsample.conv"
    return {f"{prefix}{ours}": f"{theirs}{name}" for ours, name in names.items()}


def completed(vae: Autoencoder) -> Autoencoder:
    """Return the structure with equally many residual blocks in all levels of the encoder, and of the decoder."""
    return replace(vae, down=(max(vae.down),) * len(vae.down), up=(max(vae.up),) * len(vae.up))


def _blocks(ours: str, theirs: str, number: int) -> dict[str, str]:
    blocks = ((f"{ours}.resnets.{n}", f"{theirs}.block.{n}") for n in range(number))
    return {name: other for one, two in blocks for name, other in _inside(one, two, _RESNET).items()}


def _inside(ours: str, theirs: str, names: dict[str, str]) -> dict[str, str]:
    return {f"{ours}.{name}": f"{theirs}.{other}" for name, other in names.items()}


def groups_alike(vae: Autoencoder, prefix: str) -> tuple[tuple[str, ...], ...]:
    """Return groups of names of modules in diffusers; all modules of a group have the same tensors."""
    levels = [f"encoder.down_blocks.{level}" for level in range(len(vae.down))]
    levels += [f"decoder.up_blocks.{level}" for level in range(len(vae.up))]
    numbers = [*vae.down, *vae.up]
    middle = [f"{part}.mid_block" for part in ("encoder", "decoder")]
    resnets = [f"{one}.resnets.{n}" for one, number in zip(levels, numbers, strict=True) for n in range(number)]
    resnets += [f"{one}.resnets.{n}" for one in middle for n in range(2)]
    scaled = [f"encoder.down_blocks.{level}.downsamplers.0.conv" for level in range(len(vae.down) - 1)]
    scaled += [f"decoder.up_blocks.{level}.upsamplers.0.conv" for level in range(len(vae.up) - 1)]
    ends = [f"{part}.{name}" for part in ("encoder", "decoder") for name in _ENDS]
    groups = (
        resnets,
        [f"{one}.attentions.0" for one in middle],
        [*scaled, *ends, *(_AROUND if vae.is_quantised else ())],
    )
    return tuple(tuple(f"{prefix}{one}" for one in group) for group in groups)
