"""Notes on a tokenizer.json that contradicts itself: its steps, its model and its token list must fit together."""

from __future__ import annotations

from collections.abc import Iterator

from ..folder import ModelFolder
from .affixes import affix_notes
from .around import around_notes
from .decoding import decoding_notes
from .spaces import space_notes
from .spelling import spelling_of
from .unknown_token import chance_notes, unknown_notes

__all__ = ["pipeline_notes"]


def pipeline_notes(folder: ModelFolder) -> Iterator[str]:
    """Yield notes on a tokenizer.json whose normaliser, pre-tokeniser, model, decoder or post-processor do not fit.

    There are no notes if the file would have to be downloaded or cannot be read.
    """
    spelling = spelling_of(folder)
    if spelling.tokens:
        yield from space_notes(folder, spelling)
        yield from unknown_notes(folder, spelling)
        yield from chance_notes(folder, spelling)
        yield from affix_notes(folder, spelling)
        yield from decoding_notes(folder, spelling)
        yield from around_notes(folder, spelling)
