"""Notes on differences of two model folders: fields that change results, adapters, processors and tokenisers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress

from ..checkpoint.checkpoint import Checkpoint
from ..checkpoint.opening import open_checkpoint, place_of
from ..errors import CheckpointError
from ..formats.base.format_table import is_weights
from ..storage.read.base import Folder
from ..storage.read.uri import open_source, scheme_of, shown
from ..util.text import escape
from .inputs.argument_types import CheckpointLike
from .lora.settings import setting_notes
from .model_folder.config_differences import component_differences, config_notes
from .model_folder.embedded import entry_notes
from .model_folder.embedded_folder import with_embedded_tokens
from .model_folder.folder import ModelFolder, model_folder, model_folder_at
from .model_folder.processors.differences import input_notes
from .model_folder.rows_by_place import difference
from .model_folder.sentence.differences import sentence_differences
from .model_folder.tokenizer.file_differences import tokenizer_differences

__all__ = ["computing_apart", "folder_difference_notes", "folder_of"]

GGUF, SUFFIX = b"GGUF", ".gguf"
"""The first bytes of a GGUF file, and the suffix of its name."""


def folder_difference_notes(first: str, one: ModelFolder, second: str, other: ModelFolder) -> Iterator[str]:
    """Yield notes on differences of two folders in configurations, settings of adapters, processors and tokenisers.

    ``first`` is the name of the model in the folder ``one``, ``second`` the name of the model in ``other``. Only fields
    that change results are compared. Files that cannot be read are left out. If a model is a GGUF file, the metadata in
    this file are compared instead.
    """
    with suppress(CheckpointError):
        yield from component_differences(first, one, second, other)
        if one.config and other.config:
            yield from config_notes(first, one.config, second, other.config)
        yield from setting_notes(first, one.adapter, second, other.adapter)
        if one.embedded is not None and other.embedded is not None:
            yield from entry_notes(first, one.embedded, second, other.embedded)
        inputs = list(input_notes(first, one, second, other))
        yield from inputs
        yield from sentence_differences(first, one, second, other)
        yield from tokenizer_differences(first, one, second, other, inputs)
        one, other = with_embedded_tokens(one), with_embedded_tokens(other)
        if one.vocabulary and other.vocabulary:
            told = difference((one, escape(first)), (other, escape(second)))
            yield from [f"the tokenisers differ: {told}"] if told.startswith("row") else [told] if told else []


def computing_apart(first: CheckpointLike, second: CheckpointLike) -> str:
    """Return the note on fields of two config.json files that let equal weights give other results; "" if none.

    A model without a config.json, such as one in memory, has no such fields.
    """
    if not (place_of(first) and place_of(second)):
        return ""
    names = [shown(place_of(one)) for one in (first, second)]
    with ExitStack() as stack:
        here, there = (folder_of(one, stack).config for one in (first, second))
    return next(config_notes(names[0], here, names[1], there), "") if here and there else ""


def folder_of(given: CheckpointLike, stack: ExitStack) -> ModelFolder:
    """Return the model folder of a checkpoint that is not in memory; for a GGUF file, with the metadata in the file.

    A GGUF file stays open until ``stack`` is closed.
    """
    path = place_of(given)
    is_component = isinstance(given, Checkpoint) and given.folder is not None and given.folder.uri != path
    if isinstance(given, Checkpoint) and (scheme_of(path) or given.header.stored or is_component):
        return model_folder(given)  # the open checkpoint is used, so that nothing is fetched again
    if scheme_of(path) in ("http", "https"):
        return ModelFolder(path)  # a web server does not list its folders
    if not _is_gguf(path):
        return model_folder_at(path)
    return model_folder(stack.enter_context(open_checkpoint(path)))


def _is_gguf(path: str) -> bool:
    """Return whether a path is a GGUF file, by its first bytes, or a folder with GGUF files and no other weights."""
    source = open_source(path)
    if isinstance(source, Folder):
        weights = [name for name in source.names() if is_weights(name)]
        return bool(weights) and all(name.lower().endswith(SUFFIX) for name in weights)
    with closing(source):
        return source.size >= len(GGUF) and source.read(0, len(GGUF)) == GGUF
