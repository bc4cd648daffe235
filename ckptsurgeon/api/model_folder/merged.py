"""Chooses the configuration and tokeniser files of an output made from several models: a merge, or adapters."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ...destinations.hf.files import GENERATION
from ...planning.merge.tied_tensors import has_own_head
from ...planning.plan.plan import Plan
from ...planning.plan.step import Step
from ...planning.target import Companion
from ...planning.transplant.by_place import is_of_tokens, vocabulary_keys
from ...tensors.info import TensorInfo
from ...util.text import escape, listing
from ...vocabulary.renumbered_ids import new_names
from ...vocabulary.renumbering import Renumbering
from ..lora.settings import other_settings
from ..merge.vocabulary import ModelTokens, config_for, token_files
from .config import with_dtype
from .documents import json_text
from .folder import ModelFolder
from .licences import with_licences
from .output import with_config, with_files, with_new_ids
from .tokenizer.tokenizer_files import object_in
from .weights.tied_heads import has_new_head, mixed_head_notes

__all__ = ["lora_folder", "merged_folder"]

UNITED = "choose a vocabulary that has this token, for example --vocab union"
"""Hint of the error for a configuration with the id of a token that the merged vocabulary lacks."""
OF_ADAPTER = (
    "put a tokeniser that has this token into the adapter's folder; or use --vocab place, which does not change ids"
)
"""Hint of the error for a configuration with the id of a token that the adapter's new vocabulary lacks."""

OWN_HEAD = "the output layer has its own weights, so config.json gets tie_word_embeddings: false"


def merged_folder(
    plan: Plan,
    donor: ModelFolder,
    models: Sequence[ModelFolder],
    *,
    config: Mapping[str, Any] | None = None,
    files: Sequence[Companion] | None = None,
    tokens: ModelTokens | None = None,
) -> Plan:
    """Return a plan whose output, if it is a folder, gets the configuration and the tokeniser files of ``donor``.

    ``models`` are the folders of the merged models. ``config`` and ``files``, if given, are used instead of the
    donor's. The configuration gets the dtype of the weights, and does not tie an output layer that one of the
    ``models`` stores separately from its embedding. If ``tokens`` is given, the output has this new vocabulary: its
    files are added, and the vocabulary size and the token ids in the configuration are changed to fit it.
    """
    notes = list(mixed_head_notes(plan, models))
    config = donor.config if config is None else config
    files = donor.files if files is None else files
    if tokens is not None:
        files, made = token_files(tokens, files, models, models.index(donor))
        config, more = config_for(config, tokens.size)
        numbers = Renumbering.of(tokens.lists[models.index(donor)].tokens, tokens.output.tokens)
        config, files, moved = with_new_ids(config, files, numbers, "the output's vocabulary", UNITED)
        files, named = _with_names(files, models, tokens)
        notes = [*notes, *made, *more, *moved, *named]
        plan = replace(plan, notes=(*plan.notes, *tokens.notes))
    notes += donor.notes
    if not donor.config:
        plan = replace(plan, notes=(*plan.notes, *other_settings(donor, models)))
        plan = with_files(plan, files, notes, donor) if files or notes else plan
        return with_licences(plan, [donor, *models])
    fields, note = with_dtype(config, plan)
    notes += [note] if note else []
    if donor.is_tied and has_own_head(plan.steps, all(one.is_tied for one in models)):
        fields["tie_word_embeddings"] = False
        notes.append(OWN_HEAD)
    return with_licences(with_files(plan, with_config(files, fields), notes, donor), [donor, *models])


def _with_names(
    files: Sequence[Companion], models: Sequence[ModelFolder], tokens: ModelTokens
) -> tuple[tuple[Companion, ...], list[str]]:
    """Return (files, notes) after the languages and tasks of the other models are added to generation_config.json.

    ``files`` are the files of the output, whose vocabulary is in ``tokens``. A map (such as ``lang_to_id``) that the
    output's file lacks is not added, because it needs other settings, such as ``is_multilingual``.
    """
    own = next((one for one in files if one.name == GENERATION and one.text), None)
    if own is None:
        return tuple(files), []
    fields, places = json.loads(own.text), {token: place for place, token in enumerate(tokens.output.tokens)}
    notes = []
    for folder, known in zip(models, tokens.lists, strict=True):
        found = new_names(fields, object_in(folder, GENERATION), known.tokens, places)
        for field, ids in found.items():
            said, of = listing([f"{name} = {one}" for name, one in ids.items()], where=""), escape(known.name)
            if fields.get(field) is None:
                notes.append(f"the output's {GENERATION} has no {field}, but the file of {of} has it: {said}")
                continue
            fields[field] = {**fields[field], **ids}
            notes.append(f"{field} of {GENERATION} also gets the names that only {of} has: {said}")
    made = Companion(GENERATION, text=json_text(fields))
    return tuple(made if one is own else one for one in files), notes


