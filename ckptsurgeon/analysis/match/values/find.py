"""Finds by content which tensors of two checkpoints of one network correspond, and proposes rules and operations.

First, samples of all tensors are compared. Tensors without an equal sample are read, and the fingerprints of their rows
and columns are compared. For the remaining tensors, fingerprints that do not depend on the order of elements are
compared. At the end, all proposed pairs of tensors are compared completely, block by block.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from ....checkpoint.checkpoint import Checkpoint
from ....engine.prefetch import fetch_tensors, no_progress
from ....tensors.info import TensorInfo
from ....util.text import count
from ..operations.assemble import LEFT_OUT, Answer, assembled
from ..operations.propose import without_transposed_note
from ..proposal import Proposal
from .biases import with_biases
from .compared_tensors import Pairs, Side
from .line_fingerprints import HALVES, agreement, common_dtype, is_comparable
from .rearranged import rearranged, slices_rearranged, turned_copies, vector_stacks
from .relations import WHY, relations
from .same import pair_constants, pair_equals, reshapes
from .stacks import of_stacks

__all__ = ["with_values"]

_NOT_SEARCHED = (
    "between float16 and bfloat16, permuted vectors are not searched, since several elements have the same value in "
    "bfloat16, and permuted tensors of values under 0.0001 may not be found: compare each checkpoint with a more "
    "precise one"
)
Progress = Callable[[int, int], None]


def with_values(
    found: Proposal, source: Checkpoint, destination: Checkpoint, progress: Progress | None = None
) -> Proposal:
    """Return the proposal ``found`` with the rules and operations that values show, instead of its own.

    Tensors whose values cannot be compared, such as blocks of GGUF, keep the partner that their names show.
    """
    both = (source, destination)
    fetch_tensors(
        ((one, info) for one in both for info in one.values() if is_comparable(info)), progress or no_progress
    )
    dtype = _common(both)
    pairs = Pairs(Side(source, dtype), Side(destination, dtype), is_rounded=_is_rounded(both))
    _search(pairs, found.names)
    names, changes = pairs.names, [*pairs.changes, *reshapes(pairs)]
    plain = {old: new for old, new in names.items() if source[old].shape == destination[new].shape}
    evidence = dict.fromkeys(plain, WHY)
    by_name = _not_comparable(found, both, {*plain.values()})
    answer = Answer({**plain, **by_name}, {**evidence, **{key: found.evidence[key] for key in by_name}}, changes)

    def agrees(info: TensorInfo, key: str) -> str:
        return "not compared" if key in named else agreement(source, info, destination, destination[key])

    named = {*by_name.values()}
    bare = replace(without_transposed_note(found, source), ambiguous_keys={}, ambiguous={}, open=())
    made = assembled(bare, answer, dict(source), dict(destination), agrees=agrees)
    return _judged(made, both, named)


def _common(both: Sequence[Checkpoint]) -> str:
    """Return the least precise floating-point type of both checkpoints, in which fingerprints are computed."""
    dtype = "float64"
    for checkpoint in both:
        for key, info in checkpoint.items():
            if is_comparable(info) and key not in checkpoint.codes.by_key:
                dtype = common_dtype(dtype, info.dtype) or dtype
    return dtype


def _search(pairs: Pairs, expected: Mapping[str, str]) -> None:
    """Add the corresponding tensors to ``pairs``, the most certain first; ``expected`` are pairs that names show."""
    source, destination = pairs.here.checkpoint, pairs.there.checkpoint
    pair_equals(pairs, expected)
    lines = list(relations(*pairs.matrices(), source))
    pairs.changes = with_biases(
        [*pairs.changes, *of_stacks(lines, source, destination)], source, destination, pairs.names
    )
    pairs.changes += rearranged(pairs)
    pairs.changes += of_stacks(list(slices_rearranged(pairs)), source, destination)
    pairs.changes += vector_stacks(pairs)
    pair_constants(pairs, expected)
    pairs.changes += turned_copies(pairs)


def _not_comparable(found: Proposal, both: Sequence[Checkpoint], made: set[str]) -> dict[str, str]:
    """Return the pairs of ``found`` whose values cannot be compared.

    Pairs with a destination key in ``made`` are left out.
    """
    source, destination = both
    return {
        old: new
        for old, new in found.names.items()
        if new not in made and not (is_comparable(source[old]) and is_comparable(destination[new]))
    }


def _is_rounded(both: Sequence[Checkpoint]) -> bool:
    """Return whether one checkpoint has float16 and no bfloat16, and the other has bfloat16."""
    halves = [{info.dtype for info in checkpoint.values()} & HALVES for checkpoint in both]
    return any(halves[side] == {"float16"} and "bfloat16" in halves[1 - side] for side in (0, 1))


def _judged(found: Proposal, both: Sequence[Checkpoint], named: set[str]) -> Proposal:
    """Return a proposal with a note on the tensors whose values agree (``found.agreed``).

    The rules and operations are left out if no matrix agrees or, for a destination without matrices, if no tensor
    agrees. ``named`` has the keys that are paired by their names alone: their values are not compared.
    """
    destination = both[1]
    agreed = {key: said for key, said in found.agreed.items() if key not in named}
    matrices = {key for key, info in destination.items() if len(info.shape) > 1 and info.numel > 1}
    of_weight = [key for key in agreed if key in matrices] if matrices else list(agreed)
    coded = [one for one in both if one.codes]
    notes = list(found.notes)
    notes += [
        f"{one.path} is quantised: its codes and scales are compared as stored, and operations do not use them; "
        "to compare decoded values, first run ckpt convert --dequantize"
        for one in coded
    ]
    if named:
        notes.append(
            f"{count(len(named), 'tensor')} cannot be compared, and {'is' if len(named) == 1 else 'are'} paired by "
            f"name only"
        )
    if not of_weight:
        tried = any(note.startswith(LEFT_OUT) for note in notes)
        why = "" if tried else "the two checkpoints hold different networks, and "
        notes.insert(0, f"nothing agrees by value: {why}nothing is proposed")
        return replace(
            found, matches=(), names={}, rules=(), operations=(), made={}, agreed={}, evidence={}, undecided=0,
            unmatched=dict(both[0]), missing=dict(destination), notes=tuple(notes),
        )  # fmt: skip
    cast, rounded = (sum(said == how for said in agreed.values()) for how in ("cast", "rounded"))
    exact = len(agreed) - cast - rounded
    said = f"{count(exact, 'tensor')} {'agrees' if exact == 1 else 'agree'} bit for bit"
    said += f", {cast} within the rounding of a cast to the less precise dtype" if cast else ""
    said += f", {rounded} within the rounding of float16 and bfloat16" if rounded else ""
    if found.missing and _is_rounded(both):
        notes.insert(0, _NOT_SEARCHED)
    notes.insert(0, f"values were compared: {said}, of {len(destination)} in the destination")
    return replace(found, agreed=agreed, notes=tuple(notes))
