"""Opens the sources of a transplant, recognises their layouts, and makes the plan; the sources stay open."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, cast

from ...checkpoint.checkpoint import Checkpoint
from ...checkpoint.opening import open_checkpoint
from ...engine.inputs import PlanInputs
from ...errors import PatternError, PlanError
from ...planning.code_notes import with_possible_codes_said
from ...planning.operations.conversions import layouts_known
from ...planning.plan.files import PlanSource
from ...planning.plan.plan import Plan
from ...planning.quantised import check_codes
from ...planning.quantised_error import SettingsError, UndecodableWeightError
from ...planning.target import KnownLayout, TargetSpec
from ...planning.transplant.decide import InitialView
from ...planning.transplant.options import Options
from ...planning.transplant.select import PlanningInputs, SourceView, renamed_by_spec
from ...planning.transplant.transplant import plan_transplant
from ...storage.read.spec import SourceSpec
from ...tensors.composition import is_decoded
from ...tensors.find_codes import find_codes
from ...tensors.info import TensorInfo
from ...util.notes import with_prefix
from ...util.text import escape, grouped
from ..inputs.argument_types import CheckpointLike
from ..inputs.encoding import ENCODINGS, encoding_notes, read_as, with_decoding
from ..inputs.inputs import names_of, notes_on, plan_source, plan_target
from ..inputs.kept_open import KeptOpen, check_decodable
from ..inputs.operations import OperatedCheckpoint, operate
from ..layouts.changed_layout import layout_for
from ..layouts.named_layout import AUTO, KEEP
from ..model_folder.folder import ModelFolder, model_folder, model_folder_at
from ..model_folder.quantised import decoded_dtype
from .models import TransplantModels, with_layers_noted
from .stacked_experts import stacked_experts_notes

if TYPE_CHECKING:
    from ...vocabulary.replacement import NewVocabulary

__all__ = ["KnownSource", "check_converted", "plan_into", "recognised"]

# Sources after the user's operations, and then after the operations for their recognised layout.

LOST = "{names} must be converted from the older layout of the source, but {why}"


@dataclass(frozen=True)
class KnownSource:
    """A source after all operations on its tensors, and the layout (such as older names) that was recognised in it.

    The layout says how the source's tensors are renamed and converted to become the destination's tensors.
    """

    operated: OperatedCheckpoint
    recognised: KnownLayout = field(default_factory=KnownLayout)


def recognised(
    raw: Sequence[Checkpoint],
    rows: Sequence[Mapping[str, Any]],
    specs: Sequence[SourceSpec],
    target: TargetSpec,
    layout: str = KEEP,
    heads: str = "",
) -> list[KnownSource]:
    """Return the sources ``raw`` after the operations ``rows``, each with the layout that is then recognised in it.

    ``specs`` says, for each source, from which module the tensors are read and into which module they go. ``layout`` is
    the layout to which they are converted ("auto" means the destination's layout), and ``heads`` is the value of
    ``--heads``.
    """
    return [
        _recognised(checkpoint, one, spec, target, layout, heads)
        for checkpoint, one, spec in zip(raw, operate(raw, rows), specs, strict=True)
    ]


def _recognised(
    raw: Checkpoint, one: OperatedCheckpoint, spec: SourceSpec, target: TargetSpec, layout: str, heads: str
) -> KnownSource:
    found = layout_for(
        layout,
        one,
        target.tensors,
        lambda: model_folder(raw).config,
        lambda: _config_of(target),
        heads,
        reads_older=target.recognise is not None,
    )
    recognise = target.recognise or layouts_known(target.tensors)
    if found is None and recognise is None:
        return KnownSource(one)
    if found is None:
        assert recognise is not None
        found = recognise(one.checkpoint)
    one = one.further(found.operations, found.derived)
    return KnownSource(one, _under(found, one.checkpoint, spec, target) if spec.src or spec.dst else found)


def _config_of(target: TargetSpec) -> Mapping[str, Any]:
    """Return the fields of a destination's config.json; {} if it has none."""
    beside = model_folder_at(target.keeps).config if os.path.isdir(target.keeps) else {}
    return ModelFolder("", target.companions).config or beside


def _under(found: KnownLayout, source: Checkpoint, spec: SourceSpec, target: TargetSpec) -> KnownLayout:
    """Return the part of a recognised layout for the destination's module ``spec.dst``.

    The source is loaded into this module.
    """
    names = {
        key: name
        for key, name in found.names.items()
        if key in source and _within(name, spec.dst) and renamed_by_spec(key, spec.src, spec.dst) not in target.tensors
    }
    unknown = {key: why for key, why in found.unknown.items() if _within(key, spec.dst)}
    notes = found.notes if names or found.operations else ()
    return KnownLayout(found.operations, names, found.by, unknown, notes)


def _within(key: str, module: str) -> bool:
    return bool(module) and key.startswith(f"{module}.")


def check_converted(plan: Plan, sources: Sequence[KnownSource]) -> None:
    """Raise PlanError if tensors would be initialised although a source has their values in an unsupported layout."""
    unknown: Mapping[str, str] = {key: why for one in sources for key, why in one.recognised.unknown.items()}
    lost = [step.key for step in plan.steps if step.reason == "missing" and step.key in unknown]
    if lost:
        raise PlanError(
            f"{grouped([(key, unknown[key]) for key in lost], LOST)}.",
            hint="Convert the source with transformers (from_pretrained, save_pretrained), or initialise these "
            "tensors with --reinit.",
            details=lost,
        )


def plan_into(
    specs: Sequence[SourceSpec], target: TargetSpec, options: Options, *, encoding: str = ENCODINGS[0], **more: Any
) -> Plan:
    """Open the sources of a transplant and return its plan, which keeps the sources open for ``apply``.

    If ``encoding`` is "dequantize", quantised sources and destinations are decoded. If it is "keep", codes are copied.
    If codes cannot be copied and the destination is a quantised checkpoint, the transplant is planned with decoded
    weights, and the results are encoded like the destination. ``more`` are further arguments of ``_planned``.
    """
    try:
        read = decoded_target(target) if encoding != ENCODINGS[0] else target
        return _planned(specs, read, options, encoding=encoding, reading=encoding, **more)
    except SettingsError:
        raise
    except PlanError as error:
        decoded = _tried(target) if encoding == ENCODINGS[0] else target
        if decoded is target:
            raise
        try:
            return _planned(specs, decoded, options, encoding=encoding, reading=ENCODINGS[1], **more)
        except (_UndecodableSourceError, PatternError):  # a pattern may match only some parts of a quantised tensor
            raise error from None
        except PlanError as other:  # this error is clearer than ``error``: it names weights, not codes
            raise other from None


class _UndecodableSourceError(UndecodableWeightError):
    """Raised if a quantised source cannot be decoded.

    Never reaches the user: the error of the earlier plan, which copies codes, is reported instead.
    """


def _check_decodable(sources: Sequence[Checkpoint]) -> None:
    try:
        check_decodable(sources)
    except PlanError as error:
        raise _UndecodableSourceError(error.message, hint=error.hint, details=error.details) from None


def _tried(target: TargetSpec) -> TargetSpec:
    """Return ``decoded_target(target)``; if it cannot be decoded, return ``target`` unchanged."""
    with suppress(PlanError):
        return decoded_target(target)
    return target


def _planned(
    specs: Sequence[SourceSpec],
    target: TargetSpec,
    options: Options,
    *,
    seed: int,
    arguments: Mapping[str, Any],
    root: str | None,
    others: tuple[str, ...] = (),
    rows: Sequence[Mapping[str, Any]] = (),
    change: NewVocabulary | None = None,
    by_place: bool = False,
    encoding: str = ENCODINGS[0],
    reading: str = ENCODINGS[0],
    config: Mapping[str, Any] | None = None,
    layout: str | None = None,
    heads: str = "",
) -> Plan:
    """Open the sources of a transplant and return its plan.

    ``arguments`` are recorded in the recipe, and ``root`` is the dotted path of the state dict in the sources.
    ``others`` are the paths of further files that were read, and ``rows`` the operations on the sources. ``change`` is
    the vocabulary that replaces the destination's. If models have different tokens, row n is copied to row n only if
    ``by_place`` is set. ``reading`` is "dequantize" if quantised sources are decoded, and ``encoding`` is "dequantize"
    if results are stored as plain numbers; otherwise both are "keep". ``config`` is the configuration of a live module.
    ``layout`` is the layout to which the sources are converted; None means the destination's layout, unless rules or
    operations are given. ``heads`` is the value of ``--heads``.
    """
    is_ruled = bool(rows or options.rules or options.rulesets)
    layout = layout or (KEEP if is_ruled else AUTO)
    opened: list[Checkpoint] = []
    initial_files: list[Checkpoint] = []
    with KeptOpen(opened, initial_files, sources=len(specs)):
        for place, spec in enumerate(specs, 1):
            called = f"source {place}" if len(specs) > 1 else "source"
            raw = open_checkpoint(_given(spec.given, spec.uri), root, unwrap=False, called=called)
            opened.append(raw.unwrapped(destination=list(target.tensors)))
        if reading != encoding:
            _check_decodable(opened)
        sources = recognised(opened, with_decoding(rows, opened, reading), specs, target, layout, heads)
        views = _views(sources, specs)
        keeper = _keeper(target, [view.source.name for view in views], opened, reading)
        initial = _initial(target, names_of([spec.uri for spec in specs]), initial_files)
        wanted = opened[-1].codes if len(opened) > len(specs) else find_codes(target.tensors)
        plan = plan_transplant(
            views, target, options, planned=plan_target(target), keeper=keeper, initial=initial, wanted=wanted,
            seed=seed, arguments={**arguments, **_recorded_specs(specs)},
            metadata=_metadata([one.operated.checkpoint for one in sources]),
            notes=[
                *_notes(specs, sources, target), *stacked_experts_notes(target, opened),
                *_idle_encoding(sources, opened[len(specs) :], encoding),
            ],
        )  # fmt: skip
        check_converted(plan, sources)
        plan, initial_files[:] = _used(plan, initial, initial_files)
        read = [*(one.operated.checkpoint for one in sources), *opened[len(specs) :], *initial_files]
        owner = len(specs) if len(opened) > len(specs) else None
        plan, held = plan, read
        if reading != encoding:
            from ..inputs.kept_codes import keeping_codes

            plan, held = keeping_codes(plan, read, encoding, owner or 0, dtype=options.dtype)
        opened[len(specs) :] = held[len(specs) : len(opened)]
        wanted = opened[-1].codes if owner is not None else wanted
        check_codes(plan, [one.codes_before_operations for one in held], wanted)
        plan = with_possible_codes_said(plan, [one.codes for one in held])
        quantised_by = (config or {}).get("quantization_config")
        if any(one.codes for one in held):
            from ..model_folder.codes.output_settings import check_settings, unsettled_notes, with_settings

            check_settings(plan, held, owner, quantised_by)
            plan = replace(plan, notes=(*plan.notes, *unsettled_notes(plan, held, owner, quantised_by)))
            plan = with_settings(plan, held, owner)
        models = TransplantModels(
            opened[: len(specs)], held[: len(specs)], [view.tensors for view in views],
            opened[-1] if owner is not None else None, target, config or {},
        )  # fmt: skip
        if models.have_files:
            from .model_files import with_files_compared, with_output_files  # they import checks of tokenisers

            plan = with_output_files(plan, models, change)
        plan = with_layers_noted(plan, models, initial_files)
        if models.have_files:
            plan = with_files_compared(plan, models, change, by_place=by_place)
        if options.rules or any(source.operations for source in plan.sources):
            from ..model_folder.layers.row_order import with_row_order_said

            plan = with_row_order_said(plan, [one.operated.checkpoint for one in sources], models.config)
        if not by_place and (change is not None or target.vocabulary):
            from ..model_folder.recorded_tokens import with_recorded_tokens_said

            kept_folder = models.kept_folder
            plan = with_recorded_tokens_said(plan, models.opened, target, models.folders, change, kept_folder)
    others += tuple(one.path for one in target.given)  # so that the output does not overwrite them
    return replace(plan, inputs=PlanInputs(tuple(held), target, others, PlanningInputs(views, target, options)))


def _views(sources: Sequence[KnownSource], specs: Sequence[SourceSpec]) -> list[SourceView]:
    """Return the sources in the form that the planner reads: names, tensors and recognised names of tensors."""
    names = names_of([spec.uri for spec in specs])
    return [
        SourceView(
            plan_source(name, one.operated.checkpoint, operations=one.operated.derived.rows), one.operated.checkpoint,
            spec.src, spec.dst, spec.exclude, one.operated.derived.by, one.recognised.names, one.recognised.by,
            one.operated.checkpoint.codes, decoded_dtype(one.operated.checkpoint),
        )
        for name, one, spec in zip(names, sources, specs, strict=True)
    ]  # fmt: skip


def _idle_encoding(sources: Sequence[KnownSource], kept: Sequence[Checkpoint], encoding: str) -> list[str]:
    """Return a note if decoding was asked for, but neither a source nor the destination (``kept``) is quantised."""
    return encoding_notes([*(one.operated.checkpoint for one in sources), *kept], encoding)


def decoded_target(target: TargetSpec) -> TargetSpec:
    """Return a destination with the decoded tensors of its checkpoint; unchanged if it is not a quantised checkpoint.

    Raises PlanError if a tensor cannot be decoded.
    """
    if target.kind == "module" or not target.keeps:
        return target
    with open_checkpoint(_given(target.kept, target.keeps), target.keeps_root or ".", unwrap=False) as opened:
        checkpoint = read_as(opened, ENCODINGS[1])
        if checkpoint.stored is None:
            return target
        dtype = decoded_dtype(checkpoint)
        decoded = {key: info.dtype for key, info in checkpoint.items() if is_decoded(info)}
        tensors = {
            key: TensorInfo(dtype if key in decoded else one.dtype, one.shape) for key, one in checkpoint.items()
        }
        return replace(target, tensors=tensors, ties=dict(checkpoint.ties), decoded=decoded)


def _keeper(target: TargetSpec, names: Sequence[str], opened: list[Checkpoint], encoding: str) -> PlanSource | None:
    """Return the destination as a further source of the plan: tensors that no other source has keep their values.

    Opens its file and appends it to ``opened``. Returns None for a destination without values. ``names`` are the names
    of the other sources.
    """
    if target.kind == "module":
        return PlanSource(target.name, "", "", (), (), "destination")
    if not target.keeps:
        return None
    opened.append(open_checkpoint(_given(target.kept, target.keeps), target.keeps_root or ".", unwrap=False))
    opened[-1] = read_as(opened[-1], encoding) if encoding != ENCODINGS[0] else opened[-1]
    return plan_source(names_of([*names, target.keeps])[-1], opened[-1], role="destination")


def _initial(target: TargetSpec, names: list[str], given: list[Checkpoint]) -> list[InitialView]:
    """Return the files with initial values for a destination's tensors (``target.given``) as further sources.

    Opens these files and appends them to ``given``. ``names`` are the names of the other sources of the plan.
    """
    views = []
    for file in target.given:
        given.append(open_checkpoint(file.path, file.root, unwrap=False).unwrapped(stripped=file.stripped))
        names = [*names, names_of([*names, file.path])[-1]]
        views.append(InitialView(plan_source(names[-1], given[-1], role="initial"), given[-1], file))
    return views


def _used(plan: Plan, views: Sequence[InitialView], given: Sequence[Checkpoint]) -> tuple[Plan, list[Checkpoint]]:
    """Return the plan without files of initial values that no step reads, and the files that remain.

    The removed files are closed. A step reads a file if it copies a tensor from it, or if it fills the part of a tensor
    that a smaller source tensor does not cover.
    """
    first = len(plan.sources) - len(views)
    filled = {step.key for step in plan.steps if step.overlays}
    read = {step.source for step in plan.steps}
    read |= {place for place, view in enumerate(views, first) if not filled.isdisjoint(view.file.keys)}
    places = [place for place in range(first, len(plan.sources)) if place in read]
    moved = {place: first + number for number, place in enumerate(places)}
    for place, checkpoint in enumerate(given, first):
        if place not in moved:
            checkpoint.close()
    steps = plan.steps
    if len(places) < len(views):
        steps = tuple(replace(one, source=moved.get(one.source or 0, one.source)) for one in steps)
    sources = (*plan.sources[:first], *(plan.sources[place] for place in places))
    return replace(plan, sources=sources, steps=steps), [given[place - first] for place in places]


def _given(itself: object, path: str) -> CheckpointLike:
    """Return ``itself`` if it is an open checkpoint or a dict of tensors, else ``path``."""
    return cast("CheckpointLike", itself) if itself is not None else path


def _recorded_specs(specs: Sequence[SourceSpec]) -> dict[str, Any]:
    """Return ``src_key``, ``dst_key`` and ``exclude_keys`` of each source, for the recipe; {} if no source has any."""
    if not any(spec.src or spec.dst or spec.exclude for spec in specs):
        return {}
    rows = [{"src_key": spec.src, "dst_key": spec.dst, "exclude_keys": list(spec.exclude)} for spec in specs]
    return {"specs": rows}


def _notes(specs: Sequence[SourceSpec], sources: Sequence[KnownSource], target: TargetSpec) -> list[str]:
    """Return notes on the sources, their layouts and the destination: those that are known before the plan is made."""
    notes = [note for spec in specs for note in spec.notes]
    for one in sources:
        checkpoint = one.operated.checkpoint
        notes += (*notes_on(checkpoint, len(sources) + bool(target.keeps)), *one.operated.derived.notes)
        if checkpoint.stripped:
            notes.append(f"the prefix {', '.join(checkpoint.stripped)} was removed from the keys of {checkpoint.path}")
    for one in sources:
        where = f"{escape(one.operated.checkpoint.path)}: " if len(sources) > 1 else ""
        notes += (with_prefix(where, note) for note in one.recognised.notes)
    return [*notes, *(f"ran {code}" for code in target.ran), *target.notes]


def _metadata(checkpoints: Sequence[Checkpoint]) -> dict[str, str]:
    merged: dict[str, str] = {}
    for checkpoint in checkpoints:
        merged.update(checkpoint.metadata)
    merged.pop("format", None)
    return merged
