"""Properties of layers that transformers' classes derive from the index of the layer, and the fields that decide this.

For example, a layer of DeepSeek-V3 has experts if its index is at least ``first_k_dense_replace``. Sources:
``configuration_*.py`` and ``modeling_*.py`` of transformers 5.23.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby, islice
from typing import Any

from ....util.text import number_in
from .depth_rules import depth_rules
from .derived_lists import ENDS_IN_FULL, FULL, RULES, Derive, positive

__all__ = ["LayerKinds", "derived_lists", "layer_kinds", "model_type_in"]

Fields = Mapping[str, Any]
OWN_KEYS = "its own keys and values"
MOST = 10000
"""A number of layers that is this large, or larger, is not plausible."""


@dataclass(frozen=True)
class LayerKinds:
    """A property of layers, such as having experts, that follows from their indices and from a few fields.

    ``fields`` are all fields that determine the property, and ``name`` is the best known of them. For a configuration
    and a number of layers, ``kinds`` returns the property of each layer. ``ways`` does the reverse: for the wanted
    property of each layer, it yields {field: value} that may produce these properties.
    """

    name: str
    fields: tuple[str, ...]
    kinds: Callable[[Fields, int], Sequence[Any]]
    ways: Callable[[Sequence[Any]], Iterable[dict[str, Any]]]

    def said(self, config: Fields, wanted: Sequence[Any]) -> dict[str, Any] | None:
        """Return {field: value} to set, so that the layers get the properties ``wanted``; None if no values do this.

        The result is empty if the layers have these properties already.
        """
        tried = ({}, *self.ways(wanted)) if wanted else ()
        return next((way for way in tried if self.of({**config, **way}, len(wanted)) == list(wanted)), None)

    def of(self, config: Fields, number: int) -> list[Any]:
        """Return the property of each of ``number`` layers; empty if fields have values that no class accepts.

        The list is also empty if the number of layers is implausible: a huge list would need too much memory.
        """
        if not 0 < number < MOST:
            return []
        try:
            return list(self.kinds(config, number))
        except (ArithmeticError, AttributeError, IndexError, KeyError, TypeError, ValueError):
            return []


def model_type_in(config: Fields, part: str = "") -> str:
    """Return the model type of ``config``, or of its nested configuration ``part`` (such as ``text_config``).

    Older nested configurations do not state their type. The type of a ``text_config`` is then guessed: it is the type
    of ``config`` with the ending "_text". For other nested configurations, the result is ''.
    """
    inner = config.get(part) if part else config
    found = inner.get("model_type") if isinstance(inner, Mapping) else None
    outer = config.get("model_type")
    guessed = f"{outer}_text" if part == "text_config" and isinstance(outer, str) else ""
    return found if isinstance(found, str) else guessed


def derived_lists(config: Fields) -> dict[str, list[Any]]:
    """Return {field: list with an entry for each layer} for the lists that are not set, and that the class derives."""
    number, kind = config.get("num_hidden_layers"), model_type_in(config)
    if type(number) is not int:
        return {}
    made = {one.name: one.of(config, number) for one in _lists(kind) if config.get(one.name) is None}
    return {name: kinds for name, kinds in made.items() if kinds}


def layer_kinds(config: Fields, kind: str) -> Iterator[LayerKinds]:
    """Yield the properties of layers that the class of the model type ``kind`` derives from the layers' indices."""
    known = _OF_TYPES.get(kind, ())
    yield from _lists(kind)
    yield from known
    for name in INDICES:
        if _are_indices(config.get(name)) and not any(name in one.fields for one in known):
            yield _indices(name)
    yield from (one for one in _BY_FIELD if config.get(one.name))
    yield from (LayerKinds(name, (name,), rule, _no_ways) for name, rule in depth_rules(config, kind))


def _lists(kind: str) -> Iterator[LayerKinds]:
    """Yield the properties that models of the type ``kind`` have in a list with an entry for each layer.

    ``layer_types`` is an example of such a list.
    """
    for name, rules in RULES.items():
        if kind in rules:
            ends_in_full = name == "layer_types" and kind in ENDS_IN_FULL
            kinds = partial(_listed, name, rules[kind], ends_in_full=ends_in_full)
            yield LayerKinds(name, (name,), kinds, partial(_as_list, name))


def _listed(name: str, rule: Derive, config: Fields, number: int, *, ends_in_full: bool) -> list[Any]:
    given = config.get(name)
    found = given[:number] if isinstance(given, list) else rule(config, number)
    return [*found[:-1], FULL] if ends_in_full and found else found


def _as_list(name: str, kinds: Sequence[Any]) -> list[dict[str, Any]]:
    return [{name: list(kinds)}]


# Lists of the indices of the layers that have a property.

