"""The models of a transplant: opens them, makes the notes on them, and checks their codes and layers."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

from ...checkpoint.checkpoint import Checkpoint
from ...checkpoint.opening import open_checkpoint
from ...planning.encoding_checks import with_possible_codes_said
from ...planning.plan.files import PlanSource, SourceView
from ...planning.plan.plan import Plan
from ...planning.quantised import check_codes
from ...planning.target import TargetSpec
from ...planning.transplant.decide import InitialView
from ...storage.read.spec import SourceSpec
from ...tensors.possible_scales import CODES as INTEGERS
from ...util.notes import with_prefix
from ...util.text import count, escape, listing
from ..inputs.argument_types import CheckpointLike
from ..inputs.encoding import ENCODINGS, encoding_notes
from ..inputs.inputs import names_of, notes_on, plan_source
from ..layouts.mlx_form import FORMAT, MLX, is_of_mlx
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
from ..model_folder.quantised import decoded_dtype, folder_of
from .recognition import KnownSource
from .stacked_experts import stacked_experts_notes

if TYPE_CHECKING:
    from ...tensors.quantised.encoding import QuantisedTensors

__all__ = [
    "TransplantModels", "first_notes", "further_sources", "metadata_of", "open_sources", "recorded_specs", "views_of",
    "with_codes_checked", "with_layers_noted",
]  # fmt: skip


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


def open_sources(specs: Sequence[SourceSpec], target: TargetSpec, root: str | None, *, into: list[Checkpoint]) -> None:
    """Open the sources, and append them to ``into`` one by one: if one cannot be opened, the others can be closed."""
    for place, spec in enumerate(specs, 1):
        called = f"source {place}" if len(specs) > 1 else "source"
        given = cast("CheckpointLike", spec.given) if spec.given is not None else spec.uri
        raw = open_checkpoint(given, root, unwrap=False, called=called)
        into.append(raw.unwrapped(destination=list(target.tensors)))


def views_of(sources: Sequence[KnownSource], specs: Sequence[SourceSpec]) -> list[SourceView]:
    """Return the sources in the form that the planner reads: names, tensors and recognised names of tensors."""
    names = names_of([spec.uri for spec in specs])
    return [
        SourceView(
            plan_source(name, one.operated.checkpoint, operations=one.operated.derived.rows), one.operated.checkpoint,
            spec.src, spec.dst, spec.exclude, one.operated.derived.by, one.recognised.names, one.recognised.by,
            one.operated.checkpoint.codes,
            decoded_dtype(one.operated.checkpoint) if one.operated.checkpoint.stored is not None else "",
        )
        for name, one, spec in zip(names, sources, specs, strict=True)
    ]  # fmt: skip


def further_sources(
    names: Sequence[str], target: TargetSpec, opened: list[Checkpoint], initial_files: list[Checkpoint], reading: str
) -> tuple[PlanSource | None, list[InitialView]]:
    """Return the further sources of the plan: the destination, if it has values, and the files of initial values.

    Their files are opened, and appended to the lists. ``names`` are the names of the sources.
    """
    if not (target.kind == "module" or target.keeps or target.given):
        return None, []
    from .destination_files import initial_views, keeper_of

    keeper = keeper_of(target, names, opened, reading)
    return keeper, initial_views(target, list(names), initial_files)


def first_notes(
    specs: Sequence[SourceSpec],
    sources: Sequence[KnownSource],
    target: TargetSpec,
    opened: Sequence[Checkpoint],
    *,
    encoding: str,
    heads: str,
) -> list[str]:
    """Return the notes on the sources, their layouts and the destination that are known before the plan is made.

    ``opened`` are the sources as they were opened, followed by the destination if it is a checkpoint. ``heads`` is the
    value of ``--heads``.
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
    if target.extra_state and target.keeps:
        number = f"{count(len(target.extra_state), 'extra state')} of modules (get_extra_state)"
        lost = f"{number} {'is' if len(target.extra_state) == 1 else 'are'} not in the output"
        notes.append(f"{escape(target.name)}: {lost}: {listing(target.extra_state, where='')}")
    if target.kind == "transformers":
        notes += stacked_experts_notes(target, opened)
    if encoding != ENCODINGS[0]:
        notes += encoding_notes([*(one.operated.checkpoint for one in sources), *opened[len(specs) :]], encoding)
    if heads and not any(one.recognised.operations for one in sources):  # only operations may use these numbers
        notes.append("--heads has no effect: no source needs a conversion that uses the numbers of heads")
    return notes


def with_codes_checked(
    plan: Plan, held: Sequence[Checkpoint], owner: int | None, wanted: QuantisedTensors, config: Mapping[str, Any]
) -> Plan:
    """Return the plan with notes on codes, and with the settings of the quantised tensors in its output.

    ``held`` are the sources of the plan; the destination is the one with the index ``owner``, and ``wanted`` are its
    quantised tensors. ``config`` is the configuration of a live module. Raises PlanError if codes do not fit the
    destination or their settings.
    """
    codes = [one.codes_before_operations for one in held]
    if wanted or any(codes):
        check_codes(plan, codes, wanted)
    if any(one.dtype in INTEGERS for step in plan.steps for one in step.inputs):
        plan = with_possible_codes_said(plan, [one.codes for one in held])
    if not any(one.codes for one in held):
        return plan
    from ..model_folder.codes.output_settings import check_settings, unsettled_notes, with_settings

    quantised_by = config.get("quantization_config")
    check_settings(plan, held, owner, quantised_by)
    plan = replace(plan, notes=(*plan.notes, *unsettled_notes(plan, held, owner, quantised_by)))
    return with_settings(plan, held, owner)


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


def recorded_specs(specs: Sequence[SourceSpec]) -> dict[str, Any]:
    """Return ``src_key``, ``dst_key`` and ``exclude_keys`` of each source, for the recipe; {} if no source has any."""
    if not any(spec.src or spec.dst or spec.exclude for spec in specs):
        return {}
    rows = [{"src_key": spec.src, "dst_key": spec.dst, "exclude_keys": list(spec.exclude)} for spec in specs]
    return {"specs": rows}


def metadata_of(checkpoints: Sequence[Checkpoint], destinations: Sequence[Checkpoint]) -> dict[str, str]:
    """Return the metadata of the sources; the output is a file of MLX if the destination is one."""
    merged: dict[str, str] = {}
    for checkpoint in checkpoints:
        merged.update(checkpoint.metadata)
    merged.pop(FORMAT, None)
    return {**merged, FORMAT: MLX} if any(is_of_mlx(one.metadata) for one in destinations) else merged
