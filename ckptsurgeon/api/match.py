"""``match``: proposes rules that rename a source's tensors to a destination's, from headers."""

from __future__ import annotations

import os
from dataclasses import replace

from ..analysis.match.proposal import Proposal
from ..analysis.match.propose import propose
from ..checkpoint.in_memory import path_of
from ..checkpoint.opening import open_checkpoint
from ..destinations._load import load_target
from ..storage.read.uri import shown
from .inputs.argument_types import CheckpointLike
from .inputs.fitting_notes import checkpoint_notes, destination_notes
from .layouts.changed_layout import layouts_between
from .model_folder.folder import ModelFolder, model_folder_at
from .model_folder.layers.row_order import renaming_notes

__all__ = ["match"]


def match(
    source: CheckpointLike, destination: CheckpointLike, *, task: str | None = None, root: str | None = None
) -> Proposal:
    """Propose the ``--map`` rules that rename a source's keys to a destination's, from names and shapes.

    Nothing is renamed. If several keys fit equally well, none of them is chosen. ``destination`` is a configuration or
    a checkpoint. ``task`` is the ESPnet task, if an ESPnet configuration fits several tasks; ``root`` is the dotted
    path of the state dict in ``source``. The result has the notes of ``inspect`` on both. Raises the errors of
    ``open_checkpoint`` and ``load_target``.
    """
    target = load_target(destination, task=task)
    with open_checkpoint(source, root, unwrap=False) as raw:
        checkpoint = raw.unwrapped(destination=list(target.tensors))
        found = propose(shown(path_of(source)), checkpoint, shown(path_of(destination)), target.tensors)
        notes = [*checkpoint_notes(checkpoint), *target.notes, *destination_notes(destination, target), *found.notes]
        if checkpoint.stripped:
            notes.append(f"the prefix {', '.join(checkpoint.stripped)} was removed from the keys of {checkpoint.path}")
        if between := layouts_between(checkpoint, target.tensors):
            family, here, there = between
            notes.append(
                f"no --map is needed: both are networks of the family {family.name}, and ckpt transplant "
                "converts the "
                f"layout {here.name} to {there.name}"
            )
        beside = ModelFolder("", target.companions)
        config = beside.config or (model_folder_at(target.keeps).config if os.path.isdir(target.keeps) else {})
        notes += renaming_notes(found.names.items(), checkpoint, target.tensors.keys(), config)
    return replace(found, notes=tuple(dict.fromkeys(notes)))
