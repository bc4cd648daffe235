"""The layouts of Megatron-core for decoders: with one MLP in each layer, and with experts.

With Transformer Engine's grouped experts, keys end with the number of the expert (`linear_fc1.weight7`). With
Megatron's own modules, each expert is a module (`local_experts.7`). In distributed checkpoints, one tensor has all
experts. With Transformer Engine, the norm before the MLP has another name in layers without experts than in layers with
experts.
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
from .megatron_latent import LATENT_ATTENTION, LATENT_MARK, LATENT_NORMS, unfit_rotation
from .predictors import Layers, with_predictors

__all__ = ["Experts", "dense_layouts", "expert_layouts"]

_ALL, _FIRST = "decoder.layers", "decoder.layers.0"
_DENSE = tuple(f"{OURS}.mlp.{kind}_proj" for kind in ("gate", "up"))
_DOWN = {"mlp.down_proj": "mlp.linear_fc2"}
_EVERY = Layers()
_QKV_MARK = "self_attention.linear_qkv.weight"
_DISTRIBUTED = ("megatron-dist", "megatron-local-dist")


def dense_layouts() -> tuple[Layout, ...]:
    """Return the layouts of decoders with one MLP in each layer."""
    single = {kind: decoder_names(kind, {**HEAD_NORMS, **_DOWN}) for kind in ("te", "local")}
    joined, ours = (_all_fused(prefix) for prefix in (THEIRS, OURS))
    return (
        _layout("megatron", single["te"], joined, "linear_fc", _marked("mlp.linear_fc1.layer_norm_weight")),
        _layout("megatron-local", single["local"], joined, "linear_fc", _marked("input_layernorm.weight")),
        _layout("megatron-dist", *stacked(single["te"], ours), "linear_fc", (f"{_ALL}.{_QKV_MARK}",), layer=_ALL),
    )


def _marked(norm: str) -> tuple[str, ...]:
    return tuple(f"{_FIRST}.{one}" for one in (_QKV_MARK, norm))


def _all_fused(prefix: str) -> tuple[Fused, ...]:
    return (*attention_fused(prefix), *mlp_fused(_DENSE, f"{prefix}.mlp.linear_fc1"))


@dataclass(frozen=True)
class Experts:
    """A family's names of the matrices of an expert, with ``{n}`` and ``{i}``, and of the modules next to the experts.

    ``beside`` maps the names of these modules, such as the router, to Megatron's names. ``shared`` are the names of
    gate and up of the expert that all tokens share, if there is one. ``has_latent`` is true for multi-latent attention.
    """

    gate: str
    up: str
    down: str
    beside: Mapping[str, str]
    shared: tuple[str, str] | tuple[()] = ()
    has_latent: bool = False

    def names(self, kind: str, dense: Sequence[int]) -> dict[str, str]:
        """Return Megatron's names, with the norms of the given kind; ``dense`` are layers without experts.

        The kind is "te" (Transformer Engine), "local" (Megatron's own modules), or "saved": the names that Megatron's
        own modules have in distributed checkpoints.
        """
        kind = "local" if kind == "saved" and self.has_latent else kind
        own = "pre_mlp_layernorm.weight" if kind == "local" else "mlp.linear_fc1.layer_norm_weight"
        latent = {**LATENT_ATTENTION, **LATENT_NORMS[kind]} if self.has_latent else {}
        norms = {"te": "local" if self.has_latent else "experts", "local": "local", "saved": "te"}[kind]
        return {
            **_norms_of(dense, own),
            **decoder_names(norms, {**latent, **self.beside, **(_DOWN if dense else {})}),
        }


def expert_layouts(experts: Experts, *own: str, layers: Layers = _EVERY) -> tuple[Layout, ...]:
    """Return the layouts of decoders with experts; ``own`` are Megatron's names of tensors that all layers have."""
    found = _expert_layouts(experts, *own, dense=layers.dense, first=layers.first)
    if experts.has_latent:
        found = tuple(replace(one, unfit=unfit_rotation) for one in found)
    if not layers.predictors:
        return found
    single = [one for one in found if not any(isinstance(x, Stacked) and x.of_layers for x in one.changes)]
    return tuple(
        replace(with_predictors(one, layers), only_read=one.only_read and one.name not in _DISTRIBUTED)
        for one in single
    )


def _expert_layouts(experts: Experts, *own: str, dense: Sequence[int], first: int) -> tuple[Layout, ...]:
    both = (experts.gate, experts.up)
    names, apart, saved = (experts.names(kind, dense) for kind in ("te", "local", "saved"))
    around = (*_beside(experts), *(mlp_fused(_DENSE, f"{THEIRS}.mlp.linear_fc1") if dense else ()))
    grouped, single = (f"{THEIRS}.mlp.experts.{kind}linear_fc" for kind in ("", "local_experts.{i}."))
    layer = f"{_ALL}.{first}"
    own = (LATENT_MARK if experts.has_latent else _QKV_MARK, *own)
    marks = tuple(f"{layer}.{one}" for one in own)
    of_all = tuple(f"{_ALL}.{one}" for one in own)
    stacks = tuple(
        _layout(name, *stacked(inside, _in_one(experts, OURS)), "experts.experts.linear_fc", of_all, layer=_ALL)
        for name, inside in zip(_DISTRIBUTED, (names, saved), strict=True)
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
        *(() if dense else stacks),
        *(
            replace(
                _layout(
                    name, inside, (*around, *_experts_in_one(experts, THEIRS)),
                    "experts.experts.linear_fc", marks, layer=layer,
                ),
                only_read=not dense,  # Megatron writes single layers if they may differ
            )
            for name, inside in zip(_DISTRIBUTED, (names, saved), strict=True)
        ),
    )  # fmt: skip


def _norms_of(dense: Sequence[int], name: str) -> dict[str, str]:
    """Return {name in transformers: Megatron's name} of the norms before the MLP in the layers ``dense``.

    ``name`` is Megatron's name of this norm within a layer.
    """
    return {f"model.layers.{n}.post_attention_layernorm.weight": f"{_ALL}.{n}.{name}" for n in dense}


def _in_one(experts: Experts, prefix: str) -> tuple[Change, ...]:
    """Return the changes for layouts in which one tensor has all experts of a layer.

    ``prefix`` is the prefix of Megatron's names.
    """
    return (*_beside(experts, prefix), *_experts_in_one(experts, prefix))


def _experts_in_one(experts: Experts, prefix: str) -> tuple[Change, ...]:
    made = f"{prefix}.mlp.experts.experts.linear_fc"
    stacks = Stacked(_JOINED, f"{made}1.weight"), Stacked(experts.down, f"{made}2.weight")
    return (Fused((experts.gate, experts.up), _JOINED), *stacks)


_JOINED = "experts.{n}.{i}.gate_up.weight"
"""The temporary name of a tensor that one change makes and the next change reads."""


def _beside(experts: Experts, prefix: str = THEIRS) -> tuple[Change, ...]:
    """Return how tensors beside the experts differ from transformers: fused q, k and v, and a fused shared expert.

    Latent attention has no fused tensor. ``prefix`` is the name of a layer in Megatron.
    """
    shared = mlp_fused(experts.shared, f"{prefix}.mlp.shared_experts.linear_fc1") if experts.shared else ()
    return shared if experts.has_latent else (*attention_fused(prefix), *shared)


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
    """Return the layout ``name``; state dicts with it have the two matrices of the MLP of ``layer``, and ``own``.

    ``mlp`` is the common name of the two matrices: ``linear_fc`` for ``linear_fc1`` and ``linear_fc2``. ``end`` is the
    end of their keys.
    """
    up, down = (f"{layer}.mlp.{mlp}{number}.{end}" for number in (1, 2))
    marks = (WORDS, up, *own)
    return Layout(name, LIBRARIES[name], TESTED, names, marks, changes, aside=ASIDE, fits=gated(up, down))
