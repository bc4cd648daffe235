"""Notes on layers: their number in config.json, gaps in their numbers, tensors that single layers lack."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ...planning.merge.layers import LayerList, all_lists
from ...util.text import count, escape
from .config import declared_layers
from .config_fields import base_of_rope
from .dtype_checks import dtype_notes
from .layer_holes import STACKS, hole_notes, is_stack, uneven_notes
from .layer_kinds import layer_kind_notes
from .shape_checks import DescribedTensor

__all__ = ["STACKS", "factor_notes", "layer_notes", "rotary_differences", "with_order"]

# The order of the kinds of layers and their rotary embeddings, with the defaults for what a configuration omits.

_PERIODS = {
    "afmoe": 4, "cohere2": 4, "exaone4": 4, "exaone_moe": 4, "gemma2": 2, "gemma3_text": 6, "gemma3n_text": 5,
    "gpt_oss": 2, "olmo3": 4, "vaultgemma": 2,
}  # fmt: skip
"""Default period of each model type: the last layer of a period has full attention, the others a sliding window."""
_FIRST = {"cwm": 4, "modernbert": 3, "modernbert-decoder": 3}
"""Default period of model types in which the first layer of a period has full attention."""
_WINDOWED = ("qwen2", "qwen2_moe", "qwen3", "qwen3_moe")
"""Model types whose layers from ``max_window_layers`` on have a sliding window, if ``use_sliding_window`` is true."""
_PATTERN = ("sliding_window_pattern", "_sliding_window_pattern", "global_attn_every_n_layers")
"""Fields that override the period."""
_UNROTATED = ("llama4_text", "smollm3")
"""Model types in which, by default, every fourth layer has no rotary embeddings."""
_FULL, _SLIDING = "full_attention", "sliding_attention"
_BASES = {
    "gemma3_text": (("rope_theta", 1e6), ("rope_local_base_freq", 1e4)),
    "gemma3n_text": (("rope_theta", 1e6), ("rope_local_base_freq", 1e4)),
    "modernbert": (("global_rope_theta", 160000.0), ("local_rope_theta", 1e4)),
    "modernbert-decoder": (("global_rope_theta", 160000.0), ("local_rope_theta", 1e4)),
}
"""Older fields with the base of rotary embeddings in full attention, and in sliding attention; with defaults."""


def with_order(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields on the order of layers that a configuration omits, with the defaults of its class."""
    kind = config.get("model_type")
    number = config.get("num_hidden_layers")
    made: dict[str, Any] = {}
    if not isinstance(kind, str):
        return made
    period = next(
        (config[name] for name in _PATTERN if config.get(name) is not None), _PERIODS.get(kind, _FIRST.get(kind))
    )
    if kind in _PERIODS and not any(name in config for name in _PATTERN):
        made |= dict.fromkeys(_PATTERN, period)
    if type(number) is not int or not 0 < number < 10000:
        return made
    if type(period) is int and period > 0 and (kind in _PERIODS or kind in _FIRST):
        full = 0 if kind in _FIRST else period - 1
        made["layer_types"] = [_FULL if one % period == full else _SLIDING for one in range(number)]
    elif kind in _WINDOWED:
        first = config.get("max_window_layers", 28) if config.get("use_sliding_window") else number
        made["layer_types"] = [_SLIDING if type(first) is int and one >= first else _FULL for one in range(number)]
    if kind in _UNROTATED:
        step = config.get("no_rope_layer_interval") or 4
        made["no_rope_layers"] = [int((one + 1) % step != 0) for one in range(number)]
    return {name: value for name, value in made.items() if config.get(name) is None}


