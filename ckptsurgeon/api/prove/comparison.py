"""Compares the outputs of two networks, and says which differences rounding explains."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, TypeAlias, TypeVar

from ...analysis.prove.figures import Prediction, distance, prediction
from ...analysis.prove.proof import BlockResult, Proof, ProvedNetwork
from ...errors import ConfigError, PlanError
from ...util.notes import with_prefix, without_prefix
from ...util.text import count, escape, listing, percent
from .running import recorded_run

if TYPE_CHECKING:
    from torch import Tensor

    from .blocks import Outputs, Place, Recording
    from .inputs import Inputs
    from .network import Network
    from .vocabularies import SharedTokens

__all__ = ["compared", "described", "network_notes", "parameters_of"]

T = TypeVar("T")
Pair: TypeAlias = tuple[T, T]

MAIN = ("", 0, 0)
"""The ``Place`` (key in the recorded outputs) of the main output of the whole network."""
STRICT = 1.25
"""If a tensor differs by more than rounding explains, outputs may differ by this multiple of the measured error.

The measured error is that of a run with weights that were changed at random, by as much as rounding may have changed
them. If no tensor differs by more than rounding explains, the multiple is ``weights.FACTOR``.
"""
FEW = 8.0
"""For an output of n numbers, ``STRICT`` or ``FACTOR`` is multiplied by 1 + FEW / sqrt(n): small outputs vary more.

