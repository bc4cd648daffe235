"""Notes on layers that the models of a transplant lack, or whose tensors contradict those of other layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ...checkpoint.checkpoint import Checkpoint
from ...planning.plan.plan import Plan
from ..model_folder.checks import (
    folder_notes,
    source_layer_notes,
    sources_beside,
    with_layers_said,
    with_sources_said,
    without_repeats,
)
from ..model_folder.folder import model_folder
from ..model_folder.layers.holes import gap_notes
from .models import TransplantModels

__all__ = ["with_layers_noted"]


def with_layers_noted(plan: Plan, models: TransplantModels, initial: Sequence[Checkpoint]) -> Plan:
    """Return a plan with notes on the layers of its output and of its sources.

    ``initial`` are the files with initial values. Notes on them, and on the files in their folders, are added too.
    """
    kept, folder = models.kept, models.destination
    if kept is None:
        gaps = gap_notes([step.key for step in plan.steps]) if models.target.kind == "tensors" else ()
        plan = replace(plan, notes=(*plan.notes, *folder_notes(plan, folder), *gaps))
    else:
        plan = with_layers_said(plan, source_layer_notes(kept, folder), kept.path, folder.config)
    plan = with_sources_said(plan, models.opened, models.folders)
    beside = kept.path if kept is not None else models.target.config
    opened = [*models.opened, *([] if kept is None else [kept])]
    plan = without_repeats(plan, *sources_beside(opened, beside))
    notes = (note for one in initial for note in one.notes if note not in plan.notes)
    plan = replace(plan, notes=(*plan.notes, *notes))
    return with_sources_said(plan, initial, list(map(model_folder, initial)))
