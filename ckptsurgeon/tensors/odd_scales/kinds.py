"""The kinds of scales, zero points and codes that no quantisation method writes, such as negative scales."""

from __future__ import annotations

from ...util.note_kind import NoteKind
from ...util.notes import Note

__all__ = [
    "BELOW", "CLIPPED", "EXCHANGED", "EXPLAIN", "HUGE", "NARROW", "NEGATED", "NEGATIVE", "NESTED", "NO_OFFSET",
    "OPPOSED", "ROUNDED", "SAID", "SIGNED_CODES", "UNSET", "ZERO", "ZERO_BLOCKS",
]  # fmt: skip

ZERO, NEGATIVE, HUGE, NO_OFFSET = "zero", "negative", "huge", "no offset"
"""Kinds of implausible scales (0, negative, too large), and a kind of implausible zero points or biases (all 0)."""
NEGATED, EXCHANGED, OPPOSED, NARROW, NESTED, UNSET = "negated", "exchanged", "opposed", "narrow", "nested", "unset"
SIGNED_CODES, CLIPPED, ROUNDED, BELOW = "signed codes", "clipped", "rounded", "below"
"""Further kinds of implausible scales and codes.

``NEGATED``: all scales are negative. ``EXCHANGED``: MLX's scales and biases are swapped. ``OPPOSED``: MLX's scales have
the sign of their biases. ``NARROW``: MLX's scales are too small for their biases. ``NESTED``: second-level scales
(double quantisation) are all 0. ``UNSET``: scales of bitsandbytes are all 1. ``SIGNED_CODES``: most codes are at the
ends of their range. ``CLIPPED``: too many codes equal the lowest or the highest one. ``ROUNDED``: the lowest bits of
packed words are lost. ``BELOW``: codes of 8 bits are below the lowest code that the encoding has, -127.
"""
SAID = {
    ZERO: Note(NoteKind.QUANTISATION, "scales of 0 for codes that are not zero, so that these weights become 0"),
    HUGE: "scales that make weights larger than 10,000: perhaps they are inverse scales, or those of another layer",
    NO_OFFSET: "zero points or biases that are all 0, so that nearly all weights of a group have one sign",
    NEGATIVE: "negative scales, which the encoding does not have, so that these weights change their sign",
    NEGATED: "scales that are all negative: perhaps their signs were changed",
    EXCHANGED: "scales that are larger than their biases: perhaps scales and biases are swapped",
    OPPOSED: "scales with the same sign as their biases: perhaps the signs of scales or biases were changed",
    NARROW: "scales so small next to their biases that the weights of a group hardly differ: perhaps they belong "
    "to codes of more bits",
    UNSET: "scales that are all exactly 1: perhaps they were never set",
    SIGNED_CODES: "codes with peaks at both ends of their range and few in its middle: perhaps they are in two's "
    "complement, without the offset that is subtracted from codes",
    CLIPPED: Note(
        NoteKind.QUANTISATION,
        "codes of which the lowest and the highest are far more frequent than those next to them: perhaps larger "
        "weights were clipped, because the scales were too small when the codes were made",
    ),
    ROUNDED: Note(
        NoteKind.BROKEN_CODES,
        "packed words whose lowest bits are nearly always 0, unlike their highest bits: were the packed words cast "
        "to a floating-point dtype and back?",
    ),
    BELOW: Note(
        NoteKind.QUANTISATION,
        "codes of -128, although the encoding has codes of -127 to 127 only: perhaps some bytes were changed, or "
        "another program rounded the weights",
    ),
    NESTED: "scales of scales that are all 0, so that all blocks have the same scale",
}
ZERO_BLOCKS = "zero blocks"
"""The kind of a GGUF tensor with a part in which all scales are 0, although its codes differ.

Blocks of tiny numbers have such scales, too. So this is implausible only if no part of the tensor has a size class.
"""
EXPLAIN = (ROUNDED, NO_OFFSET, SIGNED_CODES, EXCHANGED, OPPOSED, NARROW)
"""These kinds of implausible scales and codes also shift the mean: their matrices get no further note on the mean."""
