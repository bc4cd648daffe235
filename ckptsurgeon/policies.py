"""What may become of a tensor whose shape or dtype differs from what the destination wants. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from .tensors import DTYPES

__all__ = ["MISMATCH_POLICIES", "cast_fault", "fitting_policies", "is_reshape", "shape_op"]

MISMATCH_POLICIES = ("error", "init", "slice", "pad", "overlap", "interpolate")
INTERPOLATED_DIMENSIONS = 2
"""Linear along one dimension, bilinear along two; more is nobody's practice for weights."""

Shape = Sequence[int]


def is_reshape(source: Shape, destination: Shape) -> bool:
    """Whether two shapes are (1,) and 0-d, which fit each other."""
    return sorted([tuple(source), tuple(destination)]) == [(), (1,)]


def shape_op(policy: str, source: Shape, destination: Shape, dtype: str) -> str | None:
    """Return the operation by which ``policy`` makes ``source`` fit, None when it does not fit these shapes."""
    if policy == "init":
        return "init"
    if policy == "error" or len(source) != len(destination):
        return None
    pairs = list(zip(source, destination, strict=True))
    fits = {
        "slice": all(s >= d for s, d in pairs),
        "pad": all(s <= d for s, d in pairs),
        "overlap": True,
        "interpolate": _interpolates(pairs, dtype),
    }
    return policy if fits[policy] and _moves_whole_bytes(dtype) else None


def fitting_policies(source: Shape, destination: Shape, dtype: str) -> list[str]:
    """Return the policies that would settle a mismatch, the plainest first."""
    return [p for p in MISMATCH_POLICIES[1:] if shape_op(p, source, destination, dtype)]


def _interpolates(pairs: list[tuple[int, int]], dtype: str) -> bool:
    differing = sum(s != d for s, d in pairs)
    sizes = all(s > 0 and d > 0 for s, d in pairs)
    real = DTYPES[dtype].kind == "float" and DTYPES[dtype].values == 1
    return real and sizes and 1 <= differing <= INTERPOLATED_DIMENSIONS


def _moves_whole_bytes(dtype: str) -> bool:
    """Whether single elements of a type can be told apart in memory."""
    return not DTYPES[dtype].is_packed


def cast_fault(source: str, destination: str) -> str:
    """Return why a cast is refused, '' when it is not: nothing may lose its fraction, sign or phase unseen."""
    have, want = DTYPES[source], DTYPES[destination]
    if source == destination:
        return ""
    if "quantized" in (have.kind, want.kind) or "bits" in (have.kind, want.kind):
        return "quantised values have no meaning in another type"
    if have.is_packed or want.is_packed:
        return "packed values are only ever copied"
    if have.kind == "complex" and want.kind != "complex":
        return "a complex number does not fit a real one"
    if have.kind == "float" and want.kind not in ("float", "complex"):
        return "a fraction does not fit an integer"
    if want.kind == "bool":
        return "a number does not fit a truth value"
    if destination == "float8_e8m0fnu":  # a scale: torch casts -3.0 to 4.0
        return "it holds powers of two alone, without a sign"
    return ""
