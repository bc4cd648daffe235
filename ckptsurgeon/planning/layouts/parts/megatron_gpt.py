"""The layouts of Megatron-core for decoders with biases, layer norms and an MLP without gates: GPT-2, GPT-NeoX.

`linear_qkv` has the queries, keys and values of the first head, then of the second head, and so on. With modules of
Transformer Engine, the weight and bias of a norm are parts of the matrix after it; with Megatron's own, norms are
modules. https://github.com/NVIDIA/Megatron-LM/blob/core_v0.16.1/megatron/core/models/gpt/gpt_model.py,
https://github.com/NVIDIA/Megatron-LM/blob/core_v0.16.1/megatron/core/models/gpt/gpt_layer_specs.py
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ..changes import Stacked
from ..layout import Change, Layout, Tensors, Unfit
from .megatron import ALL, ASIDE, LEAVES, LIBRARIES, THEIRS, WORDS, gated

__all__ = ["Decoder", "decoder_layouts", "with_leaves"]

_POSITIONS = "embedding.position_embeddings.weight"
_QKV, _FC1 = "self_attention.linear_qkv", "mlp.linear_fc1"
_MARKS = (f"{_QKV}.weight", f"{_QKV}.bias", f"{_FC1}.weight", "mlp.linear_fc2.weight")

_NONE: Mapping[str, str] = {}


@dataclass(frozen=True)
class Decoder:
    """A family's names: ``outer`` maps names outside layers to Megatron's names, ``layer`` is the prefix of a layer.

    The other fields are names of modules in a layer: two norms, two matrices of the attention, and two of the MLP.
    """

    outer: Mapping[str, str]
    layer: str
    norms: tuple[str, str]
    attention: tuple[str, str]
    mlp: tuple[str, str]

    def names(self, *, has_own_norms: bool) -> dict[str, str]:
        """Return {the family's name of a tensor in a layer: Megatron's name}.

        If ``has_own_norms`` is false, the norms are parts of the matrices after them.
        """
        modules = (*self.attention, *self.mlp)
        inside = dict(zip(modules, (_QKV, "self_attention.linear_proj", _FC1, "mlp.linear_fc2"), strict=True))
        found = {f"{ours}.{leaf}": f"{theirs}.{leaf}" for ours, theirs in inside.items() for leaf in LEAVES}
        apart = ("input_layernorm.", "pre_mlp_layernorm.")
        before = apart if has_own_norms else (f"{_QKV}.layer_norm_", f"{_FC1}.layer_norm_")
        norms = dict(zip(self.norms, before, strict=True))
        found |= {f"{ours}.{leaf}": f"{theirs}{leaf}" for ours, theirs in norms.items() for leaf in LEAVES}
        return {f"{self.layer}.{ours}": f"{THEIRS}.{theirs}" for ours, theirs in found.items()}


def with_leaves(names: Mapping[str, str]) -> dict[str, str]:
    """Return ``names`` of modules, preceded by names of the weights and biases of modules in layers.

    They are needed because Megatron's layouts name the weight and the bias of a module separately.
    """
    leaves = {
        f"{ours}.{leaf}": f"{theirs}.{leaf}" for ours, theirs in names.items() if "{n}" in ours for leaf in LEAVES
    }
    return {**leaves, **names}


def decoder_layouts(
    decoder: Decoder,
    changes: tuple[Change, ...],
    *,
    has_positions: bool,
    tied: Mapping[str, str] = _NONE,
    settings: str = "",
    unfit: Callable[[Mapping[str, Any]], Unfit | None] = lambda config: None,
    biases: Mapping[str, int],
) -> tuple[Layout, ...]:
    """Return Megatron's layouts of a decoder.

    ``changes`` are the changes of tensors that all these layouts need. ``has_positions`` is true for a decoder with
    position embeddings. ``tied``, ``settings``, ``unfit`` and ``biases`` are as in ``Layout``.
    """
    joined, apart = (decoder.names(has_own_norms=one) for one in (False, True))
    stacks = tuple(Stacked(ours, theirs.replace(THEIRS, ALL)) for ours, theirs in joined.items())
    forms = (
        ("megatron", {**decoder.outer, **joined}, changes, f"{ALL}.0", f"{_QKV}.layer_norm_bias"),
        ("megatron-local", {**decoder.outer, **apart}, changes, f"{ALL}.0", "input_layernorm.bias"),
        ("megatron-dist", dict(decoder.outer), (*changes, *stacks), ALL, f"{_QKV}.layer_norm_bias"),
    )
    return tuple(
        Layout(
            name, LIBRARIES[name], "megatron-core 0.16.1", names,
            (WORDS, *((_POSITIONS,) if has_positions else ()), *(f"{layer}.{one}" for one in (own, *_MARKS))),
            made, aside=ASIDE, tied=tied, fits=_fits(layer, has_positions), settings=settings, unfit=unfit,
            biases=biases,
        )
        for name, names, made, layer, own in forms
    )  # fmt: skip


def _fits(layer: str, has_positions: bool) -> Callable[[Tensors], bool]:
    """Return a function that tests for an MLP without gates, and as many key heads as query heads, in ``layer``."""
    has_gates = gated(f"{layer}.{_FC1}.weight", f"{layer}.mlp.linear_fc2.weight")

    def fits(tensors: Tensors) -> bool:
        shape = tensors[f"{layer}.{_QKV}.weight"].shape
        is_thrice = len(shape) > 1 and shape[-2] == 3 * shape[-1]
        return is_thrice and (_POSITIONS in tensors) == has_positions and not has_gates(tensors)

    return fits