def lora_folder(
    plan: Plan,
    base: ModelFolder,
    tensors: Mapping[str, TensorInfo],
    adapters: Sequence[ModelFolder],
    *,
    by_place: bool = False,
) -> Plan:
    """Return the plan of a base with adapters, whose output, if it is a folder, gets the files of the base's folder.

    ``tensors`` are the base's tensors. If an adapter replaces the embedding by one for another vocabulary, the output
    gets the adapter's tokeniser and vocabulary size. Token ids in the configuration are replaced by the new ids, unless
    rows are copied by position (``by_place``). Raises ConfigError for an id whose token the new vocabulary lacks.
    """
    if not base.files:
        return with_licences(with_files(plan, (), base.notes) if base.notes else plan, [base, *adapters])
    files, fields, notes = base.files, None, list[str]()
    sizes = {step.shape[0] for step in plan.steps if _is_resized(step, tensors)}
    theirs = _of_new_rows(plan, base, adapters, resized=bool(sizes))
    if len(sizes) == 1:
        fields, notes = config_for(base.config, sizes.pop())
        if base.tokenizer and not theirs:
            files = tuple(one for one in files if one not in base.tokenizer)
            notes.append(
                "the base's tokeniser is not copied: an adapter has an embedding for another vocabulary, but no "
                "tokeniser"
            )
    if theirs is not None:
        files = (*(one for one in files if one not in base.tokenizer), *theirs.tokenizer)
        if base.tokens and theirs.tokens and not by_place:
            numbers = Renumbering.of(base.tokens, theirs.tokens)
            config = base.config if fields is None else fields
            moved, files, more = with_new_ids(config, files, numbers, "the adapter's vocabulary", OF_ADAPTER)
            fields, notes = dict(moved), [*notes, *more]
    notes += _unused(plan, base, adapters)
    if any(step.key in tensors and step.dtype != tensors[step.key].dtype for step in plan.steps):
        fields, note = with_dtype(base.config if fields is None else fields, plan) if base.config else ({}, "")
        notes += [note] if note else []
    if base.is_tied and has_new_head(plan, tensors):
        fields = {**(base.config if fields is None else fields), "tie_word_embeddings": False}
        notes.append(OWN_HEAD)
    files = with_config(files, fields) if fields else files
    return with_licences(with_files(plan, files, [*notes, *base.notes], base), [base, *adapters])


def _of_new_rows(
    plan: Plan, base: ModelFolder, adapters: Sequence[ModelFolder], *, resized: bool
) -> ModelFolder | None:
    """Return the folder of the first adapter whose tokeniser the output must get; None if there is none.

    This adapter replaces the embedding, and its tokeniser has other tokens than the base's. If ``resized``, the new
    embedding has another number of rows than the base's. Then the tokeniser may also have the same tokens.
    """
    for number, one in enumerate(adapters, 1):
        if one.tokenizer and _brings_rows(plan, number) and (resized or not one.has_tokens_of(base)):
            return one
    return None


def _brings_rows(plan: Plan, source: int) -> bool:
    """Return whether the adapter at index ``source`` replaces a whole embedding or output layer."""
    return any(
        is_of_tokens(step.key, len(step.shape))
        and any(one.source == source and one.shape == step.shape for one in step.inputs)
        for step in plan.steps
    )


def _unused(plan: Plan, base: ModelFolder, adapters: Sequence[ModelFolder]) -> list[str]:
    """Return a note on the adapters that have another tokeniser than the base but do not replace the embedding."""
    names = [
        escape(source.name)
        for number, (source, one) in enumerate(zip(plan.sources[1:], adapters, strict=False), 1)
        if not _brings_rows(plan, number) and not one.has_tokens_of(base)
    ]
    if not names:
        return []
    return [
        f"the base's tokeniser is copied, but the tokeniser of {listing(names)} has other tokens or other ids: perhaps "
        "the adapter was trained on another base"
    ]


def _is_resized(step: Step, tensors: Mapping[str, TensorInfo]) -> bool:
    """Return whether a step changes the number of rows of an embedding or output layer."""
    there = tensors.get(step.key)
    resized = there is not None and there.shape[1:] == step.shape[1:] and there.shape != step.shape
    return resized and bool(vocabulary_keys([step.key]))
