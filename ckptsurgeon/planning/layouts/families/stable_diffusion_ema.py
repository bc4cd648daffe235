"""The moving averages of Stable Diffusion's weights that some original files have in addition: ``model_ema``.

The key of an average is the key of its weight without the dots. A user chooses the averages by the name of the
layout: ``diffusers-ema``. https://github.com/CompVis/latent-diffusion/blob/main/ldm/modules/ema.py
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from ..layout import Family, Layout, Tensors
from ..parts.pipeline import THEIR_UNET, UNET, Pipeline, pipeline_in
from .stable_diffusion import RELEASED, family_of

__all__ = ["FAMILY"]

_AVERAGES = "model_ema."
_FIRST = f"{_AVERAGES}diffusion_modelinput_blocks00weight"
_WEIGHTS = "the weights of the last step; --layout diffusers takes them in place of their averages"


def averages_of(key: str) -> str:
    """Return the key of the average of a weight of the U-Net: averages are buffers, whose names have no dots."""
    return f"{_AVERAGES}{key.removeprefix('model.').replace('.', '')}"


def shaped(tensors: Tensors) -> Family | None:
    """Return the family with the names of the averages; None if a weight of the U-Net has no average."""
    if _FIRST not in tensors or (pipeline := pipeline_in(tensors)) is None:
        return None
    weights = [key for key in tensors if key.startswith(THEIR_UNET)]
    return _of(pipeline, weights, tensors) if all(averages_of(key) in tensors for key in weights) else None


def _of(pipeline: Pipeline, weights: Sequence[str], tensors: Tensors) -> Family:
    plain = family_of(pipeline)
    forms = plain.named("ldm")
    theirs = next((one for one in forms if all(mark in tensors for mark in one.marks)), forms[0])
    tails = {ours: _tails(name, weights) for ours, name in theirs.names.items() if ours.startswith(UNET)}
    averages = {
        f"{ours}{tail}": averages_of(f"{theirs.names[ours]}{tail}") for ours, found in tails.items() for tail in found
    }
    others = {ours: name for ours, name in theirs.names.items() if ours not in tails}
    return replace(
        plain,
        name="stable-diffusion-ema",
        layouts=(
            *(_written(one, tails) for one in plain.named("diffusers") if not one.only_read),
            _read(theirs, {**averages, **others}),
        ),
        some=(*plain.some, *(tuple(f"{ours}{tail}" for ours in plain.some[0]) for tail in (".weight", ".bias"))),
    )


def _tails(module: str, keys: Sequence[str]) -> list[str]:
    return [key.removeprefix(module) for key in keys if key.startswith(f"{module}.")]


def _written(layout: Layout, tails: Mapping[str, Sequence[str]]) -> Layout:
    """Return the layout ``diffusers-ema``: ``layout`` with a name for each key of the U-Net instead of each module.

    ``tails`` maps each module of the U-Net to the endings of its keys after the module's name, such as ``.weight``.
    """
    names = {f"{ours}{tail}": f"{layout.names[ours]}{tail}" for ours, found in tails.items() for tail in found}
    others = {ours: name for ours, name in layout.names.items() if ours not in tails}
    return replace(layout, name="diffusers-ema", names={**names, **others}, only_written=True)


def _read(layout: Layout, names: Mapping[str, str]) -> Layout:
    aside = {pattern: why for pattern, why in layout.aside.items() if "model_ema" not in pattern}
    return replace(
        layout,
        name="ldm-ema",
        library="the original code, with averages",
        names=names,
        marks=(_FIRST, *layout.marks),
        training=(*layout.training, f"{_AVERAGES}decay", f"{_AVERAGES}num_updates"),
        aside={**aside, THEIR_UNET[:-1]: _WEIGHTS},
        only_read=True,
    )


FAMILY = replace(_of(RELEASED, (), {}), shaped=shaped)
