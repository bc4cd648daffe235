"""Chooses the types of tensors in GGUF: matrices in blocks of codes, and vectors and routers in float32."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from ...errors import ConfigError
from ...planning.llama_cpp.layout import routers
from ...planning.operations.operation import MIXTURES
from ...planning.plan.plan import Plan
from ...tensors.dtypes import DTYPES, ROUNDED

__all__ = ["check_type", "in_float32", "rounded"]

_MATRICES = (
    r"re:(?!.*\.(?:ffn_gate_inp|mlp\.gate|mlp\.router|block_sparse_moe\.gate)\.weight$|.*bias$|.*norm\.weight$).*"
)


def check_type(name: str | None) -> None:
    """Raise ConfigError unless ``name`` is None, or a type or mixture of types of GGUF that ckpt can write."""
    if name is not None and name not in ROUNDED and name not in MIXTURES:
        raise ConfigError(
            f"--gguf-type {name!r:.60} is unknown.",
            hint=f"Use one of {', '.join((*ROUNDED, *MIXTURES))}; --dtype bf16, f16 or f32 writes plain numbers.",
        )


def rounded(kind: str | None, keys: Collection[str]) -> list[Mapping[str, Any]]:
    """Return the operation that rounds matrices to the type or mixture of types ``kind``; [] if ``kind`` is None.

    Norms, biases and routers (which choose experts) are not rounded.
    """
    if kind is None:
        return []
    norms = any(key.endswith("_norm.weight") for key in keys)  # norms are matrices in Cohere's models
    return [{"blocks": _MATRICES if norms or routers(keys) else "**", "to": kind}]


def in_float32(plan: Plan) -> Plan:
    """Return a plan with norms, biases and routers (which choose experts) in float32, as llama.cpp expects them."""
    chosen = set(routers([step.key for step in plan.steps]))
    steps = (
        replace(step, dtype="float32")
        if (len(step.shape) == 1 or step.key in chosen or step.key.endswith((".bias", "_norm.weight")))
        and DTYPES[step.dtype].kind == "float"
        else step
        for step in plan.steps
    )
    return replace(plan, steps=tuple(steps))
