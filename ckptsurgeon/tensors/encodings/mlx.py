"""Recognises MLX: integers of 1 to 8 bits packed into 32-bit words, with a scale and a bias for each group.

The modes with small floats, such as mxfp4, have no biases. The modules of one model may differ in bits, so the number
of columns is computed from the number of groups and the group size.
https://ml-explore.github.io/mlx/build/html/python/_autosummary/mlx.core.quantize.html
"""

from __future__ import annotations

from collections.abc import Sequence

from ..quantised.encoding import Encoding, LogicalTensor, Parts
from ..quantised.settings import QuantisationSettings

__all__ = ["ENCODINGS"]

_BITS = (2, 3, 4, 5, 6, 8)
_GROUPS = (16, 32, 64, 128)
_LONGEST = 1024


def _logical(parts: Parts, quantisation: QuantisationSettings) -> LogicalTensor | None:
    codes, scales = parts[".weight"], parts[".scales"]
    if not codes.shape or codes.shape[:-1] != scales.shape[:-1] or not codes.numel or not scales.numel:
        return None
    words, groups = codes.shape[-1], scales.shape[-1]
    size = quantisation.number("group_size", most=_LONGEST)
    told = [bits for bits in quantisation.numbers("bits", most=_BITS[-1]) if bits == 1]  # 1 bit only if settings say so
    fitting = (
        _fitting(words, groups, (size,), told) or _fitting(words, groups, (size,)) or _fitting(words, groups, _GROUPS)
    )
    if len(fitting) == 1:
        ((bits, columns),) = fitting.items()
        return LogicalTensor.of(f"MLX, {bits} bits", (*codes.shape[:-1], columns))
    return LogicalTensor("MLX", None, at_least=codes.numel // words * min(fitting.values(), default=words * 4))


def _fitting(words: int, groups: int, sizes: Sequence[int], possible: Sequence[int] = _BITS) -> dict[int, int]:
    """Return {bits of a code: columns} for each number of bits in ``possible`` that fits the codes and the scales.

    ``words`` is the number of words in a row, ``groups`` the number of its scales. ``sizes`` are the group sizes to
    try.
    """
    pairs = ((bits, groups * size) for size in sizes for bits in possible)
    return {bits: columns for bits, columns in pairs if columns and columns * bits == words * 32}


ENCODINGS = (Encoding(".weight", frozenset({"uint32"}), (".scales",), _logical, (".biases", ".qbiases")),)
