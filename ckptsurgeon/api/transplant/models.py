"""Finds the folders of the models of a transplant, and makes notes on their layers."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from ...checkpoint.checkpoint import Checkpoint
from ...planning.plan.plan import Plan
from ...planning.target import TargetSpec
from ..model_folder.checks import (
    folder_notes,
    numbered_gap_notes,
    source_layer_notes,
    sources_beside,
    with_layers_said,
    with_sources_said,
    without_repeats,
)
from ..model_folder.folder import ModelFolder, model_folder
from ..model_folder.quantised import folder_of

__all__ = ["TransplantModels", "with_layers_noted"]


@dataclass(frozen=True)
class TransplantModels:
    """The models of a transplant.

    ``opened`` are the sources as they were opened, and ``read`` are the same sources after decoding and operations.
    ``keys`` has the keys of each source. ``kept`` is the destination if it is a checkpoint, else None. If the
    destination is a live module, ``given`` is its configuration, else empty.
    """

    opened: Sequence[Checkpoint]
    read: Sequence[Checkpoint]
    keys: Sequence[Collection[str]]
    kept: Checkpoint | None
    target: TargetSpec
    given: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def folders(self) -> list[ModelFolder]:
        """The folders of the sources, and the folder of the destination if it is a checkpoint."""
        read = (*self.read, *([] if self.kept is None else [self.kept]))
        return [model_folder(one) if one.stored is None else folder_of(one) for one in read]

    @cached_property
    def destination(self) -> ModelFolder:
        """The files of the destination: its folder or, for a configuration, the files that the output gets."""
        return self.folders[-1] if self.kept is not None else ModelFolder("", self.target.companions)

    @property
    def kept_folder(self) -> ModelFolder | None:
        """The folder of a destination that is a checkpoint; None for a configuration."""
        return None if self.kept is None else self.folders[-1]

    @property
    def stated(self) -> Mapping[str, Any]:
        """The configuration of a destination that is a live module or a configuration; empty for a checkpoint."""
        return self.given or ({} if self.kept is not None else self.destination.config)

    @property
    def config(self) -> Mapping[str, Any]:
        """The configuration of the destination; empty if it has none."""
        return self.given or self.destination.config

    @property
    def have_files(self) -> bool:
        """Whether any model may have a configuration, tokens or terms of use; a file of weights alone has none."""
        if self.kept is not None or self.given or self.target.companions:
            return True
        return any(one.files or one.licences or one.embedded or one.unlisted for one in self.folders)


def with_layers_noted(plan: Plan, models: TransplantModels, initial: Sequence[Checkpoint]) -> Plan:
    """Return a plan with notes on the layers of its output and of its sources.

    ``initial`` are the files with initial values. Notes on them, and on the files in their folders, are added too.
    """
    kept, folder = models.kept, models.destination
    if kept is None:
        gaps = numbered_gap_notes([step.key for step in plan.steps]) if models.target.kind == "tensors" else ()
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
