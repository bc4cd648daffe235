"""The option ``encoding``: reads quantised sources as they are stored, or as the weights that they stand for.

With ``keep``, codes are only copied, and a verb that would compute with them raises an error. A further choice, to
encode computed weights again as the source had them, belongs here: sources are then read as for ``dequantize``, and
the steps of the weights are changed after planning.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ...checkpoint.checkpoint import Checkpoint
from ...errors import ConfigError
from ...util.text import escape, listing
from .operations import operate

__all__ = ["DEQUANTIZE", "ENCODINGS", "check_encoding", "encoding_notes", "encoding_said", "read_as", "with_decoding"]

ENCODINGS = ("keep", "dequantize")
"""``keep`` copies codes unchanged; ``dequantize`` replaces them by the weights that they stand for."""
DEQUANTIZE: Mapping[str, Any] = {"dequantize": "**"}
"""The operation that replaces all quantised tensors by their weights."""


def check_encoding(encoding: str) -> None:
    """Raise ConfigError if ``encoding`` is unknown."""
    if encoding not in ENCODINGS:
        raise ConfigError(f"--encoding {escape(encoding)} is unknown.", hint=f"Use {' or '.join(ENCODINGS)}.")


def read_as(checkpoint: Checkpoint, encoding: str) -> Checkpoint:
    """Return a source as a verb reads it: with its codes, or with the weights that they stand for.

    Raises PlanError for a quantised tensor that cannot be decoded.
    """
    if encoding == ENCODINGS[0] or not checkpoint.codes:
        return checkpoint
    return operate([checkpoint], [DEQUANTIZE])[0].checkpoint


def with_decoding(
    rows: Sequence[Mapping[str, Any]], opened: Sequence[Checkpoint], encoding: str
) -> list[Mapping[str, Any]]:
    """Return the operations on sources, with one before all others that decodes their codes, if this is asked for."""
    decodes = encoding != ENCODINGS[0] and any(one.codes for one in opened)
    return [*([DEQUANTIZE] if decodes else []), *rows]


def encoding_said(encoding: str) -> dict[str, str]:
    """Return the argument ``encoding`` for the recipe; empty for the default."""
    return {} if encoding == ENCODINGS[0] else {"encoding": encoding}


def encoding_notes(opened: Sequence[Checkpoint], encoding: str) -> list[str]:
    """Return a note if decoding was asked for, and none of the sources (after ``read_as``) is quantised."""
    if encoding == ENCODINGS[0] or any(one.stored is not None for one in opened):
        return []
    return [f"--encoding {encoding} changes nothing: {listing([one.path for one in opened], where='')} has no codes"]
