"""Finds matrices that a state dict stores transposed, by their shapes, and square ones whose shapes do not show it.

Weights of GPT-2's ``Conv1D`` and kernels of TensorFlow and JAX are (in, out), weights of ``nn.Linear`` are (out, in).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from ...util.text import NUMBER_IN_KEY, count, escape, listing

__all__ = ["is_transposed", "square_siblings", "transposed_hint", "transposed_note"]

_LIST = re.compile(r"^((?:[^.]*\.)*?)\d+\..*?([^.]*)$")
"""Matches a key in a list of layers: what is before the first number, and the last segment."""

Shape = Sequence[int]


def is_transposed(have: Shape, want: Shape) -> bool:
    """Return whether two shapes of a matrix, or of stacked matrices, are each other's transpose and are not equal."""
    return len(have) in (2, 3) and tuple(have) != tuple(want) and (*have[:-2], have[-1], have[-2]) == tuple(want)


def square_siblings(turned: Iterable[str], matrices: Mapping[str, Shape]) -> list[str]:
    """Return the keys of square matrices that may be transposed, since other matrices in the same layers are.

    ``turned`` are keys of matrices that are known to be transposed, and ``matrices`` are the shapes of the others.
    Matrices with the same last segment in one list of layers are assumed to be stored alike. No keys are returned for a
    list that has a matrix that is neither square nor transposed.
    """
    places = {_place(key) for key in turned} - {None}
    flat = {key: shape for key, shape in matrices.items() if len(shape) == 2}
    places -= {_place(key) for key, shape in flat.items() if shape[0] != shape[1]}
    return [key for key, shape in flat.items() if shape[0] == shape[1] and _place(key) in places]


def _place(key: str) -> tuple[str, ...] | None:
    """Return the list of layers that a key is in, and its last segment; None for a key outside such lists."""
    found = _LIST.match(key)
    return found.groups() if found is not None else None


def transposed_note(turned: Sequence[str], square: Sequence[str], option: str = "--operations") -> str:
    """Return the note on the transposed matrices ``turned``, which --on-mismatch resizes, skips or initialises.

    ``square`` are square matrices in the same layers that may be transposed, too. ``option`` is the option that takes
    operations.
    """
    also = f"; square matrices in the same layers may be transposed, too: {listing(square, 3)}" if square else ""
    return (
        f"{count(len(turned), 'matrix looks', 'matrices look')} transposed, as the numbers of rows and columns are "
        f"swapped between the models; --on-mismatch does not transpose matrices: {listing(turned, 3)}. "
        f"{transposed_hint(turned[0], option)}{also}"
    )


def transposed_hint(key: str, option: str = "--operations") -> str:
    """Return a hint: how ``option`` transposes the matrix ``key`` and the matrices of the same name in other layers."""
    return f"Transpose with {option}, as in - {{transpose: '{NUMBER_IN_KEY.sub('*', escape(key))}'}}"
