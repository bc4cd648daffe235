"""Layers that predict later tokens (multi-token prediction), which follow the last layer in files of transformers.

DeepSeek-V3 and GLM-4.5 have one such layer, which transformers does not build. In its files, this layer has the next
number after the last layer. It has the norms of the embedding (`enorm`) and of the hidden states (`hnorm`), the matrix
that joins the two (`eh_proj`), and copies of the embedding and of the output layer. Megatron-core stores it under
`mtp`, without the copies.
https://github.com/NVIDIA/Megatron-LM/blob/core_v0.16.1/megatron/core/transformer/multi_token_prediction.py,
https://github.com/NVIDIA-NeMo/Megatron-Bridge/blob/main/src/megatron/bridge/models/glm/glm45_bridge.py
"""

from __future__ import annotations

from dataclasses import fields, replace
from itertools import count
from typing import TYPE_CHECKING, Any, NamedTuple

from ..layout import Change, Layout, Tensors
from .megatron import OURS, THEIRS

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

__all__ = ["Layers", "alike", "change_of_layer", "copies", "layers_of", "own_names", "with_predictors"]

_LAYERS = (
    ("model.layers.", ".input_layernorm.weight", ".mlp.down_proj.weight"),
    ("decoder.layers.", ".self_attention.linear_proj.weight", ".mlp.linear_fc2.weight"),
)
"""(beginning of keys of a layer, the ending that every layer has, the ending that only layers without experts have): in
transformers, and in Megatron."""
_JOINS = ("model.layers.", ".eh_proj.weight"), ("mtp.layers.", ".eh_proj.weight")
_MOST = 16
"""The largest number of predicting layers; known networks have one."""
_OUTER = {
    "enorm.weight": "enorm.weight",
    "hnorm.weight": "hnorm.weight",
    "eh_proj.weight": "eh_proj.weight",
    "shared_head.norm.weight": "final_layernorm.weight",
}
"""{name of a tensor around a predicting layer in transformers' files: Megatron's name}."""
_COPIES = {"embed_tokens.weight": "model.embed_tokens.weight", "shared_head.head.weight": "lm_head.weight"}
"""{name of a copy in a predicting layer of transformers' files: name of the copied tensor}."""


class Layers(NamedTuple):
    """Numbers of layers in transformers: of layers without experts, and of layers that predict later tokens."""

    dense: tuple[int, ...] = ()
    predictors: tuple[int, ...] = ()

    @property
    def first(self) -> int:
        """The number of the first layer with experts."""
        among = frozenset(self.dense)
        return next(n for n in count() if n not in among)


def layers_of(tensors: Tensors) -> Layers | None:
    """Return the kinds of the layers of a decoder; None if no layer has experts, or the layers have no numbers."""
    for (begin, every, dense), is_megatron in zip(_LAYERS, (False, True), strict=True):
        number = 0
        while f"{begin}{number}{every}" in tensors:
            number += 1
        without = tuple([n for n in range(number) if f"{begin}{n}{dense}" in tensors])
        if len(without) < number:
            return Layers(without, _predictors(tensors, number, is_megatron=is_megatron))
    return None


def _predictors(tensors: Tensors, number: int, *, is_megatron: bool) -> tuple[int, ...]:
    """Return the indices of the predicting layers in transformers' files; ``number`` is the number of layers found."""
    begin, end = _JOINS[is_megatron]
    first, last = (number, number + _MOST + 1) if is_megatron else (0, number)
    offset = number if is_megatron else 0
    found = tuple([n for n in range(first, last) if f"{begin}{n - offset}{end}" in tensors])
    return found if len(found) <= _MOST else ()


def own_names(layers: Layers) -> dict[str, str]:
    """Return the names that only predicting layers have in transformers' files, each mapped to itself."""
    around = (*_OUTER, *_COPIES)
    return {name: name for n in layers.predictors for name in (f"model.layers.{n}.{one}" for one in around)}


def alike(layers: Layers) -> tuple[tuple[str, ...], ...]:
    """Return a group of modules for each predicting layer: its four additional modules; each has one weight."""
    names = tuple(one.removesuffix(".weight") for one in _OUTER)
    return tuple(tuple(f"model.layers.{n}.{name}" for name in names) for n in layers.predictors)


def copies(layers: Layers) -> dict[str, str]:
    """Return {name of a copy in a predicting layer: name of the tensor that it equals}."""
    return {f"model.layers.{n}.{ours}": of for n in layers.predictors for ours, of in _COPIES.items()}


def with_predictors(layout: Layout, layers: Layers) -> Layout:
    """Return a layout of Megatron-core with the names and changes of predicting layers before all others."""
    names: dict[str, str] = {}
    changes: list[Change] = []
    lists: dict[str, str] = {}
    for place, number in enumerate(layers.predictors):
        around, inside = f"mtp.layers.{place}", f"mtp.layers.{place}.transformer_layer"
        names |= {f"model.layers.{number}.{ours}": f"{around}.{theirs}" for ours, theirs in _OUTER.items()}
        moved = {ours: theirs for ours, theirs in layout.names.items() if ours.startswith(OURS)}
        names |= {_of_layer(ours, number, inside): _of_layer(theirs, number, inside) for ours, theirs in moved.items()}
        changes += (change_of_layer(one, number, inside) for one in layout.changes)
        lists[f"{inside}."] = f"decoder.layers.{number}."
    return replace(
        layout,
        names={**names, **layout.names},
        changes=(*changes, *layout.changes),
        tied=copies(layers),
        beside_list=lists,
    )


def _of_layer(name: str, number: int, inside: str) -> str:
    """Return ``name``, Megatron's name of a tensor in all layers, for the predicting layer with the index ``number``.

    ``inside`` is Megatron's name of this layer, such as ``mtp.layers.0.transformer_layer``.
    """
    return name.replace(THEIRS, inside).replace("{n}", str(number))


def change_of_layer(change: Change, number: int, inside: str = "") -> Change:
    """Return ``change`` for the predicting layer ``number`` alone.

    ``change`` is for all layers. ``inside`` is Megatron's name of the predicting layer.
    """

    def of_layer(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(map(of_layer, value))
        return _of_layer(value, number, inside) if isinstance(value, str) else value

    found: DataclassInstance = change  # type: ignore[assignment]
    return replace(found, **{one.name: of_layer(getattr(found, one.name)) for one in fields(found)})  # type: ignore[return-value]
