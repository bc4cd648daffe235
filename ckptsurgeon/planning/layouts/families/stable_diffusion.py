"""Stable Diffusion 1, 2 and XL: a pipeline of diffusers or one of its models, and the original all-in-one files.

Names depend on the structure of the networks, so they are made for each network from its keys.
https://github.com/CompVis/latent-diffusion, https://github.com/Stability-AI/generative-models
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from itertools import product

from ..changes import Unsqueezed
from ..layout import Family, Layout, Tensors
from ..parts.autoencoder import ATTENTION, OLDER, Autoencoder
from ..parts.pipeline import THEIR_UNET, THEIR_VAE, UNET, VAE, Pipeline, pipeline_in
from ..parts.text_encoder import SD_2, SDXL, without_wrapper
from ..parts.unet import SIZES, UNet

__all__ = ["FAMILY", "RELEASED", "family_of"]

_TESTED = "diffusers 0.42.1"
_SCHEDULE = (
    "alphas_cumprod", "alphas_cumprod_prev", "betas", "log_one_minus_alphas_cumprod", "lvlb_weights", "logvar",
    "posterior_log_variance_clipped", "posterior_mean_coef1", "posterior_mean_coef2", "posterior_variance",
    "sqrt_alphas_cumprod", "sqrt_one_minus_alphas_cumprod", "sqrt_recip_alphas_cumprod", "sqrt_recipm1_alphas_cumprod",
    "scale_factor", "denoiser.sigmas",
)  # fmt: skip
"""Keys of the noise schedule, which the original files contain next to the weights."""
_SETTINGS = (
    "the noise schedule, and what the network predicts (noise or velocity), are in scheduler_config.json of a pipeline "
    "of diffusers: no tensor shows them"
)
_WHOLE = (
    "the keys begin with the names of components, as in unet.conv_in.weight; diffusers reads a file in the folder of "
    "each component: --to diffusers writes them, and --layout diffusers-unet takes one component out"
)
_SHORTER = (
    "the text encoder has no layer 23, which diffusers leaves out: Stable Diffusion 2 does not use it, but strict "
    "loaders of the original code need it"
)
_FLAG = "a flag for sampling: set {} in scheduler_config.json"
_AVERAGES = "averages of the weights during training; --layout diffusers-ema takes them in place of the weights"


def shaped(tensors: Tensors) -> Family | None:
    """Return the family with the names that the networks in ``tensors`` have; None if these are other networks."""
    found = pipeline_in(tensors)
    return family_of(found) if found is not None else None


@lru_cache(maxsize=32)
def family_of(pipeline: Pipeline) -> Family:
    """Return the family with the names of a pipeline's networks."""
    ldm = pipeline.names()
    parts = [part for text in pipeline.texts for part in text.parts()]
    own = {ours: ours for ours in (*ldm, *parts)}
    flat, older = _forms("text_encoder.text_model.final_layer_norm" in own), _forms(pipeline.vae)
    layouts = [
        replace(_diffusers(pipeline, _renamed(own, *form)), only_read=any(form)) for form in product(flat, older)
    ]
    theirs = [_ldm(pipeline, ldm)]
    theirs += [replace(_ldm(pipeline, _flat(ldm)), only_read=True)] if _flat(ldm) != ldm else []
    theirs += [_of_comfyui(theirs[0])] if pipeline.vae else []
    if prefix := pipeline.prefix:
        layouts += [_without(one, prefix, is_bare=True) for one in layouts]
        theirs.append(_without(theirs[0], THEIR_UNET if prefix == UNET else THEIR_VAE, is_bare=prefix == VAE))
    components = [_component(layouts[0], one, pipeline.components) for one in pipeline.components]
    return Family(
        "stable-diffusion",
        (*layouts, *theirs, *components),
        some=(tuple(name for name in own if name.endswith(".conv_shortcut")),),
        alike=pipeline.alike(),
    )


def _forms(part: object) -> tuple[bool, ...]:
    """Return the values of ``is_flat`` or ``is_older`` (see ``_renamed``) to try for a network of the pipeline.

    These are (False, True) if the pipeline has the network ``part``, and (False,) if it lacks it.
    """
    return (False, True) if part else (False,)


def _renamed(names: Mapping[str, str], is_flat: bool, is_older: bool) -> dict[str, str]:
    """Return {present name in diffusers: name that another version writes} for the keys of ``names``.

    If ``is_flat`` is true, text encoders get their names since transformers 5.6; if ``is_older`` is true, the VAE's
    attention gets its names before diffusers 0.18. Both may be true.
    """
    older = {f".attentions.0.{now}": f".attentions.0.{before}" for now, before in OLDER.items()}
    found = _flat(names) if is_flat else dict(names)
    if not is_older:
        return found
    inside = {ours: next((one for one in older if ours.startswith(VAE) and ours.endswith(one)), "") for ours in names}
    return {
        ours: f"{name.removesuffix(inside[ours])}{older[inside[ours]]}" if inside[ours] else name
        for ours, name in found.items()
    }


