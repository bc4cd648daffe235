"""Finds what is missing from the networks of Stable Diffusion and Flux, in one file or in a pipeline of diffusers."""

from __future__ import annotations

from collections.abc import Iterator

from ...checkpoint.checkpoint import Checkpoint
from ...errors import PlanError
from ...planning.layouts.families.flux import FAMILY as FLUX
from ...planning.layouts.families.stable_diffusion import family_of
from ...planning.layouts.incomplete_layers import check_complete
from ...planning.layouts.layout import Family, Layout, Tensors
from ...planning.layouts.missing_blocks import check_blocks
from ...planning.layouts.parts.pipeline import UNET, VAE, pipeline_in
from ...planning.layouts.recognise import known_keys
from ...util.note_kind import NoteKind
from ...util.notes import Note, notes_of

__all__ = ["missing_notes", "network_notes"]


def network_notes(checkpoint: Checkpoint) -> Iterator[Note]:
    """Yield notes on faults of the networks in a single file: missing tensors, and networks that do not fit together.

    Other networks and quantised tensors are not checked.
    """
    yield from missing_notes(checkpoint)
    yield from _width_notes(checkpoint)


@notes_of(NoteKind.MISSING_TENSORS)
def missing_notes(checkpoint: Checkpoint) -> Iterator[str]:
    """Yield a note on the first block or tensor that is missing, although other blocks show that the network needs it.

    No note is given if tensors are quantised, because it may be that only some layers are.
    """
    tensors = _plain(checkpoint)
    found = _layout_of(tensors)
    if found is None or checkpoint.codes:
        return
    family, layout = found
    named = known_keys(layout, tensors)
    try:
        check_blocks([key for key in tensors if key not in named], layout, tensors, "")
        check_complete(family, layout, tensors, "")
    except PlanError as error:
        yield error.message.removesuffix(".")


@notes_of(NoteKind.OTHER_COMPONENT)
def _width_notes(checkpoint: Checkpoint) -> Iterator[str]:
    """Yield a note if the U-Net of a file makes another number of channels than the VAE decodes."""
    found = _layout_of(_plain(checkpoint))
    if found is None:
        return
    names = found[1].names
    out, into = (checkpoint.get(f"{names.get(one)}.weight") for one in (f"{UNET}conv_out", f"{VAE}decoder.conv_in"))
    if out is None or into is None or len(out.shape) != 4 or len(into.shape) != 4:
        return
    made, latents = out.shape[0], into.shape[1]
    if made not in (latents, latents + 1, 2 * latents):  # some networks make a variance, too
        yield f"the U-Net makes {made} channels, but the VAE decodes {latents}"


def _plain(checkpoint: Checkpoint) -> Tensors:
    return {key: info for key, info in checkpoint.items() if key.endswith((".weight", ".bias"))}


def _layout_of(tensors: Tensors) -> tuple[Family, Layout] | None:
    """Return the layout of Stable Diffusion or Flux that the tensors have; None if they are another network.

    One of the marks of the layout may be missing: the first block of Flux, or an attention of the VAE.
    """
    pipeline = pipeline_in(tensors)
    families = [FLUX] if pipeline is None else [family_of(pipeline), FLUX]
    found = [
        (family, layout, sum(mark not in tensors for mark in layout.marks))
        for family in families
        for layout in family.layouts
        if not layout.only_written and layout.fits(tensors)
    ]
    for most in (0, 1):
        pairs = [(family, layout) for family, layout, lacking in found if lacking == most]
        if pairs:
            return max(pairs, key=lambda pair: len(known_keys(pair[1], tensors))) if most else pairs[0]
    return None
