"""Lists the parameters of a network in the order in which an optimizer of torch numbers them."""

from __future__ import annotations

from typing import Any

from ..planning.target import TargetSpec
from .hf.cached_answers import cached_answer

__all__ = ["parameter_names"]


def parameter_names(target: TargetSpec) -> list[str]:
    """Return the keys of a network's parameters in the order of ``Module.parameters()``; [] if no code builds it.

    Buffers are left out. Of several tied parameters, only the first one is listed.
    """
    if target.build is None:
        return []
    asked = {"of": "parameters", "destination": target.cache_key} if target.cache_key else {}
    return cached_answer(asked, lambda: _names(target), list, lambda kept: list(map(str, kept)))


def _names(target: TargetSpec) -> list[str]:
    from .torch_module.meta import build_on_meta

    model: Any = build_on_meta(target.build)  # type: ignore[arg-type]
    return [name for name, _ in model.named_parameters() if name in target.tensors and name not in target.ties]