def factor_notes(config: Mapping[str, Any]) -> Iterator[str]:
    """Yield a note on factors of long texts of which there is not one for each pair of rotated numbers of a head."""
    if config.get("model_type") not in OF_PHI:
        return
    rope, width, heads = _rope(config), config.get("hidden_size"), config.get("num_attention_heads")
    share = rope.get("partial_rotary_factor", config.get("partial_rotary_factor", 1.0))
    if not (isinstance(width, int) and isinstance(heads, int) and heads > 0):
        return
    if not (isinstance(share, (int, float)) and 0 < share <= 1):
        return
    pairs = int(width // heads * share) // 2
    for field in ("short_factor", "long_factor"):
        given = rope.get(field)
        if isinstance(given, list) and len(given) != pairs > 0:
            yield (
                f"config.json has {count(len(given), 'number')} in {field}, but a head rotates "
                f"{count(pairs, 'pair')} of numbers: the model cannot be run"
            )


OF_PHI = ("phi3", "phimoe", "phi4_multimodal")
"""Model types with a factor for each pair of numbers that a head rotates, for texts of two lengths."""


def rotary_differences(
    theirs: Mapping[str, Any], ours: Mapping[str, Any], *, is_one_kind: bool
) -> Iterator[tuple[str, Any, Any]]:
    """Yield (field, their value, our value) for fields of rotary embeddings that differ; None is for a field not set.

    Fields with their older names are compared with the newer ones. ``is_one_kind`` says whether both models have the
    same type.
    """
    pair = _by_kind(theirs), _by_kind(ours)
    if pair[0] is None and pair[1] is None:
        yield from _compared(_rope(theirs), _rope(ours), ours, is_one_kind=is_one_kind)
        return
    kind = ours.get("model_type")
    found = [
        _older(config) if one is None and is_one_kind else one for one, config in zip(pair, (theirs, ours), strict=True)
    ]
    if found[0] is None or found[1] is None:
        return
    usual = (
        {_FULL: _BASES[kind][0][1], _SLIDING: _BASES[kind][1][1]} if isinstance(kind, str) and kind in _BASES else {}
    )
    for name in found[1]:
        if name in found[0]:
            one, here = found[0][name], found[1][name]
            for field, former, later in _compared(one, here, ours, is_one_kind=is_one_kind, usual=usual.get(name)):
                yield f"{field} of {name}", former, later


def _compared(
    one: Mapping[str, Any],
    here: Mapping[str, Any],
    ours: Mapping[str, Any],
    *,
    is_one_kind: bool,
    usual: float | None = None,
) -> Iterator[tuple[str, Any, Any]]:
    base = (base_of_rope(ours.get("model_type")) if usual is None else usual) if is_one_kind else None
    pair = [found.get("rope_theta") for found in (one, here)]
    meant = [base if value is None else value for value in pair]
    if meant[0] != meant[1] and None not in meant and pair != [None, None]:
        yield "rope_theta", pair[0], pair[1]
    rest = [{name: value for name, value in found.items() if name != "rope_theta"} for found in (one, here)]
    same = rest[0].get("rope_type") == rest[1].get("rope_type")
    if not same or any(rest[0][name] != rest[1][name] for name in rest[0] if name in rest[1]):
        yield "rope_scaling", rest[0], rest[1]


def _by_kind(config: Mapping[str, Any]) -> dict[str, dict[str, Any]] | None:
    """Return the settings of rotary embeddings for each kind of layers (sliding or full attention, for instance).

    Returns None if the configuration has the same settings for all layers.
    """
    given = config.get("rope_parameters")
    found = {name: value for name, value in given.items() if isinstance(value, dict)} if isinstance(given, dict) else {}
    return {name: _plain(value) for name, value in found.items()} or None


def _older(config: Mapping[str, Any]) -> dict[str, dict[str, Any]] | None:
    """Return settings of rotary embeddings for each kind of layers from a configuration older than transformers 5.

    Returns None if its class has no kinds of layers.
    """
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in _BASES:
        return None
    bases = [config.get(field, usual) for field, usual in _BASES[kind]]
    given = config.get("rope_scaling")
    scaling = _plain(given) if isinstance(given, dict) else {"rope_type": "default"}
    return {_FULL: {**scaling, "rope_theta": bases[0]}, _SLIDING: {"rope_type": "default", "rope_theta": bases[1]}}


def _plain(given: Mapping[str, Any]) -> dict[str, Any]:
    found = {"rope_type": given.get("type", "default"), **given}
    found.pop("type", None)
    return found


def _rope(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of rotary embeddings (scaling, base) that a configuration has for all layers.

    If it has both the older section ``rope_scaling`` and ``rope_parameters``, transformers 5 takes the older one.
    """
    found: dict[str, Any] = {"rope_type": "default"}
    older = config.get("rope_scaling")
    given = older if isinstance(older, dict) and older else config.get("rope_parameters")
    section = given if isinstance(given, dict) else {}
    for field, value in section.items():
        found["rope_type" if field == "type" and "rope_type" not in section else field] = value
    found.pop("type", None)
    theta = config.get("rope_theta")
    return {**({} if theta is None else {"rope_theta": theta}), **found}


COUNTED_OTHERWISE = ("efficientnet", "hrm_text", "swin2sr")
"""Model types whose configured number of layers is not the length of a list of modules."""


def layer_notes(tensors: Sequence[DescribedTensor], config: Mapping[str, Any]) -> Iterator[str]:
    """Yield notes on layers that contradict a configuration: wrong number, gaps, missing tensors, differing shapes."""
    keys = [one.key for one in tensors]
    kinds, number = config.get("layer_types"), config.get("num_hidden_layers")
    if isinstance(kinds, list) and type(number) is int and len(kinds) != number:
        has = f"layer_types of config.json has {count(len(kinds), 'entry', 'entries')}"
        yield f"{has}, but num_hidden_layers is {number}: transformers 5 cannot load this model"
    yield from uneven_notes(tensors, config)
    yield from dtype_notes(tensors, config)
    yield from layer_kind_notes(keys, config)
    lists, gaps = all_lists(keys)
    yield from _gaps(lists, gaps, config)
    yield from hole_notes(lists, gaps, keys, config)
    stacks = [one for one in lists if one.prefix.rpartition(".")[2] in STACKS]
    for name, value in declared_layers(config).items() if stacks else ():
        side = next((one for one in ("decoder", "encoder") if one in name), "")
        if (side and not any(f"{side}." in key for key in keys)) or config.get("model_type") in COUNTED_OTHERWISE:
            continue
        counts = (value, value + _more_layers(config))
        if not any(one.count in counts for one in lists):
            most = max(stacks, key=lambda one: one.count)
            has = f"{escape(most.prefix)} has {count(most.count, 'layer')}"
            rest = "ignores the others" if most.count > value else "initialises the others"
            yield f"config.json says {value} ({name}), but {has}: transformers {rest}"
            return


def _gaps(lists: Sequence[LayerList], gaps: Mapping[str, set[int]], config: Mapping[str, Any]) -> Iterator[str]:
    """Yield a note if the numbers of layers in the keys have gaps or do not begin at 0.

    There is no note if another list of numbered modules has all declared layers: then the gaps are modules without
    weights.
    """
    declared = set(declared_layers(config).values())
    if not declared - {one.count for one in lists}:
        return
    for prefix, numbers in gaps.items():
        if is_stack(prefix):
            first = next(number for number in range(max(numbers)) if number not in numbers)
            lost = count(max(numbers) + 1 - len(numbers), "layer")
            has = f"{escape(prefix)} has layers up to {max(numbers)} but lacks {lost}, the first is {first}"
            yield f"{has}: transformers initialises what is missing"
            return


def _more_layers(config: Mapping[str, Any]) -> int:
    """Return how many layers for multi-token prediction follow the declared ones (DeepSeek-V3, GLM-4.5)."""
    more = config.get("num_nextn_predict_layers")
    return more if type(more) is int else 0
