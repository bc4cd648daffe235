"""Copies the configuration and tokeniser files of a source to an output folder, changed as the weights are changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ...destinations.hf.files import ADAPTER, ADAPTER_WEIGHTS, CONFIG
from ...destinations.hf.tokens import renumbered, renumbered_generation, renumbering_of, tokenizer_of, with_tokenizer_of
from ...errors import CheckpointError
from ...planning.keys.wrappers import without_wrappers
from ...planning.merge.layers import layer_lists
from ...planning.plan.plan import Plan
from ...planning.plan.step import Step
from ...planning.target import Companion, TargetSpec
from ...tensors.dtypes import DTYPES
from ...tensors.info import TensorInfo
from ...tensors.quantised.settings import quantisation_of
from ...util.text import count, escape, listing, reasons
from ...vocabulary.renumbering import Renumbering
from ...vocabulary.vocabulary import Vocabulary
from ..inputs.inputs import plan_target
from .checks import folder_notes
from .config import layer_counts, with_dtype
from .config_fields import renamed_settings
from .documents import json_text
from .folder import ModelFolder
from .generation.alignment import with_heads_left
from .layers.renumbered import kinds_stated, not_by_layer, with_layers

if TYPE_CHECKING:
    from ...vocabulary.replacement import NewVocabulary

__all__ = ["edited_folder", "kept_folder", "with_config", "with_files", "with_folder_refused", "with_new_ids"]

QUANTISED_BY = ("quantize_config.json", "quant_config.json")
"""Files with the quantisation settings of AutoGPTQ and AutoAWQ."""
FACTOR = ".lora_"
"""The text after the name of a module in the keys of an adapter."""
FEWER_MODULES = "adapter_config.json is unchanged: PEFT does not change the modules whose factors are left out"
MOST_FAULTS = 8
"""The largest number of faults that the reason for a refusal shows."""
PARTS = "{part}choose a token list that has this token"
"""Hint of the error for a configuration with the id of a token that the new vocabulary lacks.

``{part}`` is replaced by a text on ``--token-map``, or by ''.
"""


def with_new_ids(
    config: Mapping[str, Any], files: Sequence[Companion], numbers: Renumbering, new: str, remedy: str
) -> tuple[Mapping[str, Any], tuple[Companion, ...], list[str]]:
    """Return a configuration and further files in which token ids are replaced by new ids, and notes on changes.

    ``numbers`` has the new id of each token. ``new`` is the path of the new vocabulary, for messages. If it lacks the
    token of an id, ConfigError is raised with the hint ``remedy``.
    """
    moved, notes = renumbered(CONFIG, config, numbers, new, remedy=remedy)
    files, more = renumbered_generation(files, numbers, new, {}, remedy=remedy)
    return moved.applied(config), files, [*notes, *more]


def edited_folder(
    plan: Plan,
    folder: ModelFolder,
    tensors: Mapping[str, TensorInfo],
    ties: Mapping[str, str],
    *,
    is_described: bool = False,
    is_renamed: bool = False,
) -> Plan:
    """Return the plan of an edit whose output, if it is a folder, gets the files of the source's folder.

    ``tensors`` are the source's tensors; ``ties`` maps each tied key of the source to the key that it is tied to. The
    configuration is copied if it can describe the output. Its dtype is then set to the dtype of the weights, and its
    number of layers is reduced if the last layers are left out. If keys are renamed or other tensors are left out, the
    configuration is not copied, and the plan gets a note. But it is copied if a renaming only removes wrappers of
    training, such as ``module.``. ``is_described`` is true if the configuration already describes the tensors that
    operations made, and ``is_renamed`` if it also describes the new keys.
    """
    if not folder.files:
        return with_files(plan, (), folder.notes) if folder.notes else plan
    taken = _taken(plan, ties)
    left = [key for key in tensors if key not in taken]
    is_plain = not quantisation_of(folder.config)
    renamed = [
        step
        for step in plan.steps
        if (not is_renamed and step.key not in (step.source_key, without_wrappers(step.source_key)))
        or (not is_described and _is_operated(step, is_plain=is_plain))
    ]
    if not left and not renamed:
        return _recast(plan, folder, None, ())
    if not renamed and _can_lack(folder, left, plan):
        return _recast(plan, folder, None, [FEWER_MODULES])
    config, notes, faults = _fewer_layers(folder, list(tensors), left) if not renamed else (None, [], [])
    plan = with_folder_refused(plan, faults)
    if config is not None:
        kept, more = with_heads_left(folder.files, folder, config)
        return _recast(plan, folder, config, [*notes, *more], kept)
    settings = [one.name for one in folder.files if one.name in (CONFIG, ADAPTER)]
    files = [_with_new_names(plan, one, folder) for one in folder.files if one.name not in settings]
    why = "; ".join([_why(renamed, left), *notes])
    reasons = [f"{listing(settings)} is not copied into an output folder: {why}"] if settings else []
    return with_files(plan, files, [*reasons, *folder.notes], folder)


def _can_lack(folder: ModelFolder, left: Sequence[str], plan: Plan) -> bool:
    """Return whether PEFT loads an adapter without the tensors ``left``, and does not change their modules.

    PEFT initialises the missing factors; with most initialisations, their product is 0.
    """
    settings = folder.adapter
    if not _is_adapter(folder.files) or settings.get("peft_type") != "LORA":
        return False
    if settings.get("init_lora_weights", True) not in (True, "gaussian"):
        return False
    if not all(FACTOR in key for key in left):  # whole modules and biases are not initialised in this way
        return False
    kept = {step.key.partition(FACTOR)[0] for step in plan.steps if FACTOR in step.key}
    return bool(kept) and kept.isdisjoint(key.partition(FACTOR)[0] for key in left)


def _is_operated(step: Step, *, is_plain: bool) -> bool:
    """Return whether a step uses an operation whose result the folder's configuration does not describe.

    ``is_plain`` is true if the configuration has no quantisation settings. Such a configuration describes dequantised
    weights, so dequantising does not count.
    """
    return bool(step.operation) and not (is_plain and step.operation.startswith("dequantize "))


def _with_new_names(plan: Plan, file: Companion, folder: ModelFolder) -> Companion:
    """Return a file of the source's folder. If it has quantisation settings, modules in them get their new names."""
    settings: Mapping[str, Any] = {}
    with suppress(CheckpointError):  # an unreadable file is reported when it is copied
        settings = folder.document(file.name) if file.name in QUANTISED_BY else {}
    renamed = renamed_settings(plan, 0, settings)
    return file if renamed == settings else Companion(file.name, text=json_text(renamed))


