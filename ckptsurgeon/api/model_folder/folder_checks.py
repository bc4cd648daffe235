"""Compares the configuration and tokeniser files of a model's folder with its weights, and with each other.

This module imports the modules of many checks, so ``checks.py`` imports it only if a folder has such files.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ...checkpoint.checkpoint import Checkpoint
from ...destinations.hf.files import ADAPTER, CONFIG
from ...errors import ConfigError
from ...planning.target import Companion
from ...tensors.info import TensorInfo
from ...tensors.quantised.encoding import QuantisedTensors
from ...util.note_kind import NoteKind
from ...util.notes import Note
from ...util.text import escape, listing
from ...vocabulary.renumbered_ids import ids_beyond
from .adapter_beside import adapter_notes
from .codes.logical_tensors import codes_of, logical_tensors
from .coqui import alphabet_notes
from .documents import GENERATION, json_text
from .families.own_code import own_code_notes
from .families.shapes import family_shape_notes
from .families.values import value_notes
from .folder import ModelFolder
from .generation.alignment import alignment_notes
from .generation.checks import generation_notes
from .input_checks import input_notes
from .layers.checks import layer_notes
from .layers.experts import without_like_experts
from .layers.rotary import factor_notes
from .recorded_settings import recorded_setting_notes
from .sentence.checks import sentence_notes
from .tokenizer.absent_ids import absent_id_notes
from .tokenizer.added_decoder import decoder_notes
from .tokenizer.additional_lists import further_list_notes
from .tokenizer.changed_lists import changed_list_notes
from .tokenizer.chat_template import chat_notes
from .tokenizer.ctc import ctc_notes
from .tokenizer.end_tokens import end_notes
from .tokenizer.letter_case import case_notes
from .tokenizer.sentinels import sentinel_notes
from .tokenizer.special_ids import special_id_notes
from .tokenizer.special_names import added_notes, name_notes
from .tokenizer.token_lists import token_list_notes
from .tokenizer.tokenizer_files import local_tokens
from .unreadable import unreadable_file_notes, unreadable_notes
from .weights.class_types import class_type_notes
from .weights.declared_dtype import declared_dtype_notes
from .weights.embedding_checks import embedding_notes, embeddings, of_tokens
from .weights.family_checks import family_notes
from .weights.part_checks import part_notes
from .weights.required_parts import prefixed_key_notes
from .weights.row_checks import has_more_rows, output_notes, position_notes
from .weights.shape_checks import UNLOADED, DescribedTensor, shape_notes
from .weights.shared_embeddings import shared_embedding_notes
from .weights.tied_heads import head_notes, missing_head_notes

__all__ = ["file_notes", "output_file_notes", "source_file_notes", "weights_notes"]


def source_file_notes(checkpoint: Checkpoint, folder: ModelFolder) -> Iterator[Note]:
    """Yield notes on files in the folder of a source that cannot be read, or contradict its weights or each other.

    The output may get other files; these notes are given nevertheless.
    """
    apart = ModelFolder("", folder.files)  # fingerprints are not recorded in ``folder``: these files may change
    tensors = [DescribedTensor(key, info.dtype, info.shape) for key, info in checkpoint.items()]
    yield from unreadable_file_notes(apart, folder)
    yield from token_list_notes(folder)
    yield from embedding_notes(logical_tensors(tensors, apart.config, checkpoint.codes), apart, folder)
    yield from missing_head_notes(tensors, apart)
    ties = checkpoint.ties
    yield from shared_embedding_notes([one._replace(tied_to=ties.get(one.key, "")) for one in tensors], apart)
    yield from case_notes(apart, folder)
    yield from ctc_notes(apart, folder)
    yield from chat_notes(apart, folder)
    yield from name_notes(apart)
    yield from added_notes(apart, folder)
    yield from decoder_notes(apart, folder)
    yield from special_id_notes(apart, folder)
    yield from absent_id_notes(apart, folder)
    yield from end_notes(apart, folder)
    yield from sentinel_notes(apart, folder)
    yield from recorded_setting_notes(checkpoint.metadata, apart.config)
    yield from _without_configuration(apart, folder, tensors, {})
    yield from own_code_notes(folder)
    yield from class_type_notes(apart.config)
    yield from adapter_notes(folder.adapter_beside)


def file_notes(checkpoint: Checkpoint, folder: ModelFolder) -> Iterator[Note]:
    """Yield notes on the files in the folder of an open checkpoint that cannot be read or contradict its weights."""
    ties = checkpoint.ties
    tensors = [DescribedTensor(key, info.dtype, info.shape, ties.get(key, "")) for key, info in checkpoint.items()]
    if folder.fault:
        yield folder.fault.reworded(folder.fault.removesuffix("."))
    yield from unreadable_file_notes(folder, folder)
    yield from own_code_notes(folder)
    yield from changed_list_notes(checkpoint, folder)
    yield from weights_notes(tensors, folder, folder, checkpoint.codes)
    yield from prefixed_key_notes([checkpoint.stored_key(key) for key in checkpoint], folder.config)
    if not any(one.name == ADAPTER for one in folder.files):
        yield from declared_dtype_notes(checkpoint, folder.config)
    yield from recorded_setting_notes(checkpoint.metadata, folder.config)
    yield from _without_configuration(folder, folder, tensors, {})
    yield from adapter_notes(folder.adapter_beside)


SUPPRESSED = ("begin_suppress_tokens", "forced_decoder_ids", "suppress_tokens")
"""Fields of config.json with Whisper's defaults; transformers reads them only if generation_config.json is missing."""
TYPE = ("architectures", "model_type")
"""Fields of config.json with the type of the model."""


