"""Notes on scales that make weights far too large or small, from a sample, for verbs that do not decode codes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import islice
from math import lcm

from ...checkpoint.checkpoint import Checkpoint
from ...errors import CheckpointError
from ...planning.transplant.by_place import is_embedding, vocabulary_keys
from ...tensors.dtypes import has_non_finite
from ...tensors.info import Decoded, TensorInfo
from ...tensors.odd_scales.kinds import NO_OFFSET, ZERO_BLOCKS
from ...tensors.odd_scales.layer_groups import outlying_layers
from ...tensors.odd_scales.notes import OddScales
from ...tensors.odd_scales.sizes import LAYER, powers_of
from ...tensors.quantised.encoding import QuantisedTensor
from ...util.note_kind import NoteKind
from ...util.notes import Note
from ...util.text import NUMBER_IN_KEY, count, escape, listing
from .dequantising import weights_of
from .sampled_parts import SampledFiles, is_local, middle, rows_of_group

__all__ = ["VOCABULARY", "odd_scale_notes_on", "sampled_scale_notes"]

ROLES, LAYERS = 8, 8
"""At most ``ROLES`` roles (names without layer numbers) are sampled, with at most ``LAYERS`` tensors each."""
ROWS, COLUMNS = 64, 128
"""How many rows and columns in the middle of a tensor are decoded.

Of a layer with 4096 inputs and outputs, at most 256 kB are read: all stored rows from the first to the last one."""
WORDS = 32
"""The first decoded row is a multiple of this, so that a word of packed zero points begins there."""
WITH_ZEROS = ("gptq", "awq", "packed")
GROUPS, WIDEST = 2, 512
"""In the encodings ``WITH_ZEROS``, zero points or biases are compared with the codes of a sample.

The sample has ``GROUPS`` groups of a row, if these have at most ``WIDEST`` columns together.
"""
LONGEST = 8192
"""Rows with one scale each are decoded whole, up to this length, to see whether they have the largest code.

The stored rows are read in any case, up to 512 kB of a layer."""
UNSURE = (ZERO_BLOCKS, NO_OFFSET)
"""The kinds of implausible scales that cannot be found in a part of a tensor."""
VOCABULARY = 4
"""The largest number of embeddings and output layers that are sampled.

The magnitudes of their values are not compared with those of layers.
"""


def sampled_scale_notes(checkpoint: Checkpoint, among: Collection[str] | None = None) -> tuple[Note, ...]:
    """Return notes on quantised tensors with implausible scales, or scales that make weights far too large or small.

    A verb that decodes all tensors gives the same notes. Here, parts of at most ``ROLES`` * ``LAYERS`` tensors of
    layers, and of at most ``VOCABULARY`` embeddings and output layers, are decoded. ``among`` has the keys of the codes
    to consider, by default all. There are no notes if weights are already decoded by the verb, or if files are remote
    or are deleted after use.
    """
    if checkpoint.stored is not None or not checkpoint.codes or not is_local(checkpoint):
        return ()
    every = [one for one in checkpoint.codes.tensors if one.codes and (among is None or one.codes in among)]
    roles = _by_role(every)
    sample, of_tokens, layers = _Sample(checkpoint), _Sample(checkpoint), list(_chosen(roles))
    sample.look_at(layers)
    layers += (doubtful := _doubtful(sample.odd_scales, every, layers))
    sample.look_at(doubtful)
    known = {one.name for one in layers}
    tables = [one for some in roles if vocabulary_keys([some[0].name]) for one in some if one.name not in known][
        :VOCABULARY
    ]
    of_tokens.look_at(tables)
    of_tokens.look_at(tables, is_end=True)  # the last rows show whether a row was removed from codes or scales only
    chosen, unsound = [*layers, *tables], sample.unsound + of_tokens.unsound
    faults = sample.faults + of_tokens.faults
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
        have = f"{number_of} {'has' if len(unsound) == 1 else 'have'} NaN or infinite values"
        notes.append(Note(NoteKind.SERIOUS, f"{path}: {have}: {listing(unsound)}"))
    notes += [Note(NoteKind.QUANTISATION, f"{path}: {faults[0].rstrip(chr(46))}")] if faults else []
    return tuple(note.reworded(f"{note}{of}") for note in notes)


class _Sample(SampledFiles):
    """Decodes parts of quantised tensors, and records the faults that it finds.

    ``unsound`` has the names of tensors with NaN or inf, and ``faults`` the messages of errors.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__(checkpoint)
        self.unsound, self.faults = list[str](), list[str]()
        self._weight_of = weights_of(checkpoint)

    def look_at(self, tensors: Iterable[QuantisedTensor], *, is_end: bool = False) -> None:
        """Decode the middle of each tensor, or its last rows; record NaN, inf, implausible scales and errors."""
        from ...engine.compute.reading import read_part  # imports numpy

        for one in tensors:
            weight = None
            with suppress(CheckpointError):  # a note says which encodings are not known; a copy need not know them
                weight = self._weight_of(one.codes)
            if weight is None or len(weight.info.shape) < 2 or not weight.info.numel:
                continue
            try:
                rows = max(ROWS, group := rows_of_group(weight.info))
                multiple = lcm(WORDS, group)
                box = middle(weight.info.shape, rows, _columns(weight.info), multiple=multiple, is_end=is_end)
                values = read_part(self, weight.info, box)
                if has_non_finite(weight.info.dtype, values.tobytes()) and one.name not in self.unsound:
                    self.unsound.append(one.name)
            except CheckpointError as error:
                self.faults.append(error.message)


