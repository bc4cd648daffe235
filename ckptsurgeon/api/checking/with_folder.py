"""Collects facts on a model's folder: files that contradict the weights, tokens, the model card, an adapter's base."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import closing, suppress
from dataclasses import replace
from functools import partial
from typing import Any

from ...analysis.check.subject import AdapterFacts, CardFacts, ClassFacts, Subject
from ...checkpoint.checkpoint import Checkpoint
from ...checkpoint.opening import CheckpointLike, open_checkpoint
from ...destinations.hf.files import ADAPTER, CONFIG
from ...engine.inputs import PlanInputs
from ...errors import CheckpointError, ConfigError
from ...methods.lora.config import refusal_of
from ...storage.read.base import Folder
from ...storage.small_files import SMALL_BYTES
from ...storage.yaml_text import read_yaml
from ...util.note_kind import NoteKind
from ...util.notes import Note
from ..inspect import token_rows
from ..lora.adapter_files import other_base_notes
from ..lora.base_class import other_class_notes
from ..model_folder.checks import contradictions
from ..model_folder.folder import ModelFolder, model_folder
from ..model_folder.tokenizer.tokenizer_files import local_tokens
from ..model_folder.weights.shape_checks import DescribedTensor
from ..model_folder.weights.tied_heads import stored_heads
from .adapters import adapter_facts, with_experts_read
from .other_weights import other_weight_notes
from .without_folder import no_adapter, notes_without_folder, short_notes

__all__ = ["with_folder"]

CARD = "README.md"
MERGING = (NoteKind.ADAPTER_SCALE, NoteKind.OTHER_BASE, NoteKind.MODULES_WITHOUT_FACTORS)
"""The kinds of those notes of ``lora merge`` that show that an adapter does not fit its base.

