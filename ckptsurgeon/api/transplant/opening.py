"""Opens the sources of a transplant, and makes the plan; the sources stay open."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, cast

from ...checkpoint.checkpoint import Checkpoint
from ...checkpoint.opening import open_checkpoint
from ...engine.inputs import PlanInputs
from ...errors import PatternError, PlanError
from ...planning.code_notes import with_possible_codes_said
from ...planning.plan.files import PlanSource, SourceView
from ...planning.plan.plan import Plan
from ...planning.quantised import check_codes
from ...planning.quantised_error import SettingsError, UndecodableWeightError
from ...planning.target import TargetSpec
from ...planning.transplant.decide import InitialView
from ...planning.transplant.options import Options
from ...planning.transplant.transplant import PlanningInputs, plan_transplant
from ...storage.read.spec import SourceSpec
from ...tensors.find_codes import find_codes
from ...tensors.possible_scales import CODES as INTEGERS
from ..inputs.argument_types import CheckpointLike
from ..inputs.encoding import ENCODINGS, with_decoding
from ..inputs.inputs import KeptOpen, check_decodable, names_of, plan_source, plan_target
from ..layouts.mlx_form import FORMAT, MLX, is_of_mlx
from ..layouts.named_layout import AUTO, KEEP
from ..model_folder.quantised import decoded_dtype
from .models import TransplantModels, first_notes, with_layers_noted
from .recognition import KnownSource, check_converted, recognised

if TYPE_CHECKING:
    from ...tensors.quantised.encoding import QuantisedTensors
    from ...vocabulary.replacement import NewVocabulary

__all__ = ["TransplantRequest", "plan_into"]


@dataclass(frozen=True)
class TransplantRequest:
    """The request for a transplant, apart from its sources, its destination and the options of the planner.

    ``arguments`` are recorded in the recipe, and ``root`` is the dotted path of the state dict in the sources.
    ``others`` are the paths of further files that were read, and ``rows`` the operations on the sources. ``change`` is
    the vocabulary that replaces the destination's. If models have different tokens, row n is copied to row n only if
    ``by_place`` is set. ``encoding`` is "dequantize" if results are stored as plain numbers, else "keep". ``config`` is
    the configuration of a live module. ``layout`` is the layout to which the sources are converted; None means the
    destination's layout, unless rules or operations are given. ``heads`` is the value of ``--heads``.
    """

    seed: int = 0
    arguments: Mapping[str, Any] = field(default_factory=dict)
    root: str | None = None
    others: tuple[str, ...] = ()
    rows: Sequence[Mapping[str, Any]] = ()
    change: NewVocabulary | None = None
    by_place: bool = False
    encoding: str = ENCODINGS[0]
    config: Mapping[str, Any] = field(default_factory=dict)
    layout: str | None = None
    heads: str = ""


def plan_into(specs: Sequence[SourceSpec], target: TargetSpec, options: Options, request: TransplantRequest) -> Plan:
    """Open the sources of a transplant and return its plan, which keeps the sources open for ``apply``.

    If the encoding is "dequantize", quantised sources and destinations are decoded. If it is "keep", codes are copied.
    If codes cannot be copied and the destination is a quantised checkpoint, the transplant is planned with decoded
    weights, and the results are encoded like the destination.
    """
    keeps = request.encoding == ENCODINGS[0]
    try:
        read = target if keeps else _decoded(target)
        return _planned(specs, read, options, request, reading=request.encoding)
    except SettingsError:
        raise
    except PlanError as error:
        decoded = _tried(target) if keeps else target
        if decoded is target:
            raise
        try:
            return _planned(specs, decoded, options, request, reading=ENCODINGS[1])
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


def _decoded(target: TargetSpec) -> TargetSpec:
    from .destination_files import decoded_target  # few destinations are quantised

    return decoded_target(target)


def _tried(target: TargetSpec) -> TargetSpec:
    """Return the destination with decoded tensors; if it cannot be decoded, return ``target`` unchanged."""
    with suppress(PlanError):
        return _decoded(target)
    return target


def _planned(
    specs: Sequence[SourceSpec], target: TargetSpec, options: Options, request: TransplantRequest, *, reading: str
) -> Plan:
    """Open the sources of a transplant and return its plan.

    ``reading`` is "dequantize" if quantised sources are decoded, else "keep".
    """
    opened: list[Checkpoint] = []
    initial_files: list[Checkpoint] = []
    with KeptOpen(opened, initial_files, sources=len(specs)):
        _open(specs, target, request.root, into=opened)
        if reading != request.encoding:
            _check_decodable(opened)
        rows = with_decoding(request.rows, opened) if reading != ENCODINGS[0] else request.rows
        sources = recognised(opened, rows, specs, target, _layout(options, request), request.heads)
        views = _views(sources, specs)
        keeper, initial = _further([view.source.name for view in views], target, opened, initial_files, reading)
        owner = len(specs) if len(opened) > len(specs) else None
        wanted = opened[-1].codes if owner is not None else find_codes(target.tensors)
        plan = plan_transplant(
            views, target, options, planned=plan_target(target), keeper=keeper, initial=initial, wanted=wanted,
            seed=request.seed, arguments={**request.arguments, **_recorded_specs(specs)},
            metadata=_metadata([one.operated.checkpoint for one in sources], opened[len(specs) :]),
            notes=[
                *first_notes(specs, sources, target, opened, request.encoding), *_heads_notes(request.heads, sources),
            ],
        )  # fmt: skip
        check_converted(plan, sources)
        if initial:
            from .destination_files import used

            plan, initial_files[:] = used(plan, initial, initial_files)
        read = [*(one.operated.checkpoint for one in sources), *opened[len(specs) :], *initial_files]
        held = read
        if reading != request.encoding:
            from ..inputs.kept_codes import keeping_codes

            plan, held = keeping_codes(plan, read, request.encoding, owner or 0, dtype=options.dtype)
        opened[len(specs) :] = held[len(specs) : len(opened)]
        plan = _with_codes_checked(plan, held, owner, wanted if owner is None else opened[-1].codes, request)
        models = TransplantModels(
            opened[: len(specs)], held[: len(specs)], [view.tensors for view in views],
            opened[-1] if owner is not None else None, target, request.config,
        )  # fmt: skip
        plan = _with_models_compared(plan, models, initial_files, request)
        if options.rules or any(source.operations for source in plan.sources):
            from ..model_folder.layers.row_order import with_row_order_said

            plan = with_row_order_said(plan, [one.operated.checkpoint for one in sources], models.config)
        if not request.by_place and (request.change is not None or target.vocabulary):
            from ..model_folder.recorded_tokens import with_recorded_tokens_said

            lists = models.folders, request.change, models.kept_folder
            plan = with_recorded_tokens_said(plan, models.opened, target, *lists)
    others = (*request.others, *(one.path for one in target.given))  # so that the output does not overwrite them
    return replace(plan, inputs=PlanInputs(tuple(held), target, others, PlanningInputs(views, target, options)))


def _heads_notes(heads: str, sources: Sequence[KnownSource]) -> list[str]:
    """Return a note if ``--heads`` is given but no source is converted by operations, which may use these numbers."""
    unused = heads and not any(one.recognised.operations for one in sources)
    return ["--heads has no effect: no source needs a conversion that uses the numbers of heads"] if unused else []


def _open(specs: Sequence[SourceSpec], target: TargetSpec, root: str | None, *, into: list[Checkpoint]) -> None:
    """Open the sources, and append them to ``into`` one by one: if one cannot be opened, the others can be closed."""
    for place, spec in enumerate(specs, 1):
        called = f"source {place}" if len(specs) > 1 else "source"
        given = cast("CheckpointLike", spec.given) if spec.given is not None else spec.uri
        raw = open_checkpoint(given, root, unwrap=False, called=called)
        into.append(raw.unwrapped(destination=list(target.tensors)))


def _layout(options: Options, request: TransplantRequest) -> str:
    """Return the layout to which the sources are converted; by default, rules or operations keep their layout."""
    is_ruled = bool(request.rows or options.rules or options.rulesets)
    return request.layout or (KEEP if is_ruled else AUTO)


def _further(
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


def _with_codes_checked(
    plan: Plan, held: Sequence[Checkpoint], owner: int | None, wanted: QuantisedTensors, request: TransplantRequest
) -> Plan:
    """Return the plan with notes on codes, and with the settings of the quantised tensors in its output.

    ``held`` are the sources of the plan; the destination is the one with the index ``owner``, and ``wanted`` are its
    quantised tensors. Raises PlanError if codes do not fit the destination or their settings.
    """
    codes = [one.codes_before_operations for one in held]
    if wanted or any(codes):
        check_codes(plan, codes, wanted)
    if any(one.dtype in INTEGERS for step in plan.steps for one in step.inputs):
        plan = with_possible_codes_said(plan, [one.codes for one in held])
    if not any(one.codes for one in held):
        return plan
    from ..model_folder.codes.output_settings import check_settings, unsettled_notes, with_settings

    quantised_by = request.config.get("quantization_config")
    check_settings(plan, held, owner, quantised_by)
    plan = replace(plan, notes=(*plan.notes, *unsettled_notes(plan, held, owner, quantised_by)))
    return with_settings(plan, held, owner)


def _with_models_compared(
    plan: Plan, models: TransplantModels, initial: Sequence[Checkpoint], request: TransplantRequest
) -> Plan:
    """Return the plan with the files of its output, and with notes on contradictions between the models."""
    if not models.have_files:
        return with_layers_noted(plan, models, initial)
    from .model_files import with_files_compared, with_output_files  # they import checks of tokenisers

    plan = with_layers_noted(with_output_files(plan, models, request.change), models, initial)
    return with_files_compared(plan, models, request.change, by_place=request.by_place)


def _views(sources: Sequence[KnownSource], specs: Sequence[SourceSpec]) -> list[SourceView]:
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


def _recorded_specs(specs: Sequence[SourceSpec]) -> dict[str, Any]:
    """Return ``src_key``, ``dst_key`` and ``exclude_keys`` of each source, for the recipe; {} if no source has any."""
    if not any(spec.src or spec.dst or spec.exclude for spec in specs):
        return {}
    rows = [{"src_key": spec.src, "dst_key": spec.dst, "exclude_keys": list(spec.exclude)} for spec in specs]
    return {"specs": rows}


def _metadata(checkpoints: Sequence[Checkpoint], destinations: Sequence[Checkpoint]) -> dict[str, str]:
    """Return the metadata of the sources; the output is a file of MLX if the destination is one."""
    merged: dict[str, str] = {}
    for checkpoint in checkpoints:
        merged.update(checkpoint.metadata)
    merged.pop(FORMAT, None)
    return {**merged, FORMAT: MLX} if any(is_of_mlx(one.metadata) for one in destinations) else merged
