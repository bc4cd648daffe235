"""Notes on how two model folders differ: in what equal weights compute, in adapters, inputs and tokens."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

from ..errors import CheckpointError
from ..util.text import escape
from .lora.settings import setting_notes
from .model_folder.config_differences import config_notes, input_notes
from .model_folder.embedded import entry_notes
from .model_folder.embedded_folder import with_embedded_tokens
from .model_folder.folder import ModelFolder
from .model_folder.rows_by_place import difference

__all__ = ["folder_difference_notes"]


def folder_difference_notes(first: str, one: ModelFolder, second: str, other: ModelFolder) -> Iterator[str]:
    """Yield notes on how the configurations, settings of adapters, processors and tokenisers of two folders differ.

    ``first`` is the name of the model in the folder ``one``, and ``second`` that of the model in ``other``. Only fields
    that change results are compared. Files that cannot be read are left out. If a model is a GGUF file, the metadata in
    this file are compared instead.
    """
    with suppress(CheckpointError):
        if one.config and other.config:
            yield from config_notes(first, one.config, second, other.config)
        yield from setting_notes(first, one.adapter, second, other.adapter)
        if one.embedded is not None and other.embedded is not None:
            yield from entry_notes(first, one.embedded, second, other.embedded)
        yield from input_notes(first, one, second, other)
        one, other = with_embedded_tokens(one), with_embedded_tokens(other)
        if one.vocabulary and other.vocabulary:
            told = difference((one, escape(first)), (other, escape(second)))
            yield from [f"the tokenisers differ: {told}"] if told.startswith("row") else [told] if told else []