These notes report changes that are too large, magnitudes of DoRA that are not the norms of the base's weights, and
modules that should change but have no LoRA factors.
"""
_FRONT = re.compile(r"\A---[ \t]*\r?\n(.*?)^---[ \t]*$", re.DOTALL | re.MULTILINE)
"""Matches the YAML at the beginning of a model card, between two lines ``---``."""


def with_folder(subject: Subject, checkpoint: Checkpoint, base: CheckpointLike | None) -> Subject:
    """Return ``subject`` with facts on the checkpoint's folder; ``base`` is the base model of an adapter.

    Raises ConfigError if a base is given, but the checkpoint is not an adapter.
    """
    folder = model_folder(checkpoint)
    tokens = token_rows(checkpoint, folder)
    return replace(
        subject,
        notes=tuple(short_notes(checkpoint, _notes(checkpoint, folder, base))),
        tied=_ties(checkpoint, folder),
        tokens=tokens.tokens if tokens is not None else 0,
        names=_names(folder),
        padding=_padding(folder.config),
        kind=str(folder.config.get("model_type", "")),
        has_configuration=_has_configuration(folder),
        card=_card(checkpoint, folder),
        adapter=_adapter(checkpoint, folder, base),
        look_at_class=partial(_class_facts, checkpoint, folder),
    )


def _class_facts(checkpoint: Checkpoint, folder: ModelFolder) -> ClassFacts:
    """Return differences of a checkpoint from the transformers class in its config.json, or why they are not compared.

    No code in the folder runs.
    """
    from ..class_check import class_findings, not_compared, ties_of_class  # imports all that a transplant needs

    reason = not_compared(checkpoint, folder)
    if reason:
        return ClassFacts(reason)
    found = class_findings(checkpoint)
    return ClassFacts(
        faults=tuple(one.said for one in found if one.kind in ("missing", "shape")),
        remarks=tuple(one.said for one in found if one.kind in ("optional", "unused", "plain")),
        refused=next((one.said for one in found if one.kind == "refused"), ""),
        unbuilt=next((one.said for one in found if one.kind == "unbuilt"), ""),
        tied=tuple(ties_of_class(checkpoint)),
    )


def _notes(checkpoint: Checkpoint, folder: ModelFolder, base: CheckpointLike | None) -> Iterator[Note]:
    yield from notes_without_folder(checkpoint)
    yield from contradictions(checkpoint, folder)
    if checkpoint.folder is not None:
        yield from other_weight_notes(checkpoint, checkpoint.folder)
    if checkpoint.format.startswith("diffusers") or "_class_name" in folder.config:
        from .pipelines import pipeline_notes  # imports the layouts of networks

        yield from pipeline_notes(checkpoint)
    if base is not None:
        with open_checkpoint(base) as opened:
            yield from other_base_notes(opened, checkpoint)
            yield from other_class_notes(opened, checkpoint)
            settings = with_experts_read(checkpoint, folder.adapter, opened)[1]
        if refused := refusal_of(settings, ADAPTER):
            yield Note(NoteKind.PEFT_ONLY, refused)
        yield from _merging_notes(checkpoint, base)


def _merging_notes(adapter: Checkpoint, base: CheckpointLike) -> Iterator[Note]:
    """Yield the notes of ``lora merge`` that show that an adapter does not fit its base (see ``MERGING``)."""
    from ..lora.merge import lora_merge  # imports all that planning needs

    with suppress(CheckpointError):  # other checks report an adapter that cannot be merged
        plan = lora_merge(base, [adapter])
        for one in plan.inputs.sources if isinstance(plan.inputs, PlanInputs) else ():
            one.close()
        yield from (note for note in plan.notes if isinstance(note, Note) and note.kind in MERGING)


def _adapter(checkpoint: Checkpoint, folder: ModelFolder, base: CheckpointLike | None) -> AdapterFacts | None:
    if base is None:
        return adapter_facts(checkpoint, folder, None)
    with open_checkpoint(base) as opened:
        found = adapter_facts(checkpoint, folder, opened)
    if found is None:
        raise no_adapter(checkpoint.path)
    return found


def _names(folder: ModelFolder) -> tuple[str, ...]:
    """Return the tokens of a local tokeniser in the order of their rows; () if this order is not known."""
    tokens = local_tokens(folder)
    return tokens if folder.token_list is not None and folder.token_list.is_whole else ()


def _padding(config: Mapping[str, Any]) -> int | None:
    """Return the id of the padding token in config.json; None if there is none, or if it is the id of BOS or EOS."""
    text = config.get("text_config")
    parts = (config, text if isinstance(text, dict) else {})
    found = {one.get("pad_token_id") for one in parts if type(one.get("pad_token_id")) is int}
    others = [one.get(name) for one in parts for name in ("bos_token_id", "eos_token_id")]
    return next((one for one in found if one not in others), None)


def _has_configuration(folder: ModelFolder) -> bool:
    """Return whether a folder has a config.json or an adapter_config.json."""
    return any(one.name in (CONFIG, ADAPTER) for one in folder.files)


def _card(checkpoint: Checkpoint, folder: ModelFolder) -> CardFacts | None:
    """Return the facts on the model card (README.md); None if the checkpoint's path is not the folder of a model."""
    if checkpoint.folder is None or not _has_configuration(folder) or not _is_folder(checkpoint):
        return None
    text = _card_text(checkpoint.folder)
    if text is None:
        return CardFacts()
    front = _FRONT.match(text)
    if front is None:
        return CardFacts(is_there=True)
    try:
        fields = read_yaml(front[1], CARD)
    except ConfigError as error:
        return CardFacts(is_there=True, fault=error.message)
    if not isinstance(fields, dict):
        return CardFacts(is_there=True, fault="it is not a YAML mapping")
    return CardFacts(is_there=True, fields={str(name): value for name, value in fields.items()})


def _is_folder(checkpoint: Checkpoint) -> bool:
    return "://" in checkpoint.path or os.path.isdir(checkpoint.path)


def _card_text(folder: Folder) -> str | None:
    with suppress(CheckpointError):
        if CARD in folder.names():
            with closing(folder.file(CARD)) as file:
                return file.read(0, min(file.size, SMALL_BYTES)).decode("utf-8", "replace").lstrip("\ufeff")
    return None


def _ties(checkpoint: Checkpoint, folder: ModelFolder) -> tuple[tuple[str, str], ...]:
    """Return the keys (embedding, output layer) of each pair of stored tensors that config.json declares as tied."""
    ties = checkpoint.ties
    tensors = [DescribedTensor(key, info.dtype, info.shape, ties.get(key, "")) for key, info in checkpoint.items()]
    return tuple((one, head) for one, head in stored_heads(tensors, folder) if head in checkpoint)