def _taken(plan: Plan, ties: Mapping[str, str]) -> set[str]:
    """Return the keys of the source's tensors that the output has, including all keys tied to such a tensor."""
    keys = {step.source_key for step in plan.steps}
    owners = {ties.get(key, key) for key in keys}
    return {*keys, *owners, *(key for key, owner in ties.items() if owner in owners)}


def _why(renamed: Sequence[Step], left: Sequence[str]) -> str:
    if not renamed:
        number = count(len(left), "tensor")
        return f"it describes {number} that {'is' if len(left) == 1 else 'are'} left out: {listing(left, 3)}"
    first = renamed[0]
    made = f"{escape(first.source_key)} is renamed to {escape(first.key)}"
    made = f"{escape(first.key)} is made by {first.operation}" if first.operation else made
    more = f", and {len(renamed) - 1} more" if len(renamed) > 1 else ""
    return f"it describes the old keys ({made}{more})"


def _fewer_layers(
    folder: ModelFolder, keys: Sequence[str], left: Sequence[str]
) -> tuple[dict[str, Any] | None, list[str], list[str]]:
    """Return (configuration with fewer layers, notes, faults), for an output without the last layers of the source.

    ``keys`` are the keys of the source, and ``left`` the keys that are left out. The configuration is None if other
    tensors are left out too, or if it cannot be changed; then a note says why. Each fault names layers whose kind (such
    as full or sliding attention) would change, because no field can state it.
    """
    config = folder.config
    lists = layer_lists(keys, layer_counts(config)) if config else []
    for one in lists:
        numbers = {found[0] for key in left if (found := one.split(key)) is not None}
        outside = any(one.split(key) is None for key in left)
        gone = sum((found := one.split(key)) is not None and found[0] in numbers for key in keys)
        kept = one.count - len(numbers)
        if not outside and gone == len(left) and kept and numbers == set(range(kept, one.count)):
            made = with_layers(config, one, [(config, number) for number in range(kept)])
            why = [*(f"its {reason.said}" for reason in not_by_layer(config, one, lists, kept)), *made.faults]
            if why:
                return None, [listing(why, 2, where="")], made.faults
            if made.is_counted:
                said = f"config.json now has {kept} of the {one.count} layers of {escape(one.prefix)}"
                return made.fields, [said, *kinds_stated(made)], []
    return None, [], []


def _recast(
    plan: Plan,
    folder: ModelFolder,
    config: Mapping[str, Any] | None,
    notes: Sequence[str],
    files: Sequence[Companion] | None = None,
) -> Plan:
    """Return a plan whose output gets the files of a folder; config.json gets the dtype of the weights.

    ``config`` and ``files``, if not None, are used instead of the folder's configuration and files.
    """
    files = folder.files if files is None else files
    cast = any(step.source_dtype != step.dtype and DTYPES[step.dtype].kind == "float" for step in plan.steps)
    if _is_adapter(folder.files) or (config is None and not (cast and folder.config)):
        return with_files(plan, files, [*notes, *folder.notes], folder)
    fields, note = with_dtype(folder.config if config is None else config, plan) if cast else (dict(config or {}), "")
    return with_files(plan, with_config(files, fields), [*notes, *([note] if note else []), *folder.notes], folder)