INDICES = (
    "attn_layer_indices", "cross_attention_layers", "full_attn_idxs", "global_attn_indexes", "local_layer_ids",
    "moe_layers", "rope_scaling_layers", "window_block_indexes", "window_block_indices",
)  # fmt: skip
"""Fields with a list of the indices of those layers that have a certain property."""


def _are_indices(value: Any) -> bool:
    return isinstance(value, list) and all(type(one) is int and one >= 0 for one in value)


def _indices(name: str, derive: Callable[[Fields, int], Iterable[int]] | None = None) -> LayerKinds:
    """Return a property of layers: "listed" for the layers whose indices are in the field ``name``, else "unlisted".

    If the field is not set, the function ``derive`` returns the indices.
    """

    def kinds(config: Fields, number: int) -> list[str]:
        given = config.get(name)
        there = {*(given if isinstance(given, list) else derive(config, number) if derive else ())}
        beyond = ["listed"] * (isinstance(given, list) and max(there, default=0) >= number)
        return [*("listed" if one in there else "unlisted" for one in range(number)), *beyond]

    return LayerKinds(name, (name,), kinds, lambda kinds: [{name: _places(kinds, "listed")}])


def _places(kinds: Sequence[Any], wanted: str) -> list[int]:
    return [at for at, one in enumerate(kinds) if one == wanted]


def _interleaved(config: Fields, number: int) -> Iterable[int]:
    step = positive(config, "interleave_moe_layer_step", usual=1)
    return range(step - 1, number, step)


# Properties that other fields state: numbers of first layers, periods, patterns.


def _first(name: str, usual: int, *, before: str = "dense", after: str = "sparse") -> LayerKinds:
    """Return a property of layers that has the value ``before`` for the first layers, and ``after`` for the others.

    The field ``name`` says how many layers are the first ones, and ``usual`` is its default.
    """

    def kinds(config: Fields, number: int) -> list[str]:
        first = config.get(name, usual)
        return [before if type(first) is int and one < first else after for one in range(number)]

    return LayerKinds(name, (name,), kinds, lambda kinds: [{name: list(kinds).count(before)}])


def _periodic(names: tuple[str, str], usual: tuple[int, int], inside: str, outside: str) -> LayerKinds:
    """Return a property that one layer in each period has: the layers whose index modulo the period is the offset.

    ``names`` are the fields with the period and the offset, and ``usual`` are their defaults. ``inside`` is the value
    for the layers at the offset, ``outside`` the value for all other layers.
    """

    def kinds(config: Fields, number: int) -> list[str]:
        period, offset = positive(config, names[0], usual=usual[0]), config.get(names[1], usual[1])
        return [inside if one % period == offset else outside for one in range(number)]

    def ways(kinds: Sequence[Any]) -> Iterator[dict[str, Any]]:
        places = _places(kinds, inside)
        yield dict(zip(names, (len(kinds) + 1, places[0] if places else len(kinds)), strict=True))
        if len(places) > 1:
            yield dict(zip(names, (places[1] - places[0], places[0]), strict=True))

    return LayerKinds(names[0], names, kinds, ways)


def _sparse(first_dense: Sequence[int] = ()) -> LayerKinds:
    """Return a property of layers: "sparse" for layers with experts, "dense" for the others, by the rules of Qwen.

    ``first_dense`` is the default of ``mlp_only_layers``.
    """

    def kinds(config: Fields, number: int) -> list[str]:
        step, given = positive(config, "decoder_sparse_step", usual=1), config.get("mlp_only_layers")
        dense = first_dense if given is None else given
        return ["dense" if one in dense or (one + 1) % step else "sparse" for one in range(number)]

    def ways(kinds: Sequence[Any]) -> list[dict[str, Any]]:
        return [{"mlp_only_layers": _places(kinds, "dense"), "decoder_sparse_step": 1}]

    return LayerKinds("mlp_only_layers", ("mlp_only_layers", "decoder_sparse_step"), kinds, ways)


_RANGE = ("moe_layer_start_index", "moe_layer_end_index", "moe_layer_interval")


def _ernie(config: Fields, number: int) -> list[str]:
    begin, end = config.get(_RANGE[0], 1), config.get(_RANGE[1], -1)
    step, end = positive(config, _RANGE[2], usual=1), number - 1 if end == -1 else end
    return ["sparse" if begin <= one <= end and (one + 1) % step == 0 else "dense" for one in range(number)]


def _ernie_ways(kinds: Sequence[Any]) -> Iterator[dict[str, Any]]:
    places = _places(kinds, "sparse") or [len(kinds)]
    step = places[1] - places[0] if len(places) > 1 else 1
    yield dict(zip(_RANGE, (places[0], places[-1], step), strict=True))


