"""Takes the prefix of a pipeline's model off the names of an adapter's modules, and refuses names that do not load."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace

from ...errors import PlanError
from ...util.text import count, escape, listing
from .modules import COMFY, NewModule

__all__ = ["BLOCKS", "MAIN", "in_pipeline"]

BLOCKS = ("down_blocks.", "mid_block.", "up_blocks.", "transformer_blocks.", "single_transformer_blocks.")
"""The beginnings of layers' names in the diffusion models of diffusers."""
MAIN = ("unet", "transformer", COMFY)
"""The names of components that are the diffusion model of a pipeline."""
VAE = "vae"
FILES = ("kohya", "diffusers", "comfy")
"""The toolkits whose names begin with the name of a model in the pipeline."""
_PREFIXES = {
    "model.diffusion_model.": COMFY,
    "diffusion_model.": COMFY,
    "unet.": "unet",
    **{f"transformer.{block}": "transformer" for block in BLOCKS},
    "cond_stage_model.transformer.": "text_encoder",
    "cond_stage_model.model.": "text_encoder",
    "conditioner.embedders.0.transformer.": "text_encoder",
    "conditioner.embedders.1.model.": "text_encoder_2",
    **{f"{name}.": name for name in ("text_encoder", "text_encoder_2", "text_encoder_3")},
    "first_stage_model.": VAE,
    "vae.": VAE,
}
"""{beginning of a name in a whole checkpoint (original code, ComfyUI, diffusers): the model of the pipeline}"""
_ORIGINAL = re.compile(r"(input_blocks|middle_block|output_blocks|double_blocks|single_blocks|joint_blocks)\.")
_OPEN_CLIP = "transformer.resblocks."
_NOT_XL = re.compile(r"input_blocks\.([12]\.1|9|1\d)\.|output_blocks\.(9|1\d)\.")
"""Names of layers that the U-Net of Stable Diffusion 1 and 2 has, but not that of SDXL."""


def in_pipeline(modules: Sequence[NewModule], to: str, component: str) -> tuple[list[NewModule], list[str]]:
    """Return the modules with their names in the model of the pipeline that they are for, and notes.

    A name such as ``model.diffusion_model.input_blocks.1`` says which model this is. Nothing changes if ``to`` is a
    toolkit whose names have no such model. Raises PlanError for names that the toolkit does not load, and if
    ``component`` is another model.
    """
    if to not in FILES:
        return list(modules), []
    found = [_without_prefix(module, component) for module in modules]
    pairs = list(zip(found, (module.name for module in modules), strict=True))
    _check_vae(pairs)
    _check_all_main(found, to)
    _check_known(pairs, to, component)
    return found, list(_kohya_notes(found)) if to == "kohya" else []


def _without_prefix(module: NewModule, component: str) -> NewModule:
    if module.component or module.joined:
        return module
    prefix = next((one for one in _PREFIXES if module.name.startswith(one)), "")
    if not prefix:
        return module
    own = _PREFIXES[prefix]
    if component and own not in (component, VAE) and not (own == COMFY and component in MAIN):
        raise PlanError(
            f"--component {escape(component, 40)} does not fit {escape(module.name)}, which is of "
            f"{'the diffusion model' if own == COMFY else own}.",
            hint="Leave --component out, or leave the modules of other models out with --exclude.",
        )
    off = "transformer." if own == "transformer" else prefix
    return replace(module, component=own, name=module.name.removeprefix(off))


def _check_vae(pairs: Sequence[tuple[NewModule, str]]) -> None:
    """Raise PlanError if a module is of the VAE. ``pairs`` has each module with its name in the adapter."""
    found = [name for module, name in pairs if module.component == VAE]
    if found:
        raise PlanError(
            f"no toolkit has names for adapters of the VAE, but the adapter changes {count(len(found), 'module')} of "
            f"it: {listing(found)}.",
            hint="Leave them out, as in --exclude 'first_stage_model.*' or --exclude 'vae.*'.",
            details=found,
        )


def _check_all_main(modules: Sequence[NewModule], to: str) -> None:
    """Raise PlanError if the names of some modules show that they are of the diffusion model, those of others do not.

    The other names are of something else in the checkpoint, which ComfyUI does not find under ``diffusion_model``.
    """
    others = [module.name for module in modules if not module.component]
    if to == "comfy" and others and any(module.component in MAIN for module in modules):
        raise PlanError(
            f"the names of ComfyUI are only for the diffusion model, and {count(len(others), 'module')} of the adapter "
            f"{'is' if len(others) == 1 else 'are'} not in it: {listing(others)}.",
            hint="Leave these modules out with --exclude.",
            details=others,
        )


def _check_known(pairs: Sequence[tuple[NewModule, str]], to: str, component: str) -> None:
    """Raise PlanError for names of the original code that the toolkit does not load.

    ``pairs`` has each module with its name in the adapter.
    """
    dotted = [(one, name) for one, name in pairs if not one.joined]
    if to == "diffusers":
        main = [(one, name) for one, name in dotted if (component or one.component) in ("", *MAIN)]
        names = [name for one, name in main if _ORIGINAL.match(one.name)]
        _refuse(names, "diffusers", "--to comfy writes names that ComfyUI reads. ")
    if to != "comfy":
        names = [name for one, name in dotted if one.name.startswith(_OPEN_CLIP)]
        _refuse(names, to, "Leave them out with --exclude. ")


def _refuse(names: Sequence[str], to: str, remedy: str) -> None:
    if names:
        raise PlanError(
            f"{count(len(names), 'module')} of the adapter {'has' if len(names) == 1 else 'have'} names of the "
            f"original code, and {to} needs names of diffusers' layout: {listing(names)}.",
            hint=f"{remedy}For {to}, convert both models with ckpt convert --layout diffusers, and extract the adapter "
            "from these.",
            details=names,
        )


def _kohya_notes(modules: Sequence[NewModule]) -> Iterator[str]:
    """Yield a note on names of the original code that kohya's scripts do not have for Stable Diffusion 1 and 2."""
    found = [module.name for module in modules if not module.joined and _ORIGINAL.match(module.name)]
    if any(map(_NOT_XL.match, found)):
        yield (
            f"{count(len(found), 'module')} {'has' if len(found) == 1 else 'have'} names of the original code, which "
            "ComfyUI reads, but not kohya's scripts (for Stable Diffusion 1 and 2): these need the names of diffusers' "
            f"layout: {listing(found, where='')}"
        )
