"""Compares two checkpoints tensor by tensor, by headers or values; formats, shards and wrappers may differ."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from ...checkpoint.checkpoint import Checkpoint
from ...planning.keys.pattern_hints import chosen_keys
from ...planning.operations.perform import Weights
from ...tensors.quantised.agreement import QuantisedModule, disagreements
from ...util.notes import notes_about
from ...util.text import escape, natural_key
from .logical import EncodedOtherwise, coded_in_both, encoded_otherwise
from .outline import Outline, outline_of
from .results import Difference, Pair, Tolerance

__all__ = ["compare", "compare_outlines", "decoding_differences"]

Progress = Callable[[int, int], None]
Given = Iterable[str] | None


def compare_outlines(
    first: Outline, second: Outline, *, values: bool = False, include: Given = (), exclude: Given = ()
) -> Difference:
    """Return the difference of two checkpoints by their headers: keys, shapes and dtypes.

    ``values`` only sets the field of this name in the result: it is true if the caller compares the values next.
    ``include`` and ``exclude`` are patterns that select keys. Raises PatternError for a pattern that matches nothing,
    and PlanError if no key is left.
    """
    every = dict.fromkeys((*first.tensors, *second.tensors))
    names = {**second.names, **first.names}
    chosen = chosen_keys(list(every), include, exclude, whose="checkpoint", names=names)
    if len(chosen.keys) < len(every):
        first, second = first.only(frozenset(chosen.keys)), second.only(frozenset(chosen.keys))
    here, there = first.tensors, second.tensors
    removed, same = list[str](), list[str]()
    reshaped, retyped = list[Pair](), list[Pair]()
    for key, info in here.items():
        other = there.get(key)
        if other is None:
            removed.append(key)
        elif info.shape != other.shape:
            reshaped.append(Pair(key, info, other))
        elif info.dtype == other.dtype:
            same.append(key)
        else:
            retyped.append(Pair(key, info, other))
    added = [key for key in there if key not in here]
    said = [note for one in (first, second) for note in notes_about(one.path, one.notes)]
    notes = tuple(dict.fromkeys((*said, *chosen.notes, *decoding_differences(first, second))))
    return Difference(
        first.path, second.path, values, _sorted(added), _sorted(removed), tuple(reshaped), tuple(retyped),
        identical=len(same), notes=notes, same=tuple(same),
        left_out=len(every) - len(chosen.keys),
    )  # fmt: skip


def decoding_differences(first: Outline, second: Outline) -> list[str]:
    """Return a note for each quantisation setting that differs between the checkpoints.

    With different settings, the same quantised codes mean different numbers.
    """
    both = first.tensors.keys() & second.tensors.keys()
    same = coded_in_both(first, second)
    here, there = (
        [QuantisedModule.of(*said) for key, said in one.coded.items() if key in both or said in same]
        for one in (first, second)
    )
    found = disagreements(here, first.quantisation, second.quantisation)
    found += [(name, b, a) for name, a, b in disagreements(there, second.quantisation, first.quantisation)]
    return [
        f"quantised codes mean different numbers in the two checkpoints: {name} is {escape(a)} in "
        f"{escape(first.path)}, {escape(b)} in "
        f"{escape(second.path)}"
        for name, a, b in dict.fromkeys(found)
    ]


def compare(
    first: Checkpoint,
    second: Checkpoint,
    *,
    values: bool = False,
    tolerance: Tolerance | None = None,
    renames: bool = False,
    include: Given = (),
    exclude: Given = (),
    weights: Sequence[Weights] = (),
    progress: Progress | None = None,
) -> Difference:
    """Compare two open checkpoints, or only the tensors that patterns select.

    Reads only headers by default. With ``values``, reads the tensors that are in both checkpoints. With ``renames``,
    reads all tensors, and finds the tensors that the other checkpoint has under another name. If both checkpoints have
    a tensor at the same place of the same file, its bytes are not read. ``weights`` has a function for each checkpoint
    that gives the decoded weight of a quantised tensor. Raises SourceError if a file cannot be read, FormatError for a
    wrong CRC-32 (safetensors has no checksums), and PatternError for a pattern that matches nothing.
    """
    values = values or renames
    outlines, otherwise = (outline_of(first), outline_of(second)), EncodedOtherwise()
    decodes = bool(values and weights and (first.codes or second.codes))
    if decodes:
        otherwise = encoded_otherwise(first, second, weights)
        outlines = otherwise.within(*outlines)
    found = compare_outlines(*outlines, values=values, include=include, exclude=exclude)
    if values:
        from .values import with_changed_codes, with_decoded, with_values  # these modules import numpy

        tolerance = tolerance or Tolerance()
        both = {*found.same, *(pair.key for pair in found.retyped)}
        same_shape = [key for key in first if key in both - otherwise.pairs.keys()]
        found = with_values(found, first, second, same_shape, tolerance=tolerance, progress=progress)
        if decodes:
            found = with_decoded(found, first, second, otherwise, sorted(both, key=natural_key), tolerance)
            found = with_changed_codes(found, first, second, weights, tolerance)
    if renames and (found.changed or found.reshaped or (found.added and found.removed)):
        from .renames import with_renames

        found = with_renames(found, first, second)
    return found


def _sorted(keys: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(keys, key=natural_key))