def _gpt_neo(config: Fields, number: int) -> list[str]:
    given = config.get("attention_types") or [[["global", "local"], 12]]
    return [*islice((kind for kinds, times in given for kind in kinds * min(times, number)), number + 1)]


def _gpt_neo_ways(kinds: Sequence[Any]) -> Iterator[dict[str, Any]]:
    pair, times = list(kinds[:2]), len(kinds) // 2
    if list(kinds) == pair * times:
        yield {"attention_types": [[pair, times]]}
    yield {"attention_types": [[[kind], len(list(run))] for kind, run in groupby(kinds)]}


def _griffin(config: Fields, number: int) -> list[str]:
    pattern = config.get("block_types") or ["recurrent", "recurrent", "attention"]
    return [pattern[one % len(pattern)] for one in range(number)]


_OF_TYPES: Mapping[str, Sequence[LayerKinds]] = {
    **dict.fromkeys(("deepseek_v2", "dots1", "mistral4"), (_first("first_k_dense_replace", 0),)),
    **dict.fromkeys(("glm4_moe", "glm4v_moe_text"), (_first("first_k_dense_replace", 1),)),
    "deepseek_v3": (_first("first_k_dense_replace", 3),),
    "afmoe": (_first("num_dense_layers", 1),),
    "lfm2_moe": (_first("num_dense_layers", 2),),
    **dict.fromkeys((
        "qwen2_moe", "qwen3_moe", "qwen3_next", "qwen3_omni_moe_text", "qwen3_omni_moe_talker_text",
        "qwen3_vl_moe_text"), (_sparse(),)),
    "flint": (_sparse((0, 1)),),
    "llama4_text": (_indices("moe_layers", _interleaved),),
    "mllama_text_model": (_indices("cross_attention_layers", lambda *_: range(3, 40, 5)),),
    **dict.fromkeys((
        "deepseek_ocr2_sam_vision_model", "got_ocr2_vision", "pp_chart2table_vision", "pp_formulanet_vision",
        "sam_hq_vision_model", "sam_vision_model", "slanext_vision", "unlimited_ocr_sam_vision_model"),
        (_indices("global_attn_indexes", lambda *_: (2, 5, 8, 11)),)),
    "sam3_vit_model": (_indices("global_attn_indexes", lambda *_: (7, 15, 23, 31)),),
    "lfm2": (_indices("full_attn_idxs", lambda _, number: range(number)),),
    "jamba": (
        _periodic(("attn_layer_period", "attn_layer_offset"), (8, 4), "attention", "mamba"),
        _periodic(("expert_layer_period", "expert_layer_offset"), (2, 1), "sparse", "dense"),
    ),
    "ernie4_5_moe": (LayerKinds("moe_layer_interval", _RANGE, _ernie, _ernie_ways),),
    "gpt_neo": (LayerKinds("attention_types", ("attention_types",), _gpt_neo, _gpt_neo_ways),),
    "recurrent_gemma": (LayerKinds("block_types", ("block_types",), _griffin, partial(_as_list, "block_types")),),
}  # fmt: skip
"""{model type: properties that follow from the indices of layers}"""


def _shared(config: Fields, number: int) -> list[str]:
    shared = positive(config, "num_kv_shared_layers", usual=0)
    first = number - shared
    return ["keys and values of an earlier layer" if one >= first else OWN_KEYS for one in range(number)]


def _of_layer(config: Fields, number: int) -> list[Any]:
    """Return the settings of each of ``number`` layers in ``per_layer_config``; None for a layer without settings.

    If the field has settings for layers that do not exist, the list has one entry more than there are layers, so that
    it equals no valid list.
    """
    given = config.get("per_layer_config")
    if not isinstance(given, Mapping):
        return [None] * number
    beyond = [one for at, one in given.items() if (number_in(at) or 0) >= number]
    return [*(given.get(str(one)) for one in range(number)), *beyond[:1]]


def _no_ways(_: Sequence[Any]) -> Iterable[dict[str, Any]]:
    return ()


_BY_FIELD = (
    LayerKinds(
        "num_kv_shared_layers", ("num_kv_shared_layers",), _shared,
        lambda kinds: [{"num_kv_shared_layers": len([one for one in kinds if one != OWN_KEYS])}],
    ),
    LayerKinds(
        "per_layer_config", ("per_layer_config",), _of_layer,
        lambda kinds: [{"per_layer_config": {str(at): one for at, one in enumerate(kinds) if one is not None}}],
    ),
    LayerKinds(
        "hybrid_override_pattern", ("hybrid_override_pattern",),
        lambda config, number: list(config["hybrid_override_pattern"][: number + 1]),
        lambda kinds: [{"hybrid_override_pattern": "".join(map(str, kinds))}],
    ),
)  # fmt: skip
"""Properties that any model type has if its configuration sets the field."""
