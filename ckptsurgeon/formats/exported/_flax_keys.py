"""Names the arrays in the nested dicts that JAX's frameworks save: the keys that lead to an array, joined by dots."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ..base.flatten import named_once

__all__ = ["dotted", "dotted_parts"]

_PARAMETERS = ("params", "target")
"""Entries with the parameters in a training state (in T5X, target); other entries are the step, the optimizer etc."""


def dotted_parts(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Return {part of a training state: {dotted key: value}}; for parameters alone, {dotted key: value}.

    Parts are, for example, the parameters and the state of the optimizer.
    """
    if not any(isinstance(tree.get(name), dict) for name in _PARAMETERS):
        return dotted(tree)
    return {key: dotted(one) if isinstance(one, dict) else one for key, one in tree.items()}


def dotted(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested dicts as one dict with dotted keys; raises FormatError if a key occurs twice or is too long."""
    return named_once(_leaves(tree, ""))


def _leaves(tree: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
