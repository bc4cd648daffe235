"""Chooses the types of tensors in GGUF: matrices in blocks of codes, and vectors and routers in float32.

A mixture has a better type for the matrices whose rounding changes the outputs most, as in llama.cpp
(https://github.com/ggml-org/llama.cpp/blob/master/src/llama-quant.cpp, ``llama_tensor_get_type``, for networks without
experts).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from ...errors import ConfigError
from ...planning.llama_cpp.layout import routers
from ...planning.plan.plan import Plan
from ...tensors.dtypes import DTYPES, ROUNDED

__all__ = ["check_type", "in_float32", "rounded"]

_MATRICES = (
    r"re:(?!.*\.(?:ffn_gate_inp|mlp\.gate|mlp\.router|block_sparse_moe\.gate)\.weight$|.*bias$|.*norm\.weight$).*"
)
_MIXTURES: Mapping[str, tuple[str, str, str]] = {"q5_k_m": ("q5_k", "q6_k", "q6_k"), "q4_k_m": ("q4_k", "q5_k", "q6_k")}
"""{mixture: (type of most matrices, of queries, keys and values in one matrix, of what ``_finer`` returns)}"""
_LAYER = re.compile(r"(?:model\.layers|blk)\.(\d+)\.")
_FINER = r"(?:[\w.]*\.)?(?:v_proj|attn_v|down_proj|mlp\.c_proj|ffn_down|ffn_down_exps|ffn_down_shexp)\.weight"
_FUSED = r"re:(?:model\.layers|blk)\.\d+\.(?:self_attn\.qkv_proj|attn_qkv)\.weight"
_OUTPUTS = ("lm_head.weight", "output.weight", "model.embed_tokens.weight", "token_embd.weight")
"""The output layer, and the embedding that takes its place if they are tied."""


def check_type(name: str | None) -> None:
    """Raise ConfigError if ``name`` is not None and not a type or mixture of GGUF to which numbers can be rounded."""
    if name is not None and name not in ROUNDED and name not in _MIXTURES:
        raise ConfigError(
            f"--gguf-type {name!r:.60} is unknown.",
            hint=f"Use one of {', '.join((*ROUNDED, *_MIXTURES))}; --dtype bf16, f16 or f32 writes plain numbers.",
        )


def rounded(kind: str | None, keys: Collection[str]) -> list[Mapping[str, Any]]:
    """Return the operations that round matrices to the type or mixture ``kind``; [] if it is None.

    Norms, biases and routers (which choose experts) are not rounded.
    """
    if kind is None:
        return []
    norms = any(key.endswith("_norm.weight") for key in keys)  # norms of Cohere are matrices
    matrices = _MATRICES if norms or routers(keys) else "**"
    if kind not in _MIXTURES:
        return [{"blocks": matrices, "to": kind}]
    most, fused, finer = _MIXTURES[kind]
    is_fused = any(re.fullmatch(_FUSED[3:], key) for key in keys)
    found = [{"blocks": key, "to": finer} for key in _OUTPUTS if key in keys][:1]
    found += [{"blocks": pattern, "to": finer} for pattern in _finer(keys)]
    return [*found, *([{"blocks": _FUSED, "to": fused}] if is_fused else []), {"blocks": matrices, "to": most}]


def _finer(keys: Collection[str]) -> list[str]:
    """Return the pattern of the values and the last feed-forward matrices of some layers; [] if there are no layers.

    The layers are the first eighth, the last eighth, and every third between them.
    """
    count = max((int(found[1]) + 1 for key in keys if (found := _LAYER.match(key))), default=0)
    eighth = count // 8
    layers = [n for n in range(count) if n < eighth or n >= 7 * count // 8 or (n - eighth) % 3 == 2]
    numbers = "|".join(map(str, layers))
    return [rf"re:(?:model\.layers|blk)\.(?:{numbers})\.{_FINER}"] if layers else []


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