The ratio of two sums of n squared normal variables has the distribution F(n, n). The factor is about the square root of
the 99.9 % quantile of this distribution: 3.5 for 8 numbers, 1.5 for 64, 1.1 for 1000.
"""
FLOOR = 1e-6
"""This number is added to each allowed error, because sums may be computed in another order."""
SHOWN = 8
_PREDICTS = re.compile(r"For(?!PreTraining$)|LMHead|DoubleHeads")
"""Matches names of classes of transformers whose main outputs are logits. GPT2LMHeadModel has no "For" in its name."""


def compared(
    networks: list[Network], inputs: Inputs, runs: list[Recording], shared: SharedTokens | None, limit: int
) -> Proof:
    """Return the result of ``prove`` from the recorded runs of two networks.

    ``inputs`` are the inputs of the first network. ``shared`` are the tokens that both networks have; None if their
    token lists are equal. ``limit`` is the memory for parameters in bytes.
    """
    from .hidden_differences import with_unseen
    from .layer_pairs import with_paired_layers
    from .weights import beyond_rounding, changed_in, differing, not_reached, other_shapes

    networks, runs, paired = with_paired_layers(networks, runs)
    notes = [*network_notes(networks, shared), *paired]
    pairs = _pairs(runs[0].outputs, runs[1].outputs, shared, notes)
    notes += _output_notes(pairs)
    distances = {place: distance(*pair) for place, pair in pairs.items()}
    allowed: Mapping[Place, float] = {}
    if not all(one.same for one in distances.values()):
        allowed = _allowed(networks, inputs, runs[0].outputs, limit)
    results = {
        place: BlockResult(place[0], place[1], found, allowed.get(place, math.nan), place[2])
        for place, found in distances.items()
    }
    output = results.pop(MAIN)
    proof = Proof(
        described(networks[0]), described(networks[1]), inputs.said, tuple(results.values()), output,
        prediction=_prediction(networks, pairs[MAIN]), differing=len(differing(networks)),
        unused=tuple(not_reached(networks, runs[0])), notes=tuple(notes),
    )  # fmt: skip
    if proof.drift is None:
        return with_unseen(proof, networks, shared, inputs)
    changed = changed_in(networks, proof.drift)
    inside = {one.key for one in changed}
    apart = (*other_shapes(networks, shared), *beyond_rounding(networks, shared))
    others = tuple(key for key in apart if key not in inside)
    return replace(proof, changed=changed, changed_elsewhere=others)


def _output_notes(pairs: Mapping[Place, Pair[Tensor]]) -> Iterator[str]:
    """Yield a note if some numbers of the first network's output are not finite, so that they cannot be compared.

    ``pairs`` has the outputs of both networks. Raises PlanError if the networks have no outputs of the same shape,
    ConfigError if no number of the first network's output is finite.
    """
    if MAIN not in pairs:
        raise PlanError("the networks have no output that can be compared.", hint="Give two networks of the same kind.")
    if not bool(pairs[MAIN][0].isfinite().any()):
        raise ConfigError(
            "the first network computes only NaN or infinite values for these inputs, so nothing can be compared.",
            hint="Find weights that are not finite with ckpt check, or give other inputs with --inputs.",
        )
    finite = float(pairs[MAIN][0].isfinite().double().mean())
    if finite < 1:
        yield f"{percent(1 - finite)} of the first network's output is NaN or infinite: this part is not compared"


def _pairs(first: Outputs, second: Outputs, shared: SharedTokens | None, notes: list[str]) -> dict[Place, Pair[Tensor]]:
    """Return {``Place`` in the first network: outputs of both networks there}, in the order of the run.

    The output of a block is left out if the other network lacks this block, or if the two outputs have different
    shapes; then a note is appended to ``notes``. If the networks have no block name in common, outputs are paired in
    the order of the run. If the token lists differ (``shared``), logits are reduced to the shared tokens.
    """
    from .blocks import OUTPUT

    common = [place for place in first if place in second]
    names = {place: place for place in common}
    if all(place[0] == OUTPUT for place in common) and len(common) < len(first) == len(second):
        names = dict(zip(first, second, strict=True))
        notes.append("the blocks of the two networks have different names: they are compared in the order of the run")
    elif len(common) < max(len(first), len(second)):
        alone = [place[0] or "the output" for place in first.keys() ^ second.keys()]
        notes.append(
            f"only one of the networks has {listing(sorted(set(alone)), SHOWN, where='')}, so it is not compared"
        )
    found, other = {}, []
    for place, there in names.items():
        pair = first[place], second[there]
        pair = shared.columns(*pair) if shared is not None else pair
        if pair[0].shape == pair[1].shape:
            found[place] = pair
        elif place[0] != OUTPUT:
            other.append(place[0])
    if other:
        notes.append(
            "blocks that are not compared, because their outputs have different shapes: "
            f"{listing(list(dict.fromkeys(other)), SHOWN, where='')}"
        )
    return found


def network_notes(networks: list[Network], shared: SharedTokens | None) -> Iterator[str]:
    """Yield the notes on both networks; ``shared`` are the tokens that both have, if their token lists differ."""
    notes = [
        [without_prefix(f"{escape(one.path)}: ", note) for note in (*one.notes, *one.value_notes())] for one in networks
    ]
    yield from (with_prefix("both: ", note) for note in notes[0] if note in notes[1])
    for network, own, others in zip(networks, notes, reversed(notes), strict=True):
        yield from (with_prefix(f"{network.path}: ", note) for note in own if note not in others)
    if shared is not None:
        yield f"the token lists differ: only the {count(len(shared.first), 'token')} that are in both are compared"


def _allowed(networks: list[Network], inputs: Inputs, plain: Outputs, limit: int) -> dict[Place, float]:
    """Return the allowed error of each block's output in the first network: the error that rounding may cause.

    This error is measured by a second run of the first network. In this run, the tensors that differ between the
    networks are changed at random, as much as rounding may have changed them. ``plain`` has the outputs of the first
    run.
    """
    from .network import rounding_between
    from .weights import FACTOR, beyond_rounding, differing

    first, second = networks
    apart = set(differing(networks))
    factor = FACTOR if next(beyond_rounding(networks), None) is None else STRICT

    def moved(keys: Sequence[str]) -> dict[str, Tensor]:
        values = first.read(keys)
        for key in apart & values.keys():
            if values[key].is_floating_point():
                values[key] = rounding_between(first, second, key).moved(key, values[key])
        return values

    first.load_buffers(moved)
    try:
        found = recorded_run(first, inputs, moved, limit).outputs
    finally:
        first.load_buffers()
    return {
        place: factor * (1 + FEW / math.sqrt(one.numel())) * distance(one, found[place]).error + FLOOR
        for place, one in plain.items() if place in found
    }  # fmt: skip


def described(network: Network) -> ProvedNetwork:
    """Return the path, the class, the size and the dtypes of a network."""
    return ProvedNetwork(network.path, type(network.module).__name__, parameters_of(network), network.dtypes)


def parameters_of(network: Network) -> int:
    """Return the number of values of all parameters of a network."""
    return sum(one.numel() for one in network.module.parameters())


def _prediction(networks: list[Network], pair: tuple[Tensor, Tensor]) -> Prediction | None:
    names = [type(network.module).__name__ for network in networks]
    predicts = all(_PREDICTS.search(name) for name in names)
    return prediction(*pair) if predicts and pair[0].dim() > 1 and bool(pair[0].isfinite().all()) else None
