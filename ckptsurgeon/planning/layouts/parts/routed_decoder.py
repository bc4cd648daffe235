"""Decoders with an expert that all tokens share, and a router with a bias that balances the other experts.

DeepSeek-V3 and GLM-4.5 have them, and networks that follow them: transformers' files, its networks in memory since
version 5 (stacked), MLX, and Megatron-core. The first layers may have no experts, and layers that predict later tokens
may follow the last.
https://github.com/NVIDIA-NeMo/Megatron-Bridge/blob/main/src/megatron/bridge/models/deepseek/deepseek_v3_bridge.py,
https://github.com/NVIDIA-NeMo/Megatron-Bridge/blob/main/src/megatron/bridge/models/glm/glm45_bridge.py
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from ..changes import Fused, Stacked
from ..layout import NO_NUMBERS, Change, Family, Layout, Numbers, Tensors
from .megatron_mlp import Experts, expert_layouts
from .mlx import MLX, MLX_TESTED, UNSURE, mlx_stacks, unfit_for_modules, unfit_for_switch
from .mlx_latent import latent_changes, unfit_for_joined, unfit_for_latent
from .predictors import Layers, alike, change_of_layer, copies, layers_of, own_names

__all__ = ["SHARED", "RoutedDecoder"]

_LAYER = "model.layers.{n}"
_EXPERT, _STACK = f"{_LAYER}.mlp.experts.{{i}}", f"{_LAYER}.mlp.experts"
_KINDS = ("gate_proj", "up_proj", "down_proj")
_DENSE = tuple(f"{_LAYER}.mlp.{kind}" for kind in _KINDS)
_BIAS = "mlp.gate.e_score_correction_bias"
_AROUND = (
    f"{_LAYER}.mlp.gate.weight",
    f"{_LAYER}.{_BIAS}",
    *(f"{_LAYER}.mlp.shared_experts.{kind}" for kind in _KINDS),
)
_EXPERTS = tuple(f"{_EXPERT}.{kind}.weight" for kind in _KINDS)
_GATE_UP = f"{_EXPERT}.gate_up_proj.weight"
_CHANGES = (
    Fused(_EXPERTS[:2], _GATE_UP),
    Stacked(_GATE_UP, f"{_STACK}.gate_up_proj"),
    Stacked(_EXPERTS[2], f"{_STACK}.down_proj"),
)
_SWITCH, _MODULES = (mlx_stacks(_EXPERTS, module) for module in (f"{_LAYER}.mlp.switch_mlp", _STACK))
_LATENT, _JOINED = f"{_LAYER}.self_attn", "self_attn.kv_b_proj.weight"
_EMBEDDING = "model.embed_tokens.weight"
_BESIDE = {
    "mlp.gate.weight": "mlp.router.weight",
    _BIAS: "mlp.router.expert_bias",
    "mlp.shared_experts.down_proj": "mlp.shared_experts.linear_fc2",
}
SHARED = "mlp.shared_experts.linear_fc1.weight"
"""Megatron's name of a matrix of the expert that all tokens share."""


