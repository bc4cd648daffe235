"""The option ``encoding``: how quantised tensors are stored in the output.

Verbs that compute new values decode quantised sources first. With ``keep``, the results are then encoded like the
source; with ``dequantize``, they are stored as plain numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ...checkpoint.checkpoint import Checkpoint
from ...errors import ConfigError, PlanError
from ...planning.operations.markers import marker_notes, without_markers
from ...tensors.torch_quantisers import notes_on_activations
from ...util.text import escape, listing
from .operations import operate

__all__ = [
    "DEQUANTIZE",
    "ENCODINGS",
    "as_stored",
    "check_encoding",
    "decoded",
    "encoding_notes",
    "read_as",
    "with_decoding",
]

ENCODINGS = ("keep", "dequantize")
"""``keep`` stores changed weights in their old encoding; ``dequantize`` stores the decoded weights."""
DEQUANTIZE: Mapping[str, Any] = {"dequantize": "**"}
"""The operation that replaces all quantised tensors by their decoded weights."""


def check_encoding(encoding: str) -> None:
    """Raise ConfigError if ``encoding`` is neither "keep" nor "dequantize"."""
    if encoding not in ENCODINGS:
        raise ConfigError(f"--encoding {escape(encoding)} is unknown.", hint=f"Use {' or '.join(ENCODINGS)}.")


def read_as(checkpoint: Checkpoint, encoding: str) -> Checkpoint:
    """Return a source with its quantised tensors decoded, for planning.

    If a tensor cannot be decoded and ``encoding`` is ``keep``, the source is returned unchanged: its codes may still be
    copied. For another ``encoding``, PlanError is raised.
    """
    if not checkpoint.codes:
        return checkpoint
    try:
        read = decoded(checkpoint)
    except PlanError:
        if encoding == ENCODINGS[0]:
            return checkpoint
        raise
    if encoding == ENCODINGS[0]:
        return read
    plain = without_markers(checkpoint, read)
    return read.holding(plain) if len(plain) < len(read) else read


def decoded(checkpoint: Checkpoint) -> Checkpoint:
    """Return a checkpoint with its quantised tensors decoded; raises PlanError if one cannot be decoded."""
    return operate([checkpoint], [DEQUANTIZE])[0].checkpoint


def as_stored(read: Sequence[Checkpoint], encoding: str) -> list[Checkpoint]:
    """Return the sources as the output will store them: with their codes if ``encoding`` is "keep", else decoded.

    ``read`` are the sources as ``read_as`` returned them: the attribute ``stored`` of a decoded source is the source
    with codes.
    """
    return [one.stored or one if encoding == ENCODINGS[0] else one for one in read]


def with_decoding(rows: Sequence[Mapping[str, Any]], opened: Sequence[Checkpoint]) -> list[Mapping[str, Any]]:
    """Return the operations ``rows``, preceded by one that decodes all sources.

    This operation is not added if no source in ``opened`` is quantised, or if ``rows`` already contains it.
    """
    decodes = any(one.codes for one in opened) and DEQUANTIZE not in rows
    return [*([DEQUANTIZE] if decodes else []), *rows]


def encoding_notes(opened: Sequence[Checkpoint], encoding: str) -> list[str]:
    """Return notes on the effect of "dequantize": no source was quantised, or scales of activations are kept.

    There are no notes for any other ``encoding``. ``opened`` are the sources as ``read_as`` returned them.
    """
    if encoding == ENCODINGS[0]:
        return []
    if any(one.stored is not None for one in opened):
        notes = [note for one in opened for note in notes_on_activations(one)]
        stored = [(one.stored, one) for one in opened if one.stored is not None]
        notes += [note for old, one in stored for note in marker_notes(old, without_markers(old, one))]
        return list(dict.fromkeys(notes))
    names = listing([one.path for one in opened], where="")
    return [f"--encoding {encoding} changes nothing: there are no quantised tensors in {names}"]
