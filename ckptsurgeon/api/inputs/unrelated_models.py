"""Makes notes on models that were not trained from their base, by a sample of the weights of both."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from math import isfinite

from ...checkpoint.checkpoint import Checkpoint
from ...errors import CheckpointError
from ...planning.transplant.by_place import EMBEDDING, HEAD
from ...util.text import escape, percent
from .sampled_parts import is_local, is_sampled, middle, numbers, spread

__all__ = ["SAME", "unrelated_notes"]

MATRICES, FEWEST = 8, 3
"""At most how many matrices are compared, and how many of them must be unrelated for a note."""
DIFFERENCE, COSINE = 0.6, 0.5
"""Two matrices are unrelated if their relative difference is above ``DIFFERENCE`` and their cosine below ``COSINE``.

Fine-tuning changes weights by some per cent; two models that were trained apart have a cosine of about 0.
"""
SAME, WITHOUT_BASE = "the same model as ", 0.2
"""The value of ``called`` if there is no base and models are compared with the first one; the limit of the cosine then.

This limit replaces ``COSINE``. It is smaller, because checkpoints of one training may be far apart.
"""


def unrelated_notes(base: Checkpoint, models: Iterable[Checkpoint], called: str = "the base ") -> Iterator[str]:
    """Yield a note on each model most of whose weights have nothing in common with those of ``base``.

    A part of at most ``MATRICES`` matrices of each model is read; files that are remote, or are deleted after use, are
    not read. In the notes, the words ``called`` precede the name of ``base``.
    """
    if not is_local(base):
        return
    for one in models:
        found = list(_differences(base, one)) if is_local(one) else []
        largest = WITHOUT_BASE if called == SAME else COSINE
        apart = sorted(each for each in found if each[0] > DIFFERENCE and each[1] < largest)
        if len(apart) >= FEWEST and 2 * len(apart) > len(found):
            difference, cosine = apart[len(apart) // 2]
            yield (
                f"{escape(one.path)} was perhaps not trained from {called}{escape(base.path)}: {len(apart)} of "
                f"{len(found)} compared matrices differ by about {percent(difference)} of the norm of the "
                f"matrix in {escape(base.path)}, with a cosine of {cosine:.2f}"
            )


def _differences(base: Checkpoint, model: Checkpoint) -> Iterator[tuple[float, float]]:
    """Yield (norm of the difference / norm of the base's matrix, cosine) for some matrices of both models."""
    import numpy as np

    for key in spread(_shared(base, model), MATRICES):
        with suppress(CheckpointError):  # the verb reports a tensor that cannot be read
            box = middle(base[key].shape)
            ours, theirs = (numbers(each, key, box).reshape(-1) for each in (base, model))
            size, other = float(np.linalg.norm(ours)), float(np.linalg.norm(theirs))
            if size and other and isfinite(size) and isfinite(other):
                yield float(np.linalg.norm(theirs - ours)) / size, float(ours @ theirs) / (size * other)


def _shared(base: Checkpoint, model: Checkpoint) -> Sequence[str]:
    """Return the keys of matrices that both models have in the same shape, except embeddings and output layers."""
    return [
        key
        for key, info in base.items()
        if is_sampled(info) and key in model and model[key].shape == info.shape and is_sampled(model[key])
        and not EMBEDDING.search(key) and not HEAD.search(key)
    ]  # fmt: skip
