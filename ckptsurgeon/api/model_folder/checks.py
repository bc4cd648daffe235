"""Notes on contradictions between the files of a model's folder and its weights."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ...checkpoint.checkpoint import Checkpoint
from ...destinations.hf.files import ADAPTER, CONFIG
from ...errors import ConfigError
from ...planning.plan.plan import Plan
from ...planning.target import Companion
from ...tensors.encodings._encoding import QuantisedTensors
from ...util.text import escape, listing
from ...vocabulary.token_ids import ids_beyond
from .adapter_beside import adapter_notes
from .alignment import alignment_notes
from .codes.described_shapes import described_shape_notes
from .codes.logical_tensors import codes_of, logical_tensors
from .coqui import alphabet_notes
from .documents import GENERATION, json_text
from .embedding_checks import embedding_notes, embeddings, of_tokens
from .families.own_code import own_code_notes
from .families.shapes import family_shape_notes
from .families.values import value_notes
from .family_checks import family_notes
from .folder import ModelFolder, model_folder
from .generation_checks import generation_notes
from .input_checks import input_notes
from .layers.checks import layer_notes
from .layers.experts import without_like_experts
from .layers.holes import gap_notes
from .layers.rotary import factor_notes
from .part_checks import part_notes
from .row_checks import has_more_rows, output_notes, position_notes
from .shape_checks import UNLOADED, DescribedTensor, shape_notes
from .tied_heads import head_notes, missing_head_notes
from .tokenizer.absent_ids import absent_id_notes
from .tokenizer.added_decoder import decoder_notes
from .tokenizer.chat_template import chat_notes
from .tokenizer.ends import end_notes
from .tokenizer.further_lists import further_list_notes
from .tokenizer.letter_case import case_notes
from .tokenizer.sentinels import sentinel_notes
from .tokenizer.special_ids import special_id_notes
from .tokenizer.special_names import added_notes, name_notes
from .tokenizer.token_lists import token_list_notes
from .tokenizer.tokenizer_files import local_tokens
from .unreadable import unreadable_files, unreadable_notes

__all__ = [
    "contradictions",
    "folder_notes",
    "notes_beside",
    "source_layer_notes",
    "sources_beside",
    "weights_notes",
    "with_layers_said",
    "with_sources_said",
    "without_repeats",
]

# Notes on the files in the folders of a plan's sources, even if the output gets other files.


def source_layer_notes(checkpoint: Checkpoint, folder: ModelFolder) -> list[str]:
    """Return notes on layers of a source that lack tensors, or have other tensors than its configuration implies.

    There are no notes if the source is a single shard. If the folder has no configuration, the only notes are on layers
    without any tensor, and on quantised tensors whose stored shape contradicts their codes.
    """
    if checkpoint.elsewhere:
        return []
    shapes = described_shape_notes(checkpoint, folder.config)
    if not _is_configured(folder):
        return [*gap_notes(list(checkpoint)), *shapes]
    tensors = [DescribedTensor(key, info.dtype, info.shape) for key, info in checkpoint.items()]
    return [*layer_notes(tensors, folder.config), *part_notes(tensors, folder.config, checkpoint.codes), *shapes]


def _is_configured(folder: ModelFolder) -> bool:
    """Return whether a folder has the configuration of a model or of an adapter (which need not have all layers)."""
    return bool(folder.config) or any(one.name in (CONFIG, ADAPTER) for one in folder.files)


def with_layers_said(plan: Plan, layers: Sequence[str], path: str, config: Mapping[str, Any]) -> Plan:
    """Return a plan with the notes ``layers`` added, which ``source_layer_notes`` returned for its source.

    ``path`` is the path of the source, and ``config`` its configuration. A note that is true of the source, but not of
    the output, gets the path as prefix.
    """
    if not layers:
        return plan
    tensors = [DescribedTensor(step.key, step.dtype, step.shape, step.tied_to) for step in plan.steps]
    own = {*layer_notes(tensors, config), *part_notes(tensors, config), *gap_notes([one.key for one in tensors])}
    target = replace(plan.target, notes=tuple(note for note in plan.target.notes if note not in layers))
    said = (note if note in own else f"{escape(path)}: {note}" for note in layers)
    return replace(plan, target=target, notes=(*plan.notes, *(note for note in said if note not in plan.notes)))


def sources_beside(opened: Sequence[Checkpoint], destination: str) -> list[Checkpoint]:
    """Return the checkpoints that are in the same folder as a destination, which may be a folder or a file."""

    def folder_of(path: str) -> str:
        path = os.path.abspath(path)
        return path if os.path.isdir(path) else os.path.dirname(path)

    return [one for one in opened if destination and folder_of(one.path) == folder_of(destination)]


def without_repeats(plan: Plan, *sources: Checkpoint) -> Plan:
    """Return a plan without notes on its output that repeat a note of ``with_sources_said`` on one of the sources."""
    begins = tuple(f"{escape(one.path)}: " for one in sources)
    said = {note.removeprefix(begin) for begin in begins for note in plan.notes if note.startswith(begin)}
    target = replace(plan.target, notes=tuple(note for note in plan.target.notes if note not in said))
    return replace(plan, target=target, notes=tuple(note for note in plan.notes if note not in said)) if said else plan


def with_sources_said(plan: Plan, opened: Sequence[Checkpoint], folders: Sequence[ModelFolder]) -> Plan:
    """Return a plan with notes on its sources: on missing layers, and on files that contradict layers or tokens.

    ``opened`` are the sources of the plan, and ``folders`` their folders, in the same order. Each note begins with the
    path of the source.
    """
    found = dict[str, None]()
    for checkpoint, folder in zip(opened, folders, strict=False):
        layers = source_layer_notes(checkpoint, folder)
        if not folder.files or checkpoint.elsewhere:
            notes = layers
        else:
            apart = ModelFolder("", folder.files)  # fingerprints are not recorded in ``folder``: these files may change
            names = (*name_notes(apart), *added_notes(apart, folder), *decoder_notes(apart, folder))
            tensors = [DescribedTensor(key, info.dtype, info.shape) for key, info in checkpoint.items()]
            ids = (*special_id_notes(apart, folder), *absent_id_notes(apart, folder), *end_notes(apart, folder))
            ids = (*ids, *sentinel_notes(apart, folder), *_without_configuration(apart, folder, tensors, {}))
            texts = (*case_notes(apart, folder), *chat_notes(apart, folder))
            sizes = embedding_notes(logical_tensors(tensors, apart.config, checkpoint.codes), apart, folder)
            heads = missing_head_notes(tensors, apart)
            lists = (*token_list_notes(folder), *sizes, *heads, *texts, *names, *ids, *own_code_notes(folder))
            unread = (f"{name}: {why}" for name, why in unreadable_files(apart, folder))
            notes = [*unread, *layers, *lists, *adapter_notes(folder.adapter_beside)]
        found |= dict.fromkeys(f"{escape(checkpoint.path)}: {note}" for note in notes)
    return replace(plan, notes=(*plan.notes, *found)) if found else plan


TYPE = ("architectures", "model_type")
"""Fields of config.json with the type of the model."""


def folder_notes(plan: Plan, folder: ModelFolder, origin: ModelFolder | None = None) -> list[str]:
    """Return notes on the files of a plan's output folder that contradict its weights or cannot be read.

    ``folder`` has these files, and ``origin`` is the folder that they are copied from. If both have the same tokeniser,
    the tokens of ``origin`` are used, so that its vocabulary is not read a second time.
    """
    read = origin if origin is not None and origin.tokenizer == folder.tokenizer else folder
    tensors = [DescribedTensor(step.key, step.dtype, step.shape, step.tied_to) for step in plan.steps]
    if not folder.files and not read.files:
        return [*layer_notes(tensors, {})]  # without files, layers can only contradict each other
    code = own_code_notes(origin) if origin is not None and any(one.name == CONFIG for one in folder.files) else ()
    notes = [*unreadable_notes(folder, read), *code, *weights_notes(tensors, folder, read)]
    known = {} if origin is None else {name: origin.config[name] for name in TYPE if name in origin.config}
    rows = 0 if origin is None else origin.rows
    former = [DescribedTensor(step.source_key or step.key, step.dtype, step.shape, step.tied_to) for step in plan.steps]
    named = tensors if embeddings(tensors) else former  # a renamed embedding is recognised by its old name only
    return list(dict.fromkeys((*notes, *_without_configuration(folder, read, named, known, rows))))


def _without_configuration(
    folder: ModelFolder, read: ModelFolder, tensors: Sequence[DescribedTensor], known: Mapping[str, Any], rows: int = 0
) -> Iterator[str]:
    """Yield notes on a folder without config.json: on its number of tokens, and the ids in generation_config.json.

    ``ckpt rename`` and ``ckpt filter`` write such folders. ``read`` is a folder with the same tokeniser, whose
    vocabulary may be loaded already. ``known`` has the fields of config.json with the model's type, if they are known.
    ``rows`` is the vocabulary size. If it is 0, the number of rows of the largest embedding is used instead, or the
    number of tokens if there is no embedding.
    """
    names = {one.name for one in folder.files}
    if not (GENERATION in names or folder.vocabulary) or not names.isdisjoint((CONFIG, ADAPTER)):
        return

    def of_size(size: int) -> ModelFolder:
        text = json_text({**known, **({"vocab_size": size} if size else {})})
        return ModelFolder("", (*folder.files, Companion(CONFIG, text=text)))

    logical = logical_tensors(tensors, {})
    own = max((one.shape[0] for one in of_tokens(logical, of_size(0))), default=0)
    yield from embedding_notes(logical, of_size(own), read)
    rows = rows or own
    described = of_size(rows or len(local_tokens(read)))  # without an embedding, only ids below this can be checked
    beyond = _beyond(described) if rows else []
    ids = (*special_id_notes(described, read), *absent_id_notes(described, read))
    yield from (*beyond, *ids, *end_notes(described, read))


def contradictions(checkpoint: Checkpoint, folder: ModelFolder | None = None) -> list[str]:
    """Return notes on missing layers of a checkpoint, and on files in its folder that contradict its weights.

    Pass the checkpoint's ``folder`` if it has been read already.
    """
    if checkpoint.folder is None:
        return [] if checkpoint.elsewhere else [*gap_notes(list(checkpoint)), *described_shape_notes(checkpoint)]
    return notes_beside(checkpoint, folder)


def notes_beside(checkpoint: Checkpoint, folder: ModelFolder | None = None) -> list[str]:
    """Return notes on the files in the folder of an open checkpoint that contradict its weights.

    Pass the checkpoint's ``folder`` if it has been read already. There are no notes for a single shard. For a file in a
    folder without a configuration, the only notes are on quantised tensors whose stored shape contradicts their codes.
    """
    folder = folder or model_folder(checkpoint)
    if checkpoint.elsewhere:
        return []
    shapes = described_shape_notes(checkpoint, folder.config)
    gaps = shapes if _is_configured(folder) else [*gap_notes(list(checkpoint)), *shapes]
    if not folder.files:
        return gaps if checkpoint.folder is not None and folder.path == checkpoint.folder.uri else shapes
    ties = checkpoint.ties
    tensors = [DescribedTensor(key, info.dtype, info.shape, ties.get(key, "")) for key, info in checkpoint.items()]
    unreadable = [f"{name}: {why}" for name, why in unreadable_files(folder, folder)]
    return list(dict.fromkeys((
        *gaps,
        *([folder.fault.removesuffix(".")] if folder.fault else []),
        *unreadable,
        *own_code_notes(folder),
        *weights_notes(tensors, folder, folder, checkpoint.codes),
        *_without_configuration(folder, folder, tensors, {}),
        *adapter_notes(folder.adapter_beside),
    )))  # fmt: skip


def weights_notes(
    tensors: Sequence[DescribedTensor],
    folder: ModelFolder,
    read: ModelFolder,
    codes: QuantisedTensors | None = None,
) -> list[str]:
    """Return notes on the files of a folder that contradict the tensors of its weights.

    ``read`` is the same folder, or one with the same tokeniser whose vocabulary is loaded already. ``codes`` are the
    quantised tensors in ``tensors``; None to search for them.
    """
    config = {} if any(one.name == ADAPTER for one in folder.files) else folder.config
    coded = codes_of(tensors, folder.config) if codes is None else codes
    alike, whole = without_like_experts(tensors), logical_tensors(tensors, folder.config, coded)
    logical = alike if whole is tensors else without_like_experts(whole)
    sizes = (*embedding_notes(logical, folder, read), *layer_notes(tensors, folder.config))
    rows = (*output_notes(logical, config), *position_notes(logical, folder))
    sized = (*shape_notes(logical, folder.config), *rows)
    others = () if any(UNLOADED in note for note in (*sizes, *sized)) else family_shape_notes(logical, config)
    shapes = (*family_notes(alike, config), *others, *part_notes(tensors, config, coded))
    return [
        *sizes,
        *shapes,
        *sized,
        *factor_notes(folder.config),
        *value_notes(config),
        *head_notes(alike, folder),
        *alphabet_notes(alike, folder, read),
        *_beyond(folder),
        *alignment_notes(folder),
        *generation_notes(folder),
        *further_list_notes(logical, folder),
        *token_list_notes(read),
        *case_notes(folder, read),
        *name_notes(read),
        *added_notes(folder, read),
        *decoder_notes(folder, read),
        *special_id_notes(folder, read),
        *absent_id_notes(folder, read),
        *end_notes(folder, read),
        *sentinel_notes(folder, read),
        *input_notes(folder, read),
    ]


def _rows_of_decoder(config: Mapping[str, Any]) -> int:
    """Return the vocabulary size of the decoder in a composite model, such as EncoderDecoderModel; 0 if not known."""
    decoder = config.get("decoder")
    size = decoder.get("vocab_size") if isinstance(decoder, dict) else None
    return size if type(size) is int else 0


def _beyond(folder: ModelFolder) -> list[str]:
    """Return a note on the token ids in config.json and generation_config.json that are not below ``vocab_size``."""
    rows = folder.rows or _rows_of_decoder(folder.config)
    try:
        found = {
            name: ids_beyond(folder.document(name), rows)
            for name in (CONFIG, GENERATION)
            if rows and not has_more_rows(folder) and any(one.name == name for one in folder.files)
        }
    except ConfigError:  # already reported
        return []
    stale = [f"{escape(field)} of {name} is {number}" for name, ids in found.items() for field, number in ids]
    size = f"the vocabulary size is {rows}"
    return [f"{size}, but {listing(stale, where='')}: these ids stay as they are"] if stale else []