def _flat(names: Mapping[str, str]) -> dict[str, str]:
    return {ours: without_wrapper(name) for ours, name in names.items()}


def _marks(pipeline: Pipeline, names: Mapping[str, str]) -> tuple[str, ...]:
    """Return one key of each network of the pipeline; these keys identify the layout with the names ``names``.

    If the names of a network have several forms, such as ``to_q`` and ``query``, a key is chosen that differs between
    the forms.
    """
    found = [f"{UNET}conv_in"] if pipeline.unet else []
    found += [f"{VAE}encoder.mid_block.attentions.0.to_q"] if pipeline.vae else []
    found += [text.token.removesuffix(".weight") for text in pipeline.texts]
    return tuple(f"{names[one]}.weight" for one in found)


def _diffusers(pipeline: Pipeline, names: Mapping[str, str]) -> Layout:
    ids = [f"{name.rpartition('.')[0]}.position_ids" for name in names.values() if name.endswith(".token_embedding")]
    return Layout(
        "diffusers", "diffusers", _TESTED, names, _marks(pipeline, names), computed=tuple(ids),
        aside={"safety_checker": "which the original files do not have"},
        written="" if pipeline.prefix else _WHOLE,
        lacking=tuple(pipeline.lacking()),
    )  # fmt: skip


def _ldm(pipeline: Pipeline, names: Mapping[str, str]) -> Layout:
    attentions = [f"{VAE}{part}.mid_block.attentions.0" for part in ("encoder", "decoder")] if pipeline.vae else []
    widened = [Unsqueezed(f"{one}.{name}.weight", (2, 3)) for one in attentions for name in ATTENTION if "to_" in name]
    changes = (*widened, *(change for text in pipeline.texts for change in text.changes()))
    computed = [key for text in pipeline.texts for key in text.computed()]
    return Layout(
        "ldm", "the original code, ComfyUI", _TESTED, names, _marks(pipeline, names), changes,
        (*_SCHEDULE, *computed),
        training=(f"{THEIR_VAE}loss", "loss"),
        aside={
            **{key: why for text in pipeline.texts for key, why in text.aside().items()},
            "v_pred": _FLAG.format("prediction_type: v_prediction"),
            "ztsnr": _FLAG.format("rescale_betas_zero_snr: true"),
            **dict.fromkeys(("model_ema", f"{THEIR_VAE}model_ema"), _AVERAGES),
        },
        settings=_SETTINGS if pipeline.unet else "",
        written=_SHORTER if pipeline.texts == SD_2 else "",
        lacking=tuple(pipeline.lacking().values()),
    )  # fmt: skip


def _of_comfyui(layout: Layout) -> Layout:
    """Return the layout with the prefix of the VAE that ComfyUI writes in files of Flux and other networks."""

    def named(name: str) -> str:
        return f"{VAE}{name.removeprefix(THEIR_VAE)}" if name.startswith(THEIR_VAE) else name

    names = {ours: named(theirs) for ours, theirs in layout.names.items()}
    marks, lacking = tuple(map(named, layout.marks)), tuple(map(named, layout.lacking))
    return replace(layout, names=names, marks=marks, lacking=lacking, only_read=True)


def _component(layout: Layout, component: str, others: Mapping[str, str]) -> Layout:
    """Return the layout with the names of one component of a pipeline alone.

    ``others`` maps the prefix of each component to its prefix in the original code; the other components are left out.
    """
    names = {ours: name.removeprefix(component) for ours, name in layout.names.items() if ours.startswith(component)}
    omits = {
        one.rstrip("."): f"another component: --layout {_layout_of(other)} takes it"
        for other, theirs in others.items()
        for one in (other, theirs)
        if other != component
    }
    return replace(layout, name=_layout_of(component), names=names, written="", only_written=True, omits=omits)


def _layout_of(component: str) -> str:
    return f"diffusers-{component.rstrip('.').replace('_', '-')}"


def _without(layout: Layout, prefix: str, *, is_bare: bool = False) -> Layout:
    """Return the layout without the prefix ``prefix``, for files that contain only the network with this prefix.

    If ``is_bare`` is true, ckpt writes files in this form.
    """
    return replace(
        layout,
        names={ours: name.removeprefix(prefix) for ours, name in layout.names.items()},
        marks=tuple(mark.removeprefix(prefix) for mark in layout.marks),
        lacking=tuple(block.removeprefix(prefix) for block in layout.lacking),
        is_bare=is_bare,
    )


_UNET_XL = UNet(((0, 0), (2, 2), (10, 10)), 10, ((10, 10, 10), (2, 2, 2), (0, 0, 0)), SIZES)
RELEASED = Pipeline(_UNET_XL, Autoencoder((2, 2, 2, 2), (3, 3, 3, 3), is_quantised=True), SDXL)
"""The structure of the released Stable Diffusion XL, which has all components."""
FAMILY = replace(family_of(RELEASED), shaped=shaped)
