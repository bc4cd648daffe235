"""The merge methods as plain data: what each does, takes and is described by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Any

from ._method import Method

__all__ = ["MergeMethods"]


@dataclass(frozen=True)
class MergeMethods:
    """The merge methods there are, by name."""

    methods: Mapping[str, Method]

    def to_json(self) -> dict[str, Any]:
        """Return them as plain data."""
        return {
            "kind": "ckpt.merge_methods",
            "version": 1,
            "methods": [_method_json(one) for one in self.methods.values()],
        }


def _method_json(method: Method) -> dict[str, Any]:
    return {
        "name": method.name,
        "summary": method.summary,
        "paper": method.paper,
        "base": method.base,
        "models": list(method.models),
        "passes": method.passes,
        "parameters": [
            {
                "name": one.name, "kind": one.kind, "default": one.default, "by_model": one.each,
                "bounds": [bound if isfinite(bound) else None for bound in (one.bounds.low, one.bounds.high)],
                "choices": list(one.choices),
            }
            for one in method.parameters
        ],
    }  # fmt: skip
