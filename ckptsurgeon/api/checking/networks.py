"""Finds what is missing from the networks of Stable Diffusion and Flux, in one file or in a pipeline of diffusers."""

from __future__ import annotations

from collections.abc import Iterator

from ...checkpoint.checkpoint import Checkpoint
from ...errors import PlanError
from ...planning.layouts.families.flux import IN_PIPELINE as FLUX_IN_PIPELINE
from ...planning.layouts.families.stable_diffusion import family_of
from ...planning.layouts.incomplete_layers import check_complete
from ...planning.layouts.layout import Family, Layout, Tensors
from ...planning.layouts.missing_blocks import check_blocks
from ...planning.layouts.parts.pipeline import UNET, VAE, pipeline_in
from ...planning.layouts.recognise import known_keys
from ...util.note_kind import NoteKind
from ...util.notes import Note, notes_of

__all__ = ["missing_notes", "network_notes"]

_TEXTS = ("vector_in.in_layer", "text_embedder.linear_1")
"""The endings of the names of Flux's embedding of texts."""


def network_notes(checkpoint: Checkpoint) -> Iterator[Note]:
    """Yield notes on faults of the networks in a single file: missing tensors, and networks that do not fit together.

    Other networks and quantised tensors are not checked.
    """
    yield from missing_notes(checkpoint)
    yield from _width_notes(checkpoint)


@notes_of(NoteKind.MISSING_TENSORS)
def missing_notes(checkpoint: Checkpoint) -> Iterator[str]:
    """Yield a note on the first block or tensor that a network lacks, although other blocks show that it needs it.

    Stable Diffusion is one network here: a U-Net, a VAE and text encoders. No note is given if tensors are quantised,
    because it may be that only some layers are.
    """
    if checkpoint.codes:
        return
    tensors = _plain(checkpoint)
    layouts = _layouts_of(tensors)
    named = [known_keys(layout, tensors) for _, layout in layouts]
    for place, (family, layout) in enumerate(layouts):
        others = set[str]().union(*named[:place], *named[place + 1 :])
        own = {key: info for key, info in tensors.items() if key not in others}
        try:
            check_blocks([key for key in own if key not in named[place]], layout, own, "")
            check_complete(family, layout, own, "")
        except PlanError as error:
            yield error.message.removesuffix(".")


@notes_of(NoteKind.OTHER_COMPONENT)
def _width_notes(checkpoint: Checkpoint) -> Iterator[str]:
    """Yield a note if the U-Net of a file makes another number of channels than the VAE decodes."""
    found = _layouts_of(_plain(checkpoint))
    names = found[0][1].names if found else {}
    out, into = (checkpoint.get(f"{names.get(one)}.weight") for one in (f"{UNET}conv_out", f"{VAE}decoder.conv_in"))
    if out is None or into is None or len(out.shape) != 4 or len(into.shape) != 4:
        return
    made, latents = out.shape[0], into.shape[1]
    if made not in (latents, latents + 1, 2 * latents):  # some networks make a variance, too
        yield f"the U-Net makes {made} channels, but the VAE decodes {latents}"


def _plain(checkpoint: Checkpoint) -> Tensors:
    return {key: info for key, info in checkpoint.items() if key.endswith((".weight", ".bias"))}


def _layouts_of(tensors: Tensors) -> list[tuple[Family, Layout]]:
    """Return the layouts that Stable Diffusion and Flux have in the tensors: both, for Flux with its VAE."""
    pipeline = pipeline_in(tensors)
    families = [FLUX_IN_PIPELINE] if pipeline is None else [family_of(pipeline), FLUX_IN_PIPELINE]
    return [(family, layout) for family in families if (layout := _layout_of(family, tensors)) is not None]


def _layout_of(family: Family, tensors: Tensors) -> Layout | None:
    """Return the layout of a family that the tensors have; None if they are another network.

    One of the marks of the layout may be missing: the first block of Flux, or an attention of the VAE. Networks that
    have the blocks of Flux, but no embedding of texts, are others.
    """
    layouts = [layout for layout in family.layouts if not layout.only_written and layout.fits(tensors)]
    pairs = [(layout, [mark for mark in layout.marks if mark not in tensors]) for layout in layouts]
    whole = next((layout for layout, lost in pairs if not lost), None)
    partly = [layout for layout, lost in pairs if len(lost) == 1 and not _is_embedding(lost[0], tensors)]
    return whole or max(partly, key=lambda one: len(known_keys(one, tensors)), default=None)


def _is_embedding(lost: str, tensors: Tensors) -> bool:
    """Return whether a missing weight is of Flux's embedding of texts, which lacks its bias, too."""
    module = lost.rpartition(".")[0]
    return module.endswith(_TEXTS) and f"{module}.bias" not in tensors
