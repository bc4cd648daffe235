"""``rename``, ``filter`` and ``convert``: plan an edited copy of one checkpoint, from its headers."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..checkpoint.checkpoint import Checkpoint
from ..checkpoint.find_state_dict import is_flat_average
from ..checkpoint.opening import open_checkpoint
from ..engine.inputs import PlanInputs
from ..errors import ConfigError
from ..planning.edit import plan_edit
from ..planning.encoding_checks import with_possible_codes_said
from ..planning.plan.plan import CarriedEntries, Plan
from ..planning.quantised import check_codes
from ..planning.transplant.options import Options
from ..util.text import count, grouped, listing
from .gguf.types import check_type, in_float32
from .inputs.argument_types import (
    CheckpointLike,
    Operations,
    Path,
    Patterns,
    Rules,
    checked,
    plain_arguments,
    rules_as_text,
)
from .inputs.encoding import DEQUANTIZE
from .inputs.inputs import extras_left, left_notes, names_of, plan_source, unwrap_notes, view_of
from .inputs.metadata import check_metadata, merged_metadata, removal_notes
from .inputs.operations import asked_conversions, operations_file, operations_of
from .inputs.recipe_files import rules_of
from .inputs.reopening import with_settings_pinned
from .layouts.named_layout import KEEP, check_layout
from .lora.adapter_files import adapter_of
from .model_folder.checks import converted_layer_notes, source_layer_notes, with_layers_said
from .model_folder.codes.output_settings import check_settings, with_settings
from .model_folder.config_fields import with_left_out_said
from .model_folder.folder import model_folder
from .model_folder.layers.row_order import with_row_order_said
from .model_folder.licences import with_licences
from .model_folder.output import edited_folder
from .model_folder.quantised import dtype_beside_codes, dtype_of_weights, parts_elsewhere
from .model_folder.weights.tied_heads import source_head_notes, with_lacking_head_said
from .quantising.check_scheme import check_scheme
from .source_changes import Changes, Quantisation, changed_source

if TYPE_CHECKING:
    import torch

__all__ = ["convert", "filter", "rename"]

NO_CHANGES = Changes()


@checked
def rename(
    source: CheckpointLike,
    *,
    map: Rules = (),
    map_file: Path | None = None,
    ruleset: Patterns = (),
    operations: Operations = (),
    layout: str | None = None,
    heads: str | None = None,
    unwrap: bool = False,
    keep_extras: bool = False,
    root: str | None = None,
    metadata: Mapping[str, str] | None = None,
) -> Plan:
    """Plan a checkpoint whose keys are renamed by rules FROM=TO: the first rule that matches a key renames it.

    ``map`` has the rules, and ``map_file`` is a file with further rules. ``ruleset`` are names of rulesets that ship
    with ckptsurgeon ("weight-norm"); their rules come after the rules in ``map``. ``operations`` (split, concat and
    others, see ``docs/howto/operations.md``) are plain data or a YAML file; they are done before the rules. Rules are
    matched with the keys as they are in the file, including wrappers such as ``module.``, unless ``unwrap`` is set.
    ``layout`` is the name of a library's layout ("openai", "meta"); it renames all tensors, so it cannot be used with
    rules. ``heads`` has the numbers of query and key heads ("32/8"), if no configuration next to the weights has them.
    ``keep_extras`` keeps entries that are not tensors, if they are plain data. ``metadata`` sets entries of the
    metadata, as in ``convert``. Raises ConfigError if no change is given, PatternError for a rule that matches nothing,
    PlanError if two keys get the same name or an operation does not fit, and the errors of ``open_checkpoint``.
    """
    if metadata:
        check_metadata(metadata)
    rules = [*rules_as_text(map), *(rules_of(map_file) if map_file is not None else ())]
    options = Options.of(rules=rules, rulesets=ruleset)
    rows = operations_of(operations)
    named, rulesets = asked_conversions(options.rulesets)
    if not rules and not unwrap and not options.rulesets and not rows and layout is None:
        raise ConfigError(
            "no rule given.",
            hint="Give a change with --map FROM=TO, --map-file, --ruleset, --operations, --layout or --unwrap.",
        )
    check_layout(layout, heads, is_ruled=bool(rules or rulesets))
    _check_heads(layout, heads)
    arguments = plain_arguments(
        map=rules, ruleset=options.rulesets, operations=rows,
        layout=layout, heads=heads,
        unwrap=unwrap, keep_extras=keep_extras, root=root, metadata=metadata or {},
    )  # fmt: skip
    others = [os.fspath(path) for path in (map_file, operations_file(operations)) if path is not None]
    options, rows = replace(options, rulesets=rulesets), [*rows, *named]
    return _edit(
        "rename",
        source,
        options,
        arguments,
        unwrap=unwrap,
        keep_extras=keep_extras,
        root=root,
        others=others,
        changes=Changes(rows, layout, heads or ""),
        metadata=metadata or {},
    )


@checked
def filter(
    source: CheckpointLike,
    *,
    include: Patterns = (),
    exclude: Patterns = (),
    unwrap: bool = False,
    keep_extras: bool = False,
    root: str | None = None,
    metadata: Mapping[str, str] | None = None,
) -> Plan:
    """Plan a checkpoint that has only the selected tensors of ``source``.

    ``include`` and ``exclude`` select the keys. ``root`` is the dotted path of the state dict (``model_ema``). Entries
    that are not tensors, such as an optimizer's state, are left out; ``keep_extras`` keeps those that are plain data.
    ``metadata`` sets entries of the metadata, as in ``convert``. Raises PatternError for a pattern that matches
    nothing, PlanError if no tensor is left, and the errors of ``open_checkpoint``.
    """
    if metadata:
        check_metadata(metadata)
    options = Options.of(include=include, exclude=exclude)
    arguments = plain_arguments(
        include=include, exclude=exclude, unwrap=unwrap, keep_extras=keep_extras, root=root, metadata=metadata or {}
    )
    return _edit(
        "filter", source, options, arguments, unwrap=unwrap, keep_extras=keep_extras, root=root,
        metadata=metadata or {},
    )  # fmt: skip


@checked
def convert(
    source: CheckpointLike,
    *,
    dtype: str | torch.dtype | None = None,
    dequantize: bool = False,
    layout: str | None = None,
    heads: str | None = None,
    gguf_type: str | None = None,
    quantize: str | None = None,
    include: Patterns = (),
    exclude: Patterns = (),
    metadata: Mapping[str, str] | None = None,
    unwrap: bool = False,
    keep_extras: bool = False,
    root: str | None = None,
) -> Plan:
    """Plan the same checkpoint in another format, sharding or ``dtype`` (of all real floating tensors).

    The output that is passed to ``apply`` decides the format. ``dequantize`` replaces quantised tensors by their
    decoded weights, in ``dtype``; by default in the dtype of config.json or, without one, in bfloat16. ``quantize``
    ("fp8-block") quantises the weights of linear layers, except output layers and routers of experts; ``include`` and
    ``exclude`` restrict it to some of these weights. ``layout`` gives the tensors the names, shapes and metadata that
    another program expects: "gguf" converts a model of transformers for llama.cpp, "transformers" converts it back. The
    other layouts, and ``heads``, are as in ``rename``. ``gguf_type`` ("q8_0", "q4_k", "q4_k_m") quantises matrices to a
    type, or a mixture of types, that only GGUF stores. ``metadata`` sets entries of the metadata of safetensors or
    GGUF; an empty value removes the entry.

    Raises PlanError for a cast that would lose values, a quantised tensor that cannot be decoded, a matrix that cannot
    be quantised, or tensors that cannot get the layout; ConfigError for the name of an unknown layout, type or scheme;
    and the errors of ``open_checkpoint``.
    """
    if metadata:
        check_metadata(metadata)
    check_layout(layout, heads)
    _check_heads(layout, heads)
    check_type(gguf_type)
    wanted = str(dtype) if dtype is not None else None
    among = _texts(include), _texts(exclude)
    check_scheme(quantize, *among, others=_others(layout, gguf_type))
    arguments = plain_arguments(
        dtype=wanted,
        dequantize=dequantize,
        layout=layout,
        heads=heads,
        **({"gguf_type": gguf_type} if gguf_type is not None else {}),
        quantize=quantize,
        include=among[0],
        exclude=among[1],
        metadata=metadata or {},
        unwrap=unwrap,
        keep_extras=keep_extras,
        root=root,
    )
    options = Options.of(dtype=wanted)
    return _edit(
        "convert",
        source,
        options,
        arguments,
        unwrap=unwrap,
        keep_extras=keep_extras,
        root=root,
        metadata=metadata or {},
        changes=Changes(
            [DEQUANTIZE] if dequantize else (),
            layout,
            heads or "",
            gguf_type,
            Quantisation(quantize, *among) if quantize is not None else None,
        ),
    )


def _edit(
    verb: str,
    source: CheckpointLike,
    options: Options,
    arguments: Mapping[str, Any],
    *,
    unwrap: bool,
    keep_extras: bool,
    root: str | None,
    metadata: Mapping[str, str] | None = None,
    others: Sequence[str] = (),
    changes: Changes = NO_CHANGES,
) -> Plan:
    """Open the source and return the plan of ``verb``; the plan keeps the source open until ``apply``.

    ``options``, ``changes`` and ``metadata`` describe the edit. ``arguments`` are the arguments of ``verb`` for the
    recipe. ``others`` are paths of further files that were read, which the output must not overwrite.
    """
    checkpoint = open_checkpoint(source, root, unwrap=unwrap)
    try:
        own, ties = model_folder(checkpoint), checkpoint.ties
        carried, among, notes = _carried(checkpoint, keep_extras)
        notes += (*parts_elsewhere(checkpoint), *unwrap_notes([checkpoint], asked=unwrap), *adapter_of(checkpoint)[1])
        if checkpoint.header.stored:
            from .gguf.outputs import source_notes

            notes += source_notes(checkpoint)
        if any(key.endswith(".block_count") for key in checkpoint.metadata):
            from .model_folder.recorded_settings import recorded_setting_notes

            notes += recorded_setting_notes(checkpoint.metadata, own.config)
        layers, headless = source_layer_notes(checkpoint, own), source_head_notes(checkpoint, own)
        default = dtype_beside_codes(checkpoint)
        changed = changed_source(checkpoint, own, options, changes)
        if changed.checkpoint.codes:  # scales are only copied here; verbs that decode them examine all of them
            from .inputs.sampled_scales import sampled_scale_notes

            notes += sampled_scale_notes(checkpoint)
        checkpoint, folder = changed.checkpoint, changed.folder
        planned = plan_source(names_of([checkpoint.path])[0], checkpoint, operations=changed.operated.derived.rows)
        plan = plan_edit(
            verb,
            replace(view_of(planned, checkpoint), made=changed.operated.derived.by),
            changed.options,
            carried=carried,
            among=among,
            arguments=arguments,
            metadata=merged_metadata(changed.metadata, metadata) if metadata else changed.metadata,
            notes=[*changed.notes, *notes, *removal_notes(changed.metadata, metadata or {})],
            decoded_dtype=dtype_of_weights(folder.config, default),
        )
        plan = _with_flat_averages_said(plan)
        plan = with_row_order_said(plan, [checkpoint], {}) if verb == "rename" else plan
        plan = in_float32(plan) if changed.is_gguf else plan
        check_codes(plan, [checkpoint.codes_before_operations])
        plan = with_possible_codes_said(plan, [checkpoint.codes])
        check_settings(plan, [checkpoint])
        plan = with_left_out_said(with_settings(plan, [checkpoint]), checkpoint)
        plan = edited_folder(
            plan, folder, changed.described, ties,
            is_described=changed.is_described or changes.quantise is not None, is_renamed=changed.is_described,
        )  # fmt: skip
        plan = with_licences(plan, [own])
        if (changes.layout or "").startswith("transformers"):
            layers = list(dict.fromkeys((*layers, *converted_layer_notes(plan, folder.config))))
        plan = with_lacking_head_said(with_layers_said(plan, layers, checkpoint.path, folder.config), headless)
        plan = with_settings_pinned(plan, folder)
    except BaseException:
        checkpoint.close()
        raise
    return replace(plan, inputs=PlanInputs((checkpoint,), None, tuple(others)))


def _with_flat_averages_said(plan: Plan) -> Plan:
    """Return the plan with a note if its output has averages of Stable Diffusion's U-Net, but not the U-Net."""
    keys = [step.key for step in plan.steps]
    flat = [key for key in keys if is_flat_average(key)]
    if not flat or any(key.startswith("model.diffusion_model.") for key in keys):
        return plan
    note = (
        f"{count(len(flat), 'average')} of weights without the dots of the weights' names, so that they fit no model: "
        f"ckpt convert --layout diffusers-ema of the whole file gives them these names: {listing(flat, 3)}"
    )
    return replace(plan, notes=(*plan.notes, note))


