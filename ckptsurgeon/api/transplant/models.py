"""Makes the notes on the models of a transplant: how they were opened and recognised, and what their layers lack."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from ...checkpoint.checkpoint import Checkpoint
from ...planning.plan.plan import Plan
from ...planning.target import TargetSpec
from ...storage.read.spec import SourceSpec
from ...util.notes import with_prefix
from ...util.text import escape
from ..inputs.encoding import ENCODINGS, encoding_notes
from ..inputs.inputs import notes_on
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
from .recognition import KnownSource
from .stacked_experts import stacked_experts_notes

__all__ = ["TransplantModels", "first_notes", "with_layers_noted"]


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


def first_notes(
    specs: Sequence[SourceSpec],
    sources: Sequence[KnownSource],
    target: TargetSpec,
    opened: Sequence[Checkpoint],
    encoding: str,
) -> list[str]:
    """Return the notes on the sources, their layouts and the destination that are known before the plan is made.

    ``opened`` are the sources as they were opened, followed by the destination if it is a checkpoint.
    """
    notes = [note for spec in specs for note in spec.notes]
    for one in sources:
        checkpoint = one.operated.checkpoint
        notes += (*notes_on(checkpoint, len(sources) + bool(target.keeps)), *one.operated.derived.notes)
        if checkpoint.stripped:
            prefix = ", ".join(map(escape, checkpoint.stripped))
            notes.append(f"the prefix {prefix} was removed from the keys of {escape(checkpoint.path)}")
    for one in sources:
        where = f"{escape(one.operated.checkpoint.path)}: " if len(sources) > 1 else ""
        notes += (with_prefix(where, note) for note in one.recognised.notes)
    notes += (*(f"ran {code}" for code in target.ran), *target.notes)
    if target.kind == "transformers":
        notes += stacked_experts_notes(target, opened)
    if encoding != ENCODINGS[0]:
        notes += encoding_notes([*(one.operated.checkpoint for one in sources), *opened[len(specs) :]], encoding)
    return notes


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
