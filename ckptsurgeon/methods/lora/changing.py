"""Chooses how adapters are added to a tensor: in single or in double precision."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from .products import Changing, DoubleProducts, LowRankChange, changed
from .singles import SingleProducts

__all__ = ["SINGLE", "changing", "wide_dtype", "widens"]

SINGLE = ("bfloat16", "float16")
"""The dtypes of results for which single precision is enough."""


def wide_dtype(base: str, kinds: Iterable[str], dtype: str) -> str:
    """Return the dtype to which rows are converted before adapters are added: "float32" or "float64".

    The result is the argument ``wide`` of ``changing``. ``base`` is the dtype of the base, ``kinds`` are the kinds of
    the changes (``LowRankChange.kind``), ``dtype`` is the dtype of the output.
    """
    plain = all(kind == "product" for kind in kinds)
    return "float32" if plain and base != "float64" and dtype in (*SINGLE, "float32") else "float64"


def widens(wide: str, dtype: str) -> bool:
    """Return whether the function that ``changing`` returns widens the rows of the base to float32 itself.

    ``wide`` is the dtype of the sums, ``dtype`` that of the output. If this is false, the caller widens the rows.
    """
    return wide == "float32" and dtype in SINGLE


def changing(changes: Sequence[LowRankChange], wide: str, dtype: str, base: str = "float32") -> Changing:
    """Return a function that adds ``changes`` to rows of a tensor, in the dtype ``wide``, and rounds to ``dtype``.

    All changes must be for the same tensor. The function takes rows of the dtype ``wide``, or of the
    dtype ``base`` (as they are stored) if ``widens`` returns true.
    """
    if widens(wide, dtype):
        return SingleProducts(changes, dtype, base).changed
    if wide == "float32":
        return DoubleProducts(changes).changed
    return lambda base, begin: changed(changes, dtype, base, begin)
