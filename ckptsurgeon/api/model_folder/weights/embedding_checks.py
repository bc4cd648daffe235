"""Notes on token embeddings, and on output layers of CTC models, that contradict config.json or the tokeniser."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ....planning.transplant.by_place import HEAD, is_embedding
from ....tensors.dtypes import DTYPES
from ....util.note_kind import NoteKind
from ....util.notes import Note, notes_of
from ....util.text import count, escape
from ..config import vocabulary_sizes
from ..folder import ModelFolder
from ..tokenizer.special_names import added_beyond, listed_beyond, needless, unlisted_names
from ..tokenizer.tokenizer_files import is_ctc
from ..unreadable import is_elsewhere
from .row_checks import has_more_rows, without_token_notes
from .shape_checks import DescribedTensor, follows

__all__ = ["embedding_notes", "embeddings", "of_tokens"]

WIDTHS = ("dim", "embd", "embed", "hidden", "model", "size", "width")
"""Words in the names of fields whose value is the width of the model, or of an embedding with a different width."""
NO_WIDTHS = ("intermediate", "position", "quant", "vocab")
"""Words in the names of fields whose value is not a width, even if the name also has a word of ``WIDTHS``."""


def embeddings(tensors: Sequence[DescribedTensor]) -> list[DescribedTensor]:
    """Return the tensors that are token embeddings, including quantised embeddings whose shape is known."""
    return [one for one in tensors if is_embedding(one.key) and "position" not in one.key and _is_matrix(one)]


def _is_matrix(one: DescribedTensor) -> bool:
    return len(one.shape) == 2 and DTYPES[one.dtype].kind == "float"


def of_tokens(tensors: Sequence[DescribedTensor], folder: ModelFolder) -> list[DescribedTensor]:
    """Return the token embeddings, or the output layer of a CTC model, which has no embedding."""
    found = embeddings(tensors)
    if not found and is_ctc(folder):
        found = [one for one in tensors if HEAD.search(one.key) and _is_matrix(one)]
    return found


@notes_of(NoteKind.CONFIGURATION_REFUSED)
def embedding_notes(tensors: Sequence[DescribedTensor], folder: ModelFolder, read: ModelFolder) -> Iterator[str]:
    """Yield notes if the shape of an embedding contradicts config.json, or if it has fewer rows than there are tokens.

    For a CTC model without an embedding, the output layer over the vocabulary is checked instead. ``read`` is the
    folder from which the vocabulary is read: ``folder`` itself, or a folder with the same tokeniser whose vocabulary is
    already in memory.
    """
    found = of_tokens(tensors, folder)
    if not found:
        return
    most = max(found, key=lambda one: one.shape[0])
    has = f"{escape(most.key)} has {count(most.shape[0], 'row')}"
    known = set(vocabulary_sizes(folder.config))
    # the number of columns of a quantised tensor may be a guess
    columns = {one.shape[1] for one in found if not one.is_quantised}
    field = "embedding_size" if "embedding_size" in folder.config else "hidden_size"
    width = folder.config.get(field) if is_embedding(most.key) else None
    if columns and type(width) is int and columns.isdisjoint(_widths(folder.config)):
        has_columns = f"{escape(most.key)} has {count(most.shape[1], 'column')}"
        yield f"config.json says {width} ({field}), but {has_columns}: transformers cannot load this model"
    other = folder.rows and not known.intersection(one.shape[0] for one in found)
    if other and not has_more_rows(folder):
        yield follows(most, f"config.json says {folder.rows} (vocab_size), but {has}")
    if is_elsewhere(folder):
        return
    if folder.vocabulary and read.tokens is not None and {*read.tokens[most.shape[0] :]} - needless(folder):
        tokens = count(len(read.tokens), "token")
        yield Note(
            NoteKind.TOKENS_WITHOUT_ROWS,
            f"{escape(folder.vocabulary)} has {tokens}, but {has}: the last tokens have no row",
        )
        return
    yield from without_token_notes(folder, read, most)
    yield from listed_beyond(read, most.shape[0], has)
    yield from added_beyond(read, most.shape[0], has)
    yield from unlisted_names(read, most.shape[0], has)


def _widths(config: Mapping[str, Any]) -> Iterator[int]:
    """Yield every width that a configuration states, including the widths in nested configurations."""
    for name, value in config.items():
        if any(word in name for word in NO_WIDTHS):
            continue
        if isinstance(value, dict):
            yield from _widths(value)
        elif type(value) is int and any(word in name for word in WIDTHS):
            yield value
