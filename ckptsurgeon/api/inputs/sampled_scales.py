"""Notes on scales that make weights of an impossible size, from a sample, for verbs that copy codes unread."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress

from ...checkpoint.checkpoint import Checkpoint
from ...errors import CheckpointError
from ...planning.transplant.by_place import is_embedding, vocabulary_keys
from ...tensors.encodings._encoding import QuantisedTensor
from ...tensors.non_finite import has_non_finite
from ...tensors.odd_scales import NO_OFFSET, ZERO_BLOCKS
from ...util.text import NUMBER_IN_KEY, count, escape, listing
from .dequantising import weights_of
from .sampled_parts import SampledFiles, is_local, middle

__all__ = ["VOCABULARY", "odd_scale_notes_on", "sampled_scale_notes"]

ROLES, LAYERS = 4, 8
"""How many roles (names without numbers) are looked at, and how many tensors of each, at most."""
ROWS, COLUMNS = 64, 128
"""The rows and columns in the middle of a tensor that are decoded.

A layer with 4096 inputs and outputs costs at most 256 kB, as stored rows between the first and the last are read."""
UNSURE = (ZERO_BLOCKS, NO_OFFSET)
"""The kinds of odd scales that only a whole tensor shows."""
VOCABULARY = 4
"""How many embeddings and output layers are looked at. Only their own scales are judged: their sizes are not those of
layers."""


def sampled_scale_notes(checkpoint: Checkpoint, among: Collection[str] | None = None) -> tuple[str, ...]:
    """Return notes on quantised tensors whose scales are odd, or make weights far too large or too small.

    They are those that a verb gives which decodes all tensors; here, a part of at most ``ROLES`` * ``LAYERS`` tensors
    is decoded, and of ``VOCABULARY`` more, of those whose codes have a key in ``among`` (by default all). There are no
    notes if weights are already decoded by the verb, or if files are remote or are deleted after use.
    """
    if checkpoint.stored is not None or not checkpoint.codes or not is_local(checkpoint):
        return ()
    from ...engine.compute.reading import read_part  # imports numpy

    sample, of_tokens, weight_of = SampledFiles(checkpoint), SampledFiles(checkpoint), weights_of(checkpoint)
    every = [one for one in checkpoint.codes.tensors if one.codes and (among is None or one.codes in among)]
    layers = list(_chosen(every))
    chosen = [*layers, *[one for one in every if one not in layers and vocabulary_keys([one.name])][:VOCABULARY]]
    unsound, faults = [], []
    for at, one in enumerate(chosen):
        weight = None
        with suppress(CheckpointError):  # a note says which encodings are not known; a copy does not need to know them
            weight = weight_of(one.codes)
        if weight is None or len(weight.info.shape) < 2 or not weight.info.numel:
            continue
        try:
            files = sample if at < len(layers) else of_tokens
            values = read_part(files, weight.info, middle(weight.info.shape, ROWS, COLUMNS))
            if has_non_finite(weight.info.dtype, values.tobytes()):
                unsound.append(one.name)
        except CheckpointError as error:
            faults.append(error.message)
    sample.odd_scales.add_all_but_sizes(of_tokens.odd_scales)
    for kind in UNSURE:
        sample.odd_scales.names[kind].clear()
    number = len(checkpoint.codes.tensors) if among is None else len(every)
    are = " that are copied" if among is not None else ""
    of = f" (in a sample of {len(chosen)} of {number:,} quantised tensors{are})" if len(chosen) < number else ""
    path = escape(checkpoint.path)
    notes = [*sample.odd_scales.notes(checkpoint.path)]
    if unsound:
        number_of = count(len(unsound), "quantised tensor")
        notes.append(
            f"{path}: {number_of} {'has' if len(unsound) == 1 else 'have'} NaN or infinite values: {listing(unsound)}"
        )
    notes += [f"{path}: {faults[0].rstrip(chr(46))}"] if faults else []
    return tuple(f"{note}{of}" for note in notes)


def odd_scale_notes_on(checkpoint: Checkpoint) -> tuple[str, ...]:
    """Return notes on odd scales of what was decoded of a checkpoint; if there are none, on those of a sample."""
    return checkpoint.odd_scales.notes(checkpoint.path) or sampled_scale_notes(checkpoint)


def _chosen(every: Iterable[QuantisedTensor]) -> Iterator[QuantisedTensor]:
    """Yield the quantised tensors to look at: some of each of the roles that the most tensors have.

    They are of other layers in each role, so that a layer that is out of family is looked at in one of them.
    """
    roles: dict[str, list[QuantisedTensor]] = defaultdict(list)
    for one in every:
        if not is_embedding(one.name):
            roles[NUMBER_IN_KEY.sub("#", one.name)].append(one)
    most = sorted(roles.values(), key=len, reverse=True)[:ROLES]
    for role, some in enumerate(most):
        number = min(LAYERS, len(some))
        yield from (some[(at * len(most) + role) * len(some) // (number * len(most))] for at in range(number))
