"""Finds tensors whose values are stored in another layout: transposed matrices, kernels, fused projections.

Weights of GPT-2's ``Conv1D`` and kernels of TensorFlow and JAX are (in, out), weights of ``nn.Linear`` are (out, in).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

from ...tensors.info import TensorInfo
from ...util.text import NUMBER_IN_KEY, count, escape, listing

__all__ = ["is_transposed", "layout_notes", "reshape_hint", "square_siblings", "transposed_hint", "transposed_note"]

_LIST = re.compile(r"^((?:[^.]*\.)*?)\d+\..*?([^.]*)$")
"""Matches a key in a list of layers; its groups are the text before the first number, and the last segment."""

Shape = Sequence[int]


def is_transposed(have: Shape, want: Shape) -> bool:
    """Return whether two shapes of a matrix, or of stacked matrices, are each other's transpose and are not equal."""
    return len(have) in (2, 3) and tuple(have) != tuple(want) and (*have[:-2], have[-1], have[-2]) == tuple(want)


def square_siblings(turned: Iterable[str], matrices: Mapping[str, Shape]) -> list[str]:
    """Return the keys of square matrices that may be transposed, because others in the same layers are transposed.

    ``turned`` are keys of matrices that are known to be transposed, and ``matrices`` are the shapes of the others.
    Matrices with the same last segment in one list of layers are assumed to be stored alike. No keys are returned for a
    list that has a matrix that is neither square nor transposed.
    """
    places = {_place(key) for key in turned} - {None}
    flat = {key: shape for key, shape in matrices.items() if len(shape) == 2}
    places -= {_place(key) for key, shape in flat.items() if shape[0] != shape[1]}
    return [key for key, shape in flat.items() if shape[0] == shape[1] and _place(key) in places]


def _place(key: str) -> tuple[str, ...] | None:
    """Return (path of the list of layers that contains a key, the key's last segment); None for a key in no list."""
    found = _LIST.match(key)
    return found.groups() if found is not None else None


def transposed_note(turned: Sequence[str], square: Sequence[str], option: str = "--operations", dims: int = 2) -> str:
    """Return the note on the transposed matrices ``turned``, which --on-mismatch resizes, skips or initialises.

    ``square`` are square matrices in the same layers that may be transposed, too. ``option`` is the option that takes
    operations. ``dims`` is the number of dimensions of the first tensor: 3 for stacked matrices.
    """
    also = f"; square matrices in the same layers may be transposed, too: {listing(square, 3)}" if square else ""
    return (
        f"{count(len(turned), 'matrix looks', 'matrices look')} transposed, as the numbers of rows and columns are "
        f"swapped between the models; --on-mismatch does not transpose matrices: {listing(turned, 3)}. "
        f"{transposed_hint(turned[0], option, dims)}{also}"
    )


def transposed_hint(key: str, option: str = "--operations", dims: int = 2) -> str:
    """Return a hint: how ``option`` transposes the matrix ``key`` and the matrices of the same name in other layers.

    ``dims`` is the number of dimensions of the tensor: 3 for stacked matrices, whose last two are swapped.
    """
    last = f", dims: [{dims - 2}, {dims - 1}]" if dims != 2 else ""
    return f"Transpose with {option}, as in - {{transpose: '{NUMBER_IN_KEY.sub('*', escape(key))}'{last}}}"


def reshape_hint(key: str, option: str, have: Shape, want: Shape) -> str:
    """Return a hint: how ``option`` adds axes of the size 1 to ``key``, or removes them; '' if this does not help.

    The other axes keep their sizes: (11, 16, 1), the weight of a convolution, becomes (11, 16) for a linear layer with
    (14, 16). ``have`` is the shape of the tensor, ``want`` that of the destination.
    """
    sizes = iter([size for size in have if size != 1])
    shape = [next(sizes, 0) if size != 1 else 1 for size in want]
    if len(have) == len(want) or 0 in shape or next(sizes, None) is not None:
        return ""
    return f"Reshape with {option}, as in - {{reshape: '{escape(key)}', shape: {shape}}}"


KERNEL, WEIGHT = "kernel", "weight"
_BY_HEAD = re.compile(r"(?:^|\.)query_key_value\.(?:weight|bias)$")
"""The fused projection of GPT-NeoX, BLOOM and Falcon: queries, keys and values of one head, then of the next."""
_IN_THIRDS = re.compile(r"(?:^|[._])(?:c_attn|Wqkv|qkv|qkv_proj|in_proj|attn_qkv)[._](?:weight|bias)$")
"""The fused projection of GPT-2, MPT, timm, Phi-3, torch and llama.cpp: all queries, then all keys, then all values."""


def layout_notes(names: Collection[tuple[str, str]], source: Mapping[str, TensorInfo]) -> Iterator[str]:
    """Yield notes on tensors that are only renamed, although their new names suggest another layout of the values.

    ``names`` are (old, new) keys of tensors of ``source``.
    """
    matrices = [(old, new) for old, new in names if len(_shape(old, source)) > 1]
    kernels = [pair for pair in matrices if {*_leaves(*pair)} == {KERNEL, WEIGHT}]
    if kernels:
        old, new = kernels[0]
        what = f"become {_leaves(old, new)[1]}s" if len(kernels) > 1 else f"becomes a {_leaves(old, new)[1]}"
        verb, more = ("transpose", "") if len(_shape(old, source)) == 2 else ("permute", ", dims: …")
        yield (
            f"{count(len(kernels), 'tensor')} {what} without being transposed ({escape(old)} as {escape(new)}): "
            "TensorFlow and JAX have the inputs before the outputs in kernels, torch has the outputs first in weights; "
            f"transpose them with --operations: - {{{verb}: '{_pattern(old)}'{more}}}"
        )
    fused = [(old, new) for old, new in names if (_BY_HEAD.search(old) and _IN_THIRDS.search(new))]
    fused += [(old, new) for old, new in names if (_IN_THIRDS.search(old) and _BY_HEAD.search(new))]
    if fused:
        old, new = fused[0]
        yield (
            f"{count(len(fused), 'fused projection')} may need another order of rows ({escape(old)} as {escape(new)}): "
            "query_key_value of GPT-NeoX, BLOOM and Falcon has the queries, keys and values of the first head, then "
            "those of the next; a projection with the other name usually has all queries, all keys, then all values; "
            "reorder the rows with reshape and permute of --operations"
        )


def _shape(key: str, source: Mapping[str, TensorInfo]) -> tuple[int, ...]:
    return source[key].shape if key in source else ()


def _leaves(old: str, new: str) -> tuple[str, str]:
    return old.rpartition(".")[2], new.rpartition(".")[2]


def _pattern(key: str) -> str:
    """Return a pattern for a key that matches it in all layers."""
    return NUMBER_IN_KEY.sub("*", escape(key))
