"""Fused tensors of decoders with experts in vLLM and SGLang, in memory and in what vLLM's ``save_sharded_state`` saves.

Queries, keys and values are one matrix, and gate and up another. All experts of a layer are in two tensors:
``w13_weight``, (experts, 2 * inner width, width), with the rows of the gate before those of up, and ``w2_weight``,
(experts, width, inner width).
https://github.com/vllm-project/vllm/blob/017b8f23/vllm/model_executor/layers/fused_moe/unquantized_fused_moe_method.py,
https://github.com/vllm-project/vllm/blob/002456df/vllm/model_executor/models/qwen3_moe.py
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from ..changes import Fused, Stacked
from ..layout import Change

__all__ = ["KERNELS", "VLLM", "VLLM_TESTED", "fused_experts", "fused_modules", "unfused"]

VLLM, VLLM_TESTED = "vLLM, SGLang", "vLLM at 017b8f23, its source"
KERNELS = (
    "for FlashInfer's CUTLASS kernels vLLM swaps the halves of w13_weight, and for those of AITER and of CPUs it packs "
    "values; what was saved with such kernels has other values than this layout, with the same names and shapes"
)
"""A note on what no tensor shows."""
_LAYER = "model.layers.{n}"
_QKV = tuple(f"{_LAYER}.self_attn.{kind}_proj" for kind in "qkv")


def fused_experts(experts: Sequence[str], module: str) -> tuple[Change, ...]:
    """Return the changes of experts; ``experts`` are the patterns of the gate, up and down weights of one expert.

    ``module`` is the module with the fused tensors: ``model.layers.{n}.mlp.experts``.
    """
    gate, up, down = experts
    both = f"{gate.rpartition('.{i}.')[0]}.{{i}}.w13.weight"
    return Fused((gate, up), both), Stacked(both, f"{module}.w13_weight"), Stacked(down, f"{module}.w2_weight")


def fused_modules(mlps: Collection[str] = ()) -> tuple[Change, ...]:
    """Return the changes of attention, and of the MLPs ``mlps``: ``model.layers.{n}.mlp``."""
    attention = Fused(_QKV, f"{_LAYER}.self_attn.qkv_proj", ("heads", "keys", "keys"))
    return attention, *(Fused((f"{one}.gate_proj", f"{one}.up_proj"), f"{one}.gate_up_proj") for one in mlps)


def unfused(names: Collection[str]) -> dict[str, str]:
    """Return {name: the same name} for tensors that vLLM does not fuse: all but queries, keys, values, gate and up."""
    fused = (*_QKV, *(name for name in names if name.endswith((".gate_proj", ".up_proj"))))
    return {name: name for name in names if name not in fused}
