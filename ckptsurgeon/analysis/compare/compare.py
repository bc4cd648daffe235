"""Compares two checkpoints, tensor by tensor; formats, shards and wrappers do not matter."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from ...checkpoint.checkpoint import Checkpoint
from ...planning.keys.hints import chosen_keys
from ...tensors.encodings._agreement import QuantisedModule, disagreements
from ...util.text import escape, natural_key
from .difference import Difference, Pair, Tolerance
from .outline import Outline, outline_of

__all__ = ["compare", "compare_outlines"]

Progress = Callable[[int, int], None]
Given = Iterable[str] | None


def compare_outlines(
    first: Outline, second: Outline, *, values: bool = False, include: Given = (), exclude: Given = ()
) -> Difference:
    """Compare two checkpoints by their headers; ``values`` is set if their values are compared next.

    ``include`` and ``exclude`` select keys. Raises PatternError for a pattern that matches nothing.
    """
    every = dict.fromkeys((*first.tensors, *second.tensors))
    chosen = chosen_keys(list(every), include, exclude, whose="checkpoint")
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
    notes = (*first.notes, *second.notes, *chosen.notes, *_decoded(first, second))
    return Difference(
        first.path, second.path, values, _sorted(added), _sorted(removed), tuple(reshaped), tuple(retyped),
        identical=len(same), notes=notes, same=tuple(same),
        left_out=len(every) - len(chosen.keys),
    )  # fmt: skip


def _decoded(first: Outline, second: Outline) -> list[str]:
    """Return notes on quantisation settings that differ, so that the same codes mean other numbers."""
    both = first.tensors.keys() & second.tensors.keys()
    here, there = (
        [QuantisedModule.of(*said) for key, said in one.coded.items() if key in both] for one in (first, second)
    )
    found = disagreements(here, first.quantisation, second.quantisation)
    found += [(name, b, a) for name, a, b in disagreements(there, second.quantisation, first.quantisation)]
    return [
        f"the same codes mean other numbers: {name} is {escape(a)} in {escape(first.path)}, {escape(b)} in "
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
    progress: Progress | None = None,
) -> Difference:
    """Compare two open checkpoints, or only the tensors that patterns select.

    Reads only headers by default. With ``values``, reads the tensors that are in both. With ``renames``, reads the
    tensors of one that could be in the other under another name. Bytes that are the same bytes of the same file on both
    sides are not read. Raises SourceError if a file cannot be read, FormatError for a wrong CRC-32 (safetensors has no
    checksums), and PatternError for a pattern that matches nothing.
    """
    outlines = outline_of(first), outline_of(second)
    found = compare_outlines(*outlines, values=values, include=include, exclude=exclude)
    if values:
        from .values import with_values

        both = {*found.same, *(pair.key for pair in found.retyped)}
        same_shape = [key for key in first if key in both]
        found = with_values(found, first, second, same_shape, tolerance=tolerance or Tolerance(), progress=progress)
    if renames and found.added and found.removed:
        from .renames import with_renames

        found = with_renames(found, first, second)
    return found


def _sorted(keys: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(keys, key=natural_key))
