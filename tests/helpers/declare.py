"""Destinations of a test: a file that declares tensors by their shapes."""

from __future__ import annotations

from typing import Any

__all__ = ["declare"]


def declare(name: str, shapes: dict[str, Any], tied: str = "") -> str:
    """Write a configuration of float32 tensors, or of (dtype, shape), that begin as zeros; returns its name."""
    rows = []
    for key, spec in shapes.items():
        dtype, shape = spec if spec and isinstance(spec[0], str) else ("float32", spec)
        rows.append(f"    {key}: {{shape: {list(shape)}, dtype: {dtype}, init: zeros}}")
    with open(name, "w") as file:
        file.write("model:\n  tensors:\n" + "\n".join(rows) + f"\n{tied}")
    return name