def _columns(weight: TensorInfo) -> int:
    """Return the number of columns of a quantised weight that are decoded."""
    made = weight.made
    if isinstance(made, Decoded) and made.encoding == "scaled":
        own = int(dict(made.facts)[f"step{len(weight.shape) - 1}"])
        return COLUMNS if own > LONGEST else own if own * GROUPS > WIDEST else own * max(GROUPS, COLUMNS // own)
    if not isinstance(made, Decoded) or made.encoding not in WITH_ZEROS:
        return COLUMNS
    wanted = GROUPS * int(dict(made.facts)["group"])
    return wanted if COLUMNS < wanted <= WIDEST else COLUMNS


def odd_scale_notes_on(checkpoint: Checkpoint) -> tuple[Note, ...]:
    """Return the notes on implausible scales that were found when quantised tensors of a checkpoint were decoded.

    If there are none, a sample of its quantised tensors is decoded, and the notes on this sample are returned.
    """
    return checkpoint.odd_scale_notes or sampled_scale_notes(checkpoint)


def _doubtful(
    odd: OddScales, every: Iterable[QuantisedTensor], looked_at: Sequence[QuantisedTensor]
) -> list[QuantisedTensor]:
    """Return further tensors to decode: those of each layer in which a sampled tensor is far too large or too small.

    In a large model, only one tensor of each layer is in the sample. If all tensors of a layer are far larger or
    smaller than those of other layers, their scales are wrong. ``every`` has all quantised tensors, and ``looked_at``
    the sampled ones. ``odd`` has the scales that the decoder found implausible.
    """
    powers = powers_of([odd.of(one.name for one in looked_at)])
    layers = {_layer_of(name) for names in outlying_layers(powers, LAYER, fewest=1) for name in names}
    known = {one.name for one in looked_at}
    roles = {NUMBER_IN_KEY.sub("#", name) for name in known}
    found = (
        one for one in (every if layers else ())
        if _layer_of(one.name) in layers and one.name not in known and NUMBER_IN_KEY.sub("#", one.name) in roles
    )  # fmt: skip
    return list(islice(found, ROLES * LAYERS))


def _layer_of(name: str) -> str:
    found = NUMBER_IN_KEY.search(name)
    return name[: found.end()] if found is not None else ""


def _by_role(every: Iterable[QuantisedTensor]) -> list[list[QuantisedTensor]]:
    """Return the quantised tensors in lists, one for each role: the name without numbers (``layers.#.q_proj``)."""
    roles: dict[str, list[QuantisedTensor]] = defaultdict(list)
    for one in every:
        roles[NUMBER_IN_KEY.sub("#", one.name)].append(one)
    return list(roles.values())


def _chosen(roles: Iterable[list[QuantisedTensor]]) -> Iterator[QuantisedTensor]:
    """Yield the quantised tensors to sample: some of each of the roles that have the most tensors.

    Different roles are sampled in different layers, so that more layers are covered.
    """
    layers = [some for some in roles if not is_embedding(some[0].name)]
    most = sorted(layers, key=len, reverse=True)[:ROLES]
    for role, some in enumerate(most):
        number = min(LAYERS, len(some))
        yield from (some[(at * len(most) + role) * len(some) // (number * len(most))] for at in range(number))
