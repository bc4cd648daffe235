"""The option ``encoding``: what becomes of quantised tensors.

Verbs that compute plan with the weights that codes stand for. With ``keep``, the new weights are then encoded as those
of the source were; with ``dequantize`` they are stored as plain numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ...checkpoint.checkpoint import Checkpoint
from ...errors import ConfigError, PlanError
from ...util.text import escape, listing
from .operations import operate

__all__ = [
    "DEQUANTIZE",
    "ENCODINGS",
    "as_stored",
    "check_encoding",
    "encoding_notes",
    "encoding_said",
    "read_as",
    "with_decoding",
]

ENCODINGS = ("keep", "dequantize")
"""``keep`` stores changed weights as they were stored; ``dequantize`` replaces codes by the weights they stand for."""
DEQUANTIZE: Mapping[str, Any] = {"dequantize": "**"}
"""The operation that replaces all quantised tensors by their weights."""


def check_encoding(encoding: str) -> None:
    """Raise ConfigError if ``encoding`` is unknown."""
    if encoding not in ENCODINGS:
        raise ConfigError(f"--encoding {escape(encoding)} is unknown.", hint=f"Use {' or '.join(ENCODINGS)}.")


def read_as(checkpoint: Checkpoint, encoding: str) -> Checkpoint:
    """Return a source as a verb plans with it: with the weights that its codes stand for.

    If ``encoding`` is ``keep``, a source that cannot be decoded is returned with its codes, which may be copied. Raises
    PlanError for a quantised tensor that cannot be decoded, if it has to be.
    """
    if not checkpoint.codes:
        return checkpoint
    try:
        return operate([checkpoint], [DEQUANTIZE])[0].checkpoint
    except PlanError:
        if encoding == ENCODINGS[0]:
            return checkpoint
        raise


def as_stored(read: Sequence[Checkpoint], encoding: str) -> list[Checkpoint]:
    """Return the sources as those of the output are stored: with their codes, if ``encoding`` is ``keep``.

    ``read`` are the sources as a verb plans with them.
    """
    return [one.stored or one if encoding == ENCODINGS[0] else one for one in read]


def with_decoding(
    rows: Sequence[Mapping[str, Any]], opened: Sequence[Checkpoint], encoding: str
) -> list[Mapping[str, Any]]:
    """Return the operations on sources, with one before all others that decodes their codes, if this is asked for."""
    decodes = encoding != ENCODINGS[0] and any(one.codes for one in opened) and DEQUANTIZE not in rows
    return [*([DEQUANTIZE] if decodes else []), *rows]


def encoding_said(encoding: str) -> dict[str, str]:
    """Return the argument ``encoding`` for the recipe; empty for the default."""
    return {} if encoding == ENCODINGS[0] else {"encoding": encoding}


def encoding_notes(opened: Sequence[Checkpoint], encoding: str) -> list[str]:
    """Return a note if decoding was asked for, and none of the sources (after ``read_as``) is quantised."""
    if encoding == ENCODINGS[0] or any(one.stored is not None for one in opened):
        return []
    return [f"--encoding {encoding} changes nothing: {listing([one.path for one in opened], where='')} has no codes"]
