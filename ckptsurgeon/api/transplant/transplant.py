"""``transplant``: makes a plan from sources, a destination and rules; the sources stay open."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from ...checkpoint.checkpoint import Checkpoint
from ...checkpoint.opening import is_live
from ...destinations._load import target_with
from ...engine.inputs import PlanInputs
from ...errors import PatternError, PlanError
from ...planning.plan.plan import Plan
from ...planning.plan.rows import OMP
from ...planning.quantised_error import SettingsError, UndecodableWeightError
from ...planning.target import TargetSpec
from ...planning.transplant.by_place import PLACE
from ...planning.transplant.options import Options
from ...planning.transplant.transplant import PlanningInputs, plan_transplant
from ...storage.read.spec import SourceSpec
from ...tensors.find_codes import find_codes
from ..inputs.argument_types import (
    CheckpointLike,
    Mismatch,
    Operations,
    Path,
    Patterns,
    Rules,
    Sources,
    Vocabularies,
    check_seed,
    checked,
    plain_arguments,
    rules_as_text,
)
from ..inputs.encoding import ENCODINGS, check_encoding, with_decoding
from ..inputs.inputs import KeptOpen, check_decodable, plan_target, specs_of
from ..inputs.metadata import check_metadata, with_metadata
from ..inputs.older_names import older_name_notes, older_names_said
from ..inputs.operations import asked_conversions, operations_of
from ..inputs.recipe_files import rules_of
from ..layouts.named_layout import AUTO, KEEP, check_layout
from .donor.choice import donor_choice
from .models import (
    TransplantModels,
    first_notes,
    further_sources,
    metadata_of,
    open_sources,
    recorded_specs,
    views_of,
    with_codes_checked,
    with_layers_noted,
)
from .recognition import check_converted, recognised
from .vocabulary import new_vocabulary, vocabulary_files, vocabulary_options

if TYPE_CHECKING:
    import torch

    from ...vocabulary.replacement import NewVocabulary

__all__ = ["TransplantRequest", "plan_into", "transplant"]


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


@checked
def transplant(
    source: Sources,
    destination: CheckpointLike,
    *,
    include: Patterns = (),
    exclude: Patterns = (),
    map: Rules = (),
    map_file: Path | None = None,
    ruleset: Patterns = (),
    operations: Operations = (),
    layout: str | None = None,
    heads: str | None = None,
    vocab: Vocabularies = None,
    vocab_keys: Patterns = (),
    new_tokens: str = "init",
    token_map: Rules = (),
    donor: Path | None = None,
    omp_k: int | None = None,
    on_mismatch: Mismatch = (),
    on_missing: str = "init",
    reinit: Patterns = (),
    drop_last: int = 0,
    require: Patterns = (),
    strict: bool = False,
    encoding: str = "keep",
    dtype: str | torch.dtype | None = None,
    seed: int = 0,
    root: str | None = None,
    task: str | None = None,
    constructor_weights: bool = True,
    metadata: Mapping[str, str] | None = None,
) -> Plan:
    """Plan the transplant of one or more sources into a destination; only headers and some values are read.

    If several sources have a tensor, the last of them is used. A source may have ESPnet's form
    ``file:src_key:dst_key:exclude_keys``. ``destination`` is a configuration, a checkpoint or a dict of tensors.

    Rules: ``include`` and ``exclude`` select keys of the sources. ``map`` has rules FROM=TO, or is a map from FROM to
    TO; ``map_file`` is a file with further rules; ``ruleset`` are names of rulesets that ship with ckptsurgeon.
    ``operations`` (split, concat and others, as plain data or as a YAML file) change the sources' tensors before keys
    are selected. ``layout`` is the layout to which the sources are converted. The default is the destination's layout,
    if no rules and operations are given, and source and destination are networks of the same known family. "keep"
    leaves the layout as it is. ``heads`` are the numbers of query and key heads ("32/8"), if no configuration has them.

    Vocabularies: ``vocab`` has the token lists of source and destination, as "SRC:DST" or a pair; tokens in both lists
    keep their rows. ``new_tokens`` says how the rows of all other tokens are made (init, mean, zero, subword, omp).
    ``token_map`` maps tokens of the source to tokens of the destination. With omp, each new row is a weighted sum of at
    most ``omp_k`` (64) rows of tokens that the source and ``donor`` share. The weights are chosen so that the same sum
    of the donor's rows approximates the donor's row of the new token. ``donor`` is the folder of a model that has the
    new tokens, by default that in the folder of the destination's token list. ``vocab_keys`` lists the tensors with a
    row for each token (GLOB or GLOB=AXIS), if the destination does not know them. If ``vocab`` is "place", row n is
    copied to row n even if the tokenisers differ.

    Shapes and keys that do not fit: ``on_mismatch`` is a policy for tensors whose shapes differ (init, slice, pad,
    overlap, interpolate, positions-1d, positions-2d, patch, channels, center), or a map from pattern to policy.
    ``on_missing``, for tensors that are in no source, is "init" or "error". Tensors that match ``reinit`` are always
    initialised; tensors that match ``require`` must come from a source. ``drop_last`` is the number of last layers of
    the destination that are initialised even if a source has them. With ``strict``, missing and unused keys are errors.

    Other options: if ``encoding`` is "dequantize", quantised sources and a quantised destination are decoded. ``dtype``
    is "keep" (the source's dtypes) or the dtype for all floating tensors. ``seed`` is the seed for initialised tensors.
    ``root`` is the dotted path of the state dict in the sources. ``task`` is the ESPnet task, if an ESPnet
    configuration fits several tasks. If ``constructor_weights`` is False, weights that the destination's constructor
    would load from files are not used. ``metadata`` sets entries of the metadata, as in ``convert``.

    Raises PatternError, ConfigError, SourceError, FormatError, or PlanError if the plan is impossible.
    """
    if metadata:
        check_metadata(metadata)
    map = [*rules_as_text(map), *(rules_of(map_file) if map_file is not None else ())]
    if encoding != ENCODINGS[0]:
        check_encoding(encoding)
    if layout is not None or heads is not None:
        check_layout(layout, heads, is_ruled=bool(map or ruleset))
    check_seed(seed)
    dtype = str(dtype) if dtype is not None else None
    lists = vocabulary_files(vocab) if vocab not in (None, PLACE) else ()
    change = new_vocabulary(lists, token_map) if lists else None
    target = target_with(destination, change, task, constructor_weights=constructor_weights)
    options = Options.of(
        include=include, exclude=exclude, rules=map, rulesets=ruleset, on_mismatch=on_mismatch, reinit=reinit,
        drop_last=drop_last, require=require, on_missing=on_missing, strict=strict, dtype=dtype,
    )  # fmt: skip
    rows = operations_of(operations) if operations not in (None, ()) else []
    named, rulesets = asked_conversions(options.rulesets) if options.rulesets else ([], ())
    specs = specs_of(source)
    models = ([one.uri for one in specs], os.fspath(destination) if isinstance(destination, str | os.PathLike) else "")
    vocabulary, chosen = None, None
    if lists or vocab_keys or token_map or new_tokens != "init":
        vocabulary = vocabulary_options(
            change, keys=vocab_keys, new=new_tokens, spelled=token_map, models=models, by_place=vocab == PLACE
        )
    if new_tokens == OMP or donor or omp_k is not None:
        chosen = donor_choice(new_tokens, lists[1] if lists else "", os.fspath(donor or ""), omp_k)
    asked, options = options.rulesets, replace(options, vocabulary=vocabulary, rulesets=rulesets)
    arguments = plain_arguments(
        include=include, exclude=exclude, map=map, ruleset=asked, operations=rows,
        vocab=PLACE if vocab == PLACE else [os.path.basename(path) for path in lists],
        vocab_keys=vocab_keys, new_tokens=new_tokens, token_map=rules_as_text(token_map),
        donor=os.path.basename(os.fspath(donor or "").rstrip("/")), omp_k=omp_k, on_mismatch=on_mismatch,
        on_missing=on_missing, reinit=reinit, drop_last=drop_last, require=require, strict=strict, dtype=dtype,
        root=root, task=task,
        no_constructor_weights=not constructor_weights, encoding=encoding, layout=layout, heads=heads,
    )  # fmt: skip
    read = (map_file, operations if isinstance(operations, str | os.PathLike) else None, *lists)
    others = tuple(os.fspath(path) for path in read if path is not None)
    request = TransplantRequest(
        seed=seed, arguments=arguments, root=root, others=others, rows=[*rows, *named], change=change,
        by_place=vocab == PLACE, encoding=encoding, layout=layout, heads=heads or "",
    )  # fmt: skip
    given = () if is_live(destination) else (*(one.given for one in specs if is_live(one.given)), destination)
    has_live = any(is_live(one) for one in given)  # ``map`` is an argument here
    with older_names_said(given, root) if has_live else nullcontext():
        plan = plan_into(specs, target, options, request)
    if has_live and plan.counts.get("copied", 0) < len(plan.steps):
        plan = replace(plan, notes=(*plan.notes, *older_name_notes(given, root)))
    if chosen is not None and change is not None:
        from .donor.rows import network_of, with_donor  # most transplants have no donor

        plan = with_donor(plan, chosen, change.new.tokens, network_of(target))
    return with_metadata(plan, metadata) if metadata else plan


def plan_into(specs: Sequence[SourceSpec], target: TargetSpec, options: Options, request: TransplantRequest) -> Plan:
    """Open the sources of a transplant and return its plan, which keeps the sources open for ``apply``.

    If the encoding is "dequantize", quantised sources and destinations are decoded. If it is "keep", codes are copied.
    If codes cannot be copied and the destination is a quantised checkpoint, the transplant is planned with decoded
    weights, and the results are encoded like the destination.
    """
    keeps = request.encoding == ENCODINGS[0]
    try:
        read = target if keeps else _decoded(target, ENCODINGS[1])
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


def _decoded(target: TargetSpec, encoding: str) -> TargetSpec:
    from .destination_files import decoded_target  # few destinations are quantised

    return decoded_target(target, encoding)


def _tried(target: TargetSpec) -> TargetSpec:
    """Return the destination with decoded tensors; if it cannot be decoded, return ``target`` unchanged."""
    with suppress(PlanError):
        return _decoded(target, ENCODINGS[0])
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
        open_sources(specs, target, request.root, into=opened)
        if reading != request.encoding:
            _check_decodable(opened)
        rows = with_decoding(request.rows, opened) if reading != ENCODINGS[0] else request.rows
        sources = recognised(opened, rows, specs, target, _layout(options, request), request.heads)
        views = views_of(sources, specs)
        keeper, initial = further_sources([view.source.name for view in views], target, opened, initial_files, reading)
        owner = len(specs) if len(opened) > len(specs) else None
        wanted = opened[-1].codes if owner is not None else find_codes(target.tensors)
        plan = plan_transplant(
            views, target, options, planned=plan_target(target), keeper=keeper, initial=initial, wanted=wanted,
            seed=request.seed, arguments={**request.arguments, **recorded_specs(specs)},
            metadata=metadata_of([one.operated.checkpoint for one in sources], opened[len(specs) :]),
            notes=first_notes(specs, sources, target, opened, encoding=request.encoding, heads=request.heads),
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
        plan = with_codes_checked(plan, held, owner, wanted if owner is None else opened[-1].codes, request.config)
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
        if request.change is not None and plan.rows is not None:
            from ...vocabulary.special_tokens import special_tokens_note

            plan = replace(plan, notes=(*plan.notes, *special_tokens_note(plan.rows, request.change)))
    others = (*request.others, *(one.path for one in target.given))  # so that the output does not overwrite them
    return replace(plan, inputs=PlanInputs(tuple(held), target, others, PlanningInputs(views, target, options)))


def _layout(options: Options, request: TransplantRequest) -> str:
    """Return the layout to which the sources are converted; by default, rules or operations keep their layout."""
    is_ruled = bool(request.rows or options.rules or options.rulesets)
    return request.layout or (KEEP if is_ruled else AUTO)


def _with_models_compared(
    plan: Plan, models: TransplantModels, initial: Sequence[Checkpoint], request: TransplantRequest
) -> Plan:
    """Return the plan with the files of its output, and with notes on contradictions between the models."""
    if not models.have_files:
        return with_layers_noted(plan, models, initial)
    from .model_files import with_files_compared, with_output_files  # they import checks of tokenisers

    plan = with_layers_noted(with_output_files(plan, models, request.change), models, initial)
    return with_files_compared(plan, models, request.change, by_place=request.by_place)
