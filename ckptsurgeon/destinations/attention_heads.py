"""Finds the number of heads of each attention layer of a network, from attributes of its modules."""

from __future__ import annotations

from typing import Any

from ..planning.target import TargetSpec

__all__ = ["attention_heads"]

_NAMES = ("num_heads", "num_attention_heads", "n_heads", "n_head")


def attention_heads(target: TargetSpec) -> dict[str, int]:
    """Return {path of a module: number of heads} for all modules with an attribute for their number of heads.

    The network is built without memory for its parameters. Returns {} if the destination is not built by code.
    """
    if target.build is None:
        return {}
    from .torch_module.meta import build_on_meta

    model: Any = build_on_meta(target.build)  # type: ignore[arg-type]
    found = {}
    for path, module in model.named_modules():
        number = next((vars(module)[name] for name in _NAMES if type(vars(module).get(name)) is int), 0)
        if not number and "attention" in type(module).__name__.lower():
            number = getattr(getattr(module, "config", None), "num_attention_heads", 0)
        if type(number) is int and number > 0:
            found[path] = number
    return found