def _check_heads(layout: str | None, heads: str | None) -> None:
    """Raise ConfigError if ``--heads`` is given without a layout to which it could matter."""
    if heads is not None and layout in (None, KEEP):
        if layout is None:
            raise ConfigError("--heads has no effect without --layout.", hint="Leave it out, or add --layout.")
        raise ConfigError(f"--heads has no effect with --layout {KEEP}.", hint="Leave one of the two out.")


def _others(layout: str | None, gguf_type: str | None) -> list[str]:
    """Return those of the options ``--layout`` and ``--gguf-type`` that the user gave: ``quantize`` allows neither."""
    return [*(["--layout"] if layout not in (None, "keep") else []), *(["--gguf-type"] if gguf_type else [])]


def _texts(patterns: Patterns) -> list[str]:
    return [patterns] if isinstance(patterns, str) else list(patterns or ())


def _carried(checkpoint: Checkpoint, keep: bool) -> tuple[CarriedEntries, list[str], list[str]]:
    """Return (entries to copy to the output besides the tensors, keys of those beside the tensors, notes).

    The entries are those in the file that are not tensors, such as the epoch; none without ``keep``. The keys are those
    of copied entries that are in the same dict as the tensors. The notes list the entries that are not copied.
    """
    if not keep:
        return CarriedEntries(), [], left_notes(extras_left(checkpoint), [checkpoint])
    entries = checkpoint.to_carry()
    rest = [(entry.name, entry.why) for entry in entries if entry.why]
    notes = [f"not copied to the output: {grouped(rest, where='')}"] if rest else []
    path = checkpoint.root_names
    if not entries or path is None:
        return CarriedEntries(), [], notes
    kept = [entry for entry in entries if not entry.why]
    among = [entry.key for entry in kept if entry.place == path]
    return CarriedEntries(checkpoint.root, tuple(entry.name for entry in kept)), among, notes
