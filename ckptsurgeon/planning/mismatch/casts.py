"""Which casts are refused. Pure."""

from __future__ import annotations

from ...tensors.dtypes import DTYPES

__all__ = ["cast_fault"]


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
