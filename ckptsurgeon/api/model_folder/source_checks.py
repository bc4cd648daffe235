"""What files beside the sources of a plan say otherwise than these: notes, though the output has other files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ...checkpoint.checkpoint import Checkpoint
from ...planning.plan.plan import Plan
from ...util.text import escape
from .folder import ModelFolder
from .layer_checks import layer_notes
from .shape_checks import Described
from .special_ids import special_id_notes
from .token_lists import token_list_notes

__all__ = ["with_sources_said"]


def with_sources_said(
    plan: Plan, opened: Sequence[Checkpoint], folders: Sequence[ModelFolder], donor: int | None = None
) -> Plan:
    """Return a plan with notes on layers and tokens that files beside its sources say otherwise than these.

    ``folders`` are those of the ``opened``; of the one at ``donor``, whose files the output has, all is said anyway.
    """
    said = dict[str, None]()
    for number, (checkpoint, folder) in enumerate(zip(opened, folders, strict=False)):
        if number != donor and folder.files and not checkpoint.elsewhere:
            tensors = [Described(key, info.dtype, info.shape) for key, info in checkpoint.items()]
            apart = ModelFolder("", folder.files)  # what only this reads may change until the plan is carried out
            lists = (*token_list_notes(folder), *special_id_notes(apart, folder))
            notes = (*layer_notes(tensors, folder.config), *lists)
            said |= dict.fromkeys(f"{escape(checkpoint.path)}: {note}" for note in notes)
    return replace(plan, notes=(*plan.notes, *said)) if said else plan
