"""Properties of layers that depend on the index of the layer, and that no list in config.json can set.

A layer that is moved to another index then computes something else, although its weights are the same. For example,
DiffLlama subtracts two attentions with a factor that depends on the index of the layer. Source: ``modeling_*.py`` of
transformers 5.23.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import exp
from typing import Any

from .derived_lists import LINEAR, RULES, Derive, Fields, positive

__all__ = ["depth_rules"]


def depth_rules(config: Fields, kind: str) -> Iterator[tuple[str, Derive]]:
    """Yield (name, rule) of each property that depends on the index of a layer, for the model type ``kind``.

    A rule is a function that gets a configuration and a number of layers, and returns a text for each layer.
    """
    if kind in _OF_TYPES:
        yield _OF_TYPES[kind]
    yield from ((name, rule) for name, rule in _BY_FIELD.items() if config.get(name))


def _lambda_init(_: Fields, number: int) -> list[Any]:
    return [f"{0.8 - 0.6 * exp(-0.3 * one):.6g}" for one in range(number)]


def _decay(config: Fields, number: int) -> list[Any]:
    """Return a text for each layer: its kind or, for linear attention, its decay.

    The decay depends on the index of the layer and on the number of layers.
    """
    kinds = config.get("layer_types") or RULES["layer_types"]["minimax"](config, number)
    return [f"decay {one}/{number - 1}" if kinds[one] == LINEAR else kinds[one] for one in range(number)]


def _equal_scale(_: Fields, number: int) -> list[Any]:
    return [f"1/sqrt({number}/36)"] * number


def _residual_scale(_: Fields, number: int) -> list[Any]:
    return [f"1/sqrt({2 * (one + 1)})" for one in range(number)]


def _inverse_index(_: Fields, number: int) -> list[Any]:
    return [f"1/{one + 1}" for one in range(number)]


def _block_boundary(config: Fields, number: int) -> list[Any]:
    step = positive(config, "n_layers_per_attn_res_block", usual=6)
    return ["inside a block" if one % step else "the first of a block" for one in range(number)]


_OF_TYPES: Mapping[str, tuple[str, Derive]] = {
    "beam": ("residual scale", _residual_scale),
    "diffllama": ("lambda_init", _lambda_init),
    "esmc": ("residual scale", _equal_scale),
    "inkling2_text": ("n_layers_per_attn_res_block", _block_boundary),
    "minimax": ("slope_rate", _decay),
}
"""{model type: (name, rule) of the property that depends on the index of a layer}"""

_BY_FIELD: Mapping[str, Derive] = {"scale_attn_by_inverse_layer_idx": _inverse_index}
"""{field: rule} for properties that any model type has if its configuration sets the field."""
