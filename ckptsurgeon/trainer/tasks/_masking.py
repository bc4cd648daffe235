"""What a clip hides from a model, and which of the hidden frames are held against each other.

Spans as in SpecAugment (https://arxiv.org/abs/1904.08779) and wav2vec 2.0, section 3.2
(https://arxiv.org/abs/2006.11477); negatives are other masked frames of the same clip, so never padding.
"""

from __future__ import annotations

import math

import numpy

__all__ = ["masked_frames", "most_masked", "negatives_of"]


def masked_frames(
    frames: int, share: float, length: int, *, fewest: int, chance: numpy.random.Generator
) -> numpy.ndarray:
    """Return the places of the masked frames of a clip, ascending: spans of ``length`` that may overlap.

    There are ``share * frames / length`` of them, rounded up or down by chance, and at least ``fewest``, as far as they
    find different beginnings; none where the clip is not longer than one.
    """
    starts = frames - length + 1
    if starts < 2:
        return numpy.empty(0, numpy.int64)
    spans = min(max(int(share * frames / length + chance.random()), fewest), starts)
    begins = chance.choice(starts, spans, replace=False)
    return numpy.unique(begins[:, None] + numpy.arange(length))


def most_masked(frames: int, share: float, length: int, *, fewest: int) -> int:
    """Return how many frames ``masked_frames`` may give, whatever it draws."""
    starts = frames - length + 1
    if starts < 2:
        return 0
    return min(frames, min(max(math.ceil(share * frames / length), fewest), starts) * length)


def negatives_of(masked: int, number: int, chance: numpy.random.Generator) -> numpy.ndarray:
    """Return for each of ``masked`` frames the ``number`` that it is held against: (masked, number).

    They are drawn evenly, with repeats, from the others, and counted among the masked ones; a single one has itself.
    """
    if masked < 2:
        return numpy.zeros((masked, number), numpy.int64)
    drawn = chance.integers(masked - 1, size=(masked, number))
    return drawn + (drawn >= numpy.arange(masked)[:, None])