@dataclass(frozen=True)
class RoutedDecoder:
    """The names of a decoder with experts: ``attention`` are transformers' modules and keys of a layer's attention.

    ``marks`` are keys that every layer with experts has in transformers, ``megatron_marks`` its keys in Megatron.
    ``inside`` maps further names in a layer to Megatron's. ``has_latent`` is true for multi-latent attention.
    """

    name: str
    attention: tuple[str, ...]
    marks: tuple[str, ...]
    megatron_marks: tuple[str, ...] = ()
    inside: tuple[tuple[str, str], ...] = ()
    has_latent: bool = False
    numbers: Callable[[Tensors, Mapping[str, Any]], Numbers] = lambda tensors, config: NO_NUMBERS

    @lru_cache(maxsize=16)  # noqa: B019 -- there are two of them, which are never freed
    def family(self, layers: Layers = Layers()) -> Family:  # noqa: B008 -- it cannot be changed
        """Return the family with the names for the given layers."""
        gate, up, down = _EXPERTS
        beside = {**dict(self.inside), **_BESIDE}
        experts = Experts(gate, up, down, beside, (_AROUND[2], _AROUND[3]), self.has_latent)
        return Family(
            self.name,
            (*self._around_transformers(layers), *expert_layouts(experts, *self.megatron_marks, layers=layers)),
            self.numbers,
            some=(_DENSE, (*_AROUND, *_EXPERTS)),
            alike=alike(layers),
            shaped=self._shaped,
            kin=(self.name, layers.dense),
            routed=(_AROUND[0], down),
        )

    def _shaped(self, tensors: Tensors) -> Family | None:
        return self.family(layers_of(tensors) or Layers())

    def _around_transformers(self, layers: Layers) -> tuple[Layout, ...]:
        """Return the layouts of transformers' files and of networks in memory, and of MLX."""
        files = self._form("transformers", layers, _EXPERTS, "experts.0.gate_proj.weight", ())
        memory = self._form("stacked", layers, (), "experts.gate_up_proj", _CHANGES)
        memory = replace(memory, library="transformers 5 in memory")
        return files, memory, *(self._latent_in_mlx if self.has_latent else self._in_mlx)(layers)

    def _in_mlx(self, layers: Layers) -> Iterator[Layout]:
        """Yield the layouts of MLX: that of GLM-4.5, and that of dots.llm1, which has its stacks in another module."""
        for module, changes, unfit, unsure in (
            ("switch_mlp", _SWITCH, unfit_for_switch, UNSURE),
            ("experts", _MODULES, unfit_for_modules, ""),
        ):
            stacks = self._form("mlx", layers, (), f"{module}.gate_proj.weight", changes)
            yield replace(stacks, library=MLX, tested=MLX_TESTED, unfit=unfit, unsure=unsure)

    def _latent_in_mlx(self, layers: Layers) -> Iterator[Layout]:
        """Yield the layouts of MLX with multi-latent attention: that of DeepSeek-V2, and that of all later networks."""
        joined = self._form("mlx", layers, (), "switch_mlp.gate_proj.weight", _SWITCH)
        joined = replace(joined, library=MLX, tested=MLX_TESTED, unfit=unfit_for_joined)
        yield replace(joined, names={name: name for name in joined.names if not name.endswith(_BIAS)})
        marks = (*joined.marks, f"model.layers.{layers.first}.self_attn.embed_q.weight")
        names = {name: name for name in joined.names if not name.endswith(_JOINED)}
        parted = (change_of_layer(one, n) for n in layers.predictors for one in latent_changes(_LATENT))
        changes = (*parted, *latent_changes(_LATENT), *joined.changes)
        yield replace(joined, names=names, marks=marks, changes=changes, unfit=unfit_for_latent)

    def _form(
        self, name: str, layers: Layers, experts: tuple[str, ...], mark: str, changes: tuple[Change, ...]
    ) -> Layout:
        """Return a layout with transformers' names; ``mark`` is a key in the MLP of every layer with experts."""
        first = f"{_LAYER}.".format(n=layers.first)
        return Layout(
            name, "transformers", "transformers 5.23.0", self._names(layers, experts),
            (_EMBEDDING, f"{first}mlp.{mark}", *(f"{first}{one}" for one in self.marks)),
            (*(change_of_layer(one, n) for n in layers.predictors for one in changes), *changes),
            ("model.rotary_emb", f"{_LAYER}.self_attn.rotary_emb"),
            needed=copies(layers),
        )  # fmt: skip

    def _names(self, layers: Layers, experts: tuple[str, ...]) -> dict[str, str]:
        """Return transformers' names, each mapped to itself; the names of single layers come first."""
        inside = (*self.attention, "input_layernorm.weight", "post_attention_layernorm.weight")
        every = (*(f"{_LAYER}.{one}" for one in inside), *_DENSE, *_AROUND, *experts)
        norms = (f"model.layers.{n}.post_attention_layernorm.weight" for n in layers.dense)
        later = (name.replace("{n}", str(n)) for n in layers.predictors for name in every)
        names = (*norms, *own_names(layers), *later, "model.embed_tokens", *every, "model.norm.weight", "lm_head")
        return {name: name for name in names}
