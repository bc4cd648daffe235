"""The layouts of Megatron-core for decoders: with one MLP in each layer, and with experts.

Transformer Engine's grouped experts have the number of the expert at the end of the key (`linear_fc1.weight7`), those
of Megatron's own modules are modules (`local_experts.7`), and distributed checkpoints have one tensor for all. Layers
without experts have the name of a norm that layers with experts do not have, unless the modules are Megatron's own.
https://github.com/NVIDIA/Megatron-LM/blob/main/megatron/core/transformer/moe/experts.py,
https://github.com/NVIDIA-NeMo/Megatron-Bridge/blob/main/src/megatron/bridge/models/qwen/qwen3_moe_bridge.py
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from ..changes import Fused, Stacked
from ..layout import Change, Layout
from .megatron import (
    ASIDE,
    HEAD_NORMS,
    LIBRARIES,
    OURS,
    TESTED,
    THEIRS,
    WORDS,
    attention_fused,
    decoder_names,
    gated,
    mlp_fused,
    stacked,
)

__all__ = ["Experts", "dense_layouts", "expert_layouts"]

_ALL, _FIRST = "decoder.layers", "decoder.layers.0"
_DENSE = tuple(f"{OURS}.mlp.{kind}_proj" for kind in ("gate", "up"))
_DOWN = {"mlp.down_proj": "mlp.linear_fc2"}


def dense_layouts() -> tuple[Layout, ...]:
    """Return the layouts of decoders with one MLP in each layer."""
    single = {kind: decoder_names(kind, {**HEAD_NORMS, **_DOWN}) for kind in ("te", "local")}
    joined, ours = (_all_fused(prefix) for prefix in (THEIRS, OURS))
    return (
        _layout("megatron", single["te"], joined, "linear_fc", (f"{_FIRST}.mlp.linear_fc1.layer_norm_weight",)),
        _layout("megatron-local", single["local"], joined, "linear_fc", (f"{_FIRST}.input_layernorm.weight",)),
        _layout("megatron-dist", *stacked(single["te"], ours), "linear_fc", layer=_ALL),
    )


def _all_fused(prefix: str) -> tuple[Fused, ...]:
    return (*attention_fused(prefix), *mlp_fused(_DENSE, f"{prefix}.mlp.linear_fc1"))


@dataclass(frozen=True)
class Experts:
    """A family's names of the matrices of an expert, with ``{n}`` and ``{i}``, and of the modules beside the experts.

    ``beside`` maps those of a layer, such as the router, to Megatron's. ``shared`` are the names of gate and up of the
    expert that all tokens share, if there is one.
    """

    gate: str
    up: str
    down: str
    beside: Mapping[str, str]
    shared: tuple[str, str] | tuple[()] = ()


def expert_layouts(experts: Experts, *own: str, dense: Sequence[int] = (), first: int = 0) -> tuple[Layout, ...]:
    """Return the layouts of decoders with experts that have the tensors ``own`` in each layer, by Megatron's names.

    ``dense`` are the numbers of layers without experts, ``first`` is that of the first layer with experts.
    """
    both = (experts.gate, experts.up)
    names = {**_norms_of(dense, "mlp.linear_fc1.layer_norm_weight"), **decoder_names("experts", experts.beside)}
    names |= {f"{OURS}.{ours}": f"{THEIRS}.{theirs}" for ours, theirs in _DOWN.items() if dense}
    local = {**experts.beside, **(_DOWN if dense else {})}
    apart = {**_norms_of(dense, "pre_mlp_layernorm.weight"), **decoder_names("local", local)}
    around = (*_beside(experts), *(mlp_fused(_DENSE, f"{THEIRS}.mlp.linear_fc1") if dense else ()))
    grouped, single = (f"{THEIRS}.mlp.experts.{kind}linear_fc" for kind in ("", "local_experts.{i}."))
    layer = f"{_ALL}.{first}"
    marks = tuple(f"{layer}.{one}" for one in own)
    stacks = _layout(
        "megatron-dist",
        *stacked(names, _in_one(experts, OURS)),
        "experts.experts.linear_fc",
        tuple(f"{_ALL}.{one}" for one in own),
        layer=_ALL,
    )
    return (
        _layout(
            "megatron", {**names, experts.down: f"{grouped}2.weight{{i}}"},
            (*around, Fused(both, f"{grouped}1.weight{{i}}")), "experts.linear_fc", marks, end="weight0", layer=layer,
        ),
        replace(
            _layout(
                "megatron", {**names, experts.down: f"{single}2.weight"},
                (*around, Fused(both, f"{single}1.weight")), "experts.local_experts.0.linear_fc", marks, layer=layer,
            ),
            only_read=True,  # single experts of Transformer Engine, as for quantising
        ),
        _layout(
            "megatron-local", {**apart, experts.down: f"{single}2.weight"},
            (*around, Fused(both, f"{single}1.weight")), "experts.local_experts.0.linear_fc", marks, layer=layer,
        ),
        *(() if dense else (stacks,)),
        replace(
            _layout(
                "megatron-dist", names, (*around, *_experts_in_one(experts, THEIRS)),
                "experts.experts.linear_fc", marks, layer=layer,
            ),
            only_read=not dense,  # Megatron writes single layers if they may differ
        ),
    )  # fmt: skip


def _norms_of(dense: Sequence[int], name: str) -> dict[str, str]:
    """Return the names of the norm before the MLP in the layers ``dense``; ``name`` is Megatron's, in a layer."""
    return {f"model.layers.{n}.post_attention_layernorm.weight": f"{_ALL}.{n}.{name}" for n in dense}


def _in_one(experts: Experts, prefix: str) -> tuple[Change, ...]:
    """Return all changes, with one tensor of all experts of a layer; ``prefix`` begins the new names."""
    return (*_beside(experts, prefix), *_experts_in_one(experts, prefix))


def _experts_in_one(experts: Experts, prefix: str) -> tuple[Change, ...]:
    made = f"{prefix}.mlp.experts.experts.linear_fc"
    stacks = Stacked(_JOINED, f"{made}1.weight"), Stacked(experts.down, f"{made}2.weight")
    return (Fused((experts.gate, experts.up), _JOINED), *stacks)


_JOINED = "experts.{n}.{i}.gate_up.weight"
"""A name for what is between two changes."""


def _beside(experts: Experts, prefix: str = THEIRS) -> tuple[Change, ...]:
    """Return the changes of the attention, and of the expert that all tokens share."""
    shared = mlp_fused(experts.shared, f"{prefix}.mlp.shared_experts.linear_fc1") if experts.shared else ()
    return (*attention_fused(prefix), *shared)


def _layout(
    name: str,
    names: Mapping[str, str],
    changes: tuple[Change, ...],
    mlp: str,
    own: tuple[str, ...] = (),
    *,
    end: str = "weight",
    layer: str = _FIRST,
) -> Layout:
    """Return a layout; ``mlp`` is the name of the matrices of an MLP of ``layer``, without their numbers."""
    up, down = (f"{layer}.mlp.{mlp}{number}.{end}" for number in (1, 2))
    marks = (WORDS, f"{layer}.self_attention.linear_qkv.weight", up, *own)
    return Layout(name, LIBRARIES[name], TESTED, names, marks, changes, aside=ASIDE, fits=gated(up, down))