def output_file_notes(
    tensors: Sequence[DescribedTensor],
    former: Sequence[DescribedTensor],
    folder: ModelFolder,
    read: ModelFolder,
    origin: ModelFolder | None,
) -> list[Note]:
    """Return notes on the files of a plan's output folder that contradict its weights or cannot be read.

    ``tensors`` are the tensors of the output, and ``former`` the same tensors with their keys in the source. ``folder``
    has the files of the output, which are copied from the folder ``origin``. ``read`` is the folder from which the
    vocabulary is read. It is ``origin`` if both folders have the same tokeniser files, because the vocabulary of
    ``origin`` may be in memory already; otherwise it is ``folder``.
    """
    code = own_code_notes(origin) if origin is not None and any(one.name == CONFIG for one in folder.files) else ()
    notes = [*unreadable_notes(folder, read), *code, *weights_notes(tensors, folder, read, written=True)]
    notes += prefixed_key_notes([one.key for one in tensors], folder.config)
    if folder.adapter and not folder.config:
        from ..lora.differences import differences  # imported late, because few folders have an adapter

        infos = {one.key: TensorInfo(one.dtype, one.shape) for one in tensors}
        notes += differences(infos, folder.adapter)
    known = {} if origin is None else {name: origin.config[name] for name in TYPE if name in origin.config}
    rows = 0 if origin is None else origin.rows
    named = tensors if embeddings(tensors) else former  # a renamed embedding is recognised only by its old name
    return list(dict.fromkeys((*notes, *_without_configuration(folder, read, named, known, rows))))


def _without_configuration(
    folder: ModelFolder, read: ModelFolder, tensors: Sequence[DescribedTensor], known: Mapping[str, Any], rows: int = 0
) -> Iterator[Note]:
    """Yield notes on a folder without config.json: on its number of tokens, and on token ids in generation_config.json.

    ``ckpt rename`` and ``ckpt filter`` write such folders. ``read`` is a folder with the same tokeniser, whose
    vocabulary may be loaded already. ``known`` has the model type and architectures, as in config.json, if they are
    known. ``rows`` is the vocabulary size. If it is 0, the number of rows of the largest embedding is used instead, or
    the number of tokens if there is no embedding.
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
    # without an embedding, only ids below the number of tokens can be checked
    described = of_size(rows or len(local_tokens(read)))
    beyond = _beyond(described) if rows else []
    ids = (*special_id_notes(described, read), *absent_id_notes(described, read))
    yield from (*beyond, *ids, *end_notes(described, read))


def weights_notes(
    tensors: Sequence[DescribedTensor],
    folder: ModelFolder,
    read: ModelFolder,
    codes: QuantisedTensors | None = None,
    *,
    written: bool = False,
) -> list[Note]:
    """Return notes on the files of a folder that contradict the tensors of its weights.

    ``read`` is the folder from which the vocabulary is read: ``folder`` itself, or a folder with the same tokeniser
    whose vocabulary is already in memory. ``codes`` are the quantised tensors in ``tensors``; None to search for them.
    ``written`` is true if these files are written to an output.
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
        *class_type_notes(config),
        *head_notes(alike, folder),
        *shared_embedding_notes(alike, folder),
        *alphabet_notes(alike, folder, read),
        *_beyond(folder, written=written),
        *alignment_notes(folder),
        *generation_notes(folder),
        *further_list_notes(logical, folder),
        *token_list_notes(read),
        *case_notes(folder, read),
        *ctc_notes(folder, read),
        *name_notes(read),
        *added_notes(folder, read),
        *decoder_notes(folder, read),
        *special_id_notes(folder, read),
        *absent_id_notes(folder, read),
        *end_notes(folder, read),
        *sentinel_notes(folder, read),
        *input_notes(folder, read),
        *sentence_notes(folder),
    ]


def _rows_of_decoder(config: Mapping[str, Any]) -> int:
    """Return the decoder's vocabulary size in a model with two such sizes (EncoderDecoderModel, FSMT); 0 if unknown."""
    decoder = config.get("decoder")
    size = decoder.get("vocab_size") if isinstance(decoder, dict) else config.get("tgt_vocab_size")
    return size if type(size) is int else 0


def _beyond(folder: ModelFolder, *, written: bool = False) -> list[Note]:
    """Return a note on token ids in config.json and generation_config.json that are ``vocab_size`` or larger.

    If these files are ``written`` to an output, the note says that the ids are not changed.
    """
    rows = folder.rows or _rows_of_decoder(folder.config)
    try:
        found = {
            name: ids_beyond(folder.document(name), rows)
            for name in (CONFIG, GENERATION)
            if rows and not has_more_rows(folder) and any(one.name == name for one in folder.files)
        }
    except ConfigError:  # another note reports that this file cannot be read
        return []
    if GENERATION in found:  # if this file exists, transformers takes the fields in SUPPRESSED from it
        generation = folder.document(GENERATION)
        found[CONFIG] = [one for one in found.get(CONFIG, ()) if one[0] not in SUPPRESSED or one[0] not in generation]
    stale = [f"{escape(field)} of {name} is {number}" for name, ids in found.items() for field, number in ids]
    size = f"the vocabulary size is {rows}"
    unchanged = "; they are written unchanged" if written else ""
    is_padding = any(field.rpartition(".")[2] == "pad_token_id" for field, _ in found.get(CONFIG, ()))
    kind = NoteKind.PADDING_ROW if is_padding else NoteKind.TOKEN_IDS
    said = f"{size}, but {listing(stale, where='')}: there is no row for these ids{unchanged}"
    return [Note(kind, said)] if stale else []