def _without_faulty(files: Sequence[Companion]) -> tuple[tuple[Companion, ...], list[str]]:
    """Return (``files`` without config.json, a note on it) if it cannot be read; otherwise (``files``, no note)."""
    fault = ModelFolder("", tuple(files)).fault
    if not fault:
        return tuple(files), []
    return tuple(one for one in files if one.name != CONFIG), [
        fault.reworded(f"{CONFIG} is not copied: {fault.rstrip('.')}")
    ]


def _is_adapter(files: Sequence[Companion]) -> bool:
    names = {one.name for one in files}
    return ADAPTER in names and CONFIG not in names


def kept_folder(plan: Plan, folder: ModelFolder, target: TargetSpec, change: NewVocabulary | None) -> Plan:
    """Return a plan of a transplant into a checkpoint; an output folder also gets the files in the checkpoint's folder.

    If the vocabulary changes (``change``), the output gets the new tokeniser, and token ids in the configuration are
    replaced by new ids. Raises ConfigError for an id whose token the new vocabulary lacks.
    """
    if not folder.files:
        files = _new_token_files(folder, change)
        return with_files(plan, files, folder.notes) if files or folder.notes else plan
    files, fields, notes = folder.files, dict(folder.config), list[str]()
    if change is not None:
        own = Vocabulary(folder.path, folder.tokens) if folder.vocabulary and folder.tokens else None
        files, notes = with_tokenizer_of(files, change.paths[1], change.new, own)
        numbers = renumbering_of(change, own, folder.rows, fields)
        if numbers is not None:
            moved, files, more = with_new_ids(fields, files, numbers, change.paths[1], PARTS)
            fields, notes = dict(moved), [*more, *notes]
    floats = [step for step in plan.steps if DTYPES[step.dtype].kind == "float"]
    if target.decoded or any(step.dtype != target.tensors[step.key].dtype for step in floats):
        fields, note = with_dtype(fields, plan)
        notes += [note] if note else []
    if folder.config and fields != folder.config:
        files = with_config(files, fields)
    return with_files(plan, files, [*notes, *folder.notes], folder)


def _new_token_files(folder: ModelFolder, change: NewVocabulary | None) -> tuple[Companion, ...]:
    """Return the files of the new tokeniser if the destination is a GGUF file and its tokens change; else ().

    If there is no tokeniser next to the new token list, the result is the token list alone.
    """
    if change is None or folder.embedded is None or folder.embedded.tokens == change.new.tokens:
        return ()
    from ...vocabulary.replacement import token_file

    name, text = token_file(change.new.tokens)
    return tuple(tokenizer_of(change.paths[1], change.new)) or (Companion(name, text=text),)


def with_config(files: Sequence[Companion], fields: Mapping[str, Any]) -> tuple[Companion, ...]:
    """Return ``files`` in which config.json is replaced by one with these fields."""
    return (Companion(CONFIG, text=json_text(fields)), *(one for one in files if one.name != CONFIG))


def with_folder_refused(plan: Plan, faults: Sequence[str]) -> Plan:
    """Return a plan that refuses to write a folder if there are ``faults``.

    Each fault names a property of the output's layers that no config.json can describe.
    """
    if not faults:
        return plan
    why = f"config.json cannot describe the layers of the output: {reasons(faults, MOST_FAULTS)}."
    return replace(plan, target=replace(plan.target, refused=why))


def with_files(plan: Plan, files: Sequence[Companion], notes: Sequence[str], origin: ModelFolder | None = None) -> Plan:
    """Return a plan whose output gets ``files`` in addition to its weights; ``notes`` are added to the plan's notes.

    Further notes are on files that contradict the weights. ``origin`` is the folder that the files come from. A
    configuration that cannot be read is not copied. The weights of an adapter get the file name that PEFT looks for.
    The kind, name and configuration of the plan's destination do not change.
    """
    files, faults = _without_faulty(files)
    weights = ADAPTER_WEIGHTS[0] if _is_adapter(files) else ""
    paths = tuple(one.name for one in plan.target.files)
    target = TargetSpec(plan.target.kind, plan.target.name, {}, companions=files, files=paths, lists=plan.target.lists)
    kept = plan.target
    made = replace(plan_target(target), config=kept.config, implied=kept.implied, weights=weights, refused=kept.refused)
    notes = [note for note in notes if note not in plan.notes]
    found = (*notes, *faults, *folder_notes(plan, ModelFolder("", files), origin))
    made = replace(made, notes=(*plan.target.notes, *found))
    return replace(plan, target=made, notes=tuple(dict.fromkeys((*plan.notes, *found))))
