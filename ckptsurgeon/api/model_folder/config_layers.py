"""What a configuration says of each kind of layers: their order, and rotary embeddings; also if it leaves that out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from .config_fields import base_of_rope

__all__ = ["rotary_differences", "with_order"]

_PERIODS = {
    "afmoe": 4, "cohere2": 4, "exaone4": 4, "exaone_moe": 4, "gemma2": 2, "gemma3_text": 6, "gemma3n_text": 5,
    "gpt_oss": 2, "olmo3": 4, "vaultgemma": 2,
}  # fmt: skip
"""Of how many layers the last one sees all tokens, by default; the others have a window."""
_FIRST = {"cwm": 4, "modernbert": 3, "modernbert-decoder": 3}
"""Of how many layers the first one does."""
_WINDOWED = ("qwen2", "qwen2_moe", "qwen3", "qwen3_moe")
"""Model types whose layers have a window from ``max_window_layers`` on, if ``use_sliding_window`` is true."""
_PATTERN = ("sliding_window_pattern", "_sliding_window_pattern", "global_attn_every_n_layers")
"""Fields that give that number otherwise."""
_UNROTATED = ("llama4_text", "smollm3")
"""Model types in which every fourth layer has no rotary embeddings, by default."""
_FULL, _SLIDING = "full_attention", "sliding_attention"
_BASES = {
    "gemma3_text": (("rope_theta", 1e6), ("rope_local_base_freq", 1e4)),
    "gemma3n_text": (("rope_theta", 1e6), ("rope_local_base_freq", 1e4)),
    "modernbert": (("global_rope_theta", 160000.0), ("local_rope_theta", 1e4)),
    "modernbert-decoder": (("global_rope_theta", 160000.0), ("local_rope_theta", 1e4)),
}
"""Older fields of the bases of rotary embeddings in full and in sliding attention, and their defaults."""


def with_order(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a configuration leaves out of the order of its layers, as its class has it, by field."""
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


def rotary_differences(
    theirs: Mapping[str, Any], ours: Mapping[str, Any], *, is_one_kind: bool
) -> Iterator[tuple[str, Any, Any]]:
    """Yield what differs of rotary embeddings, whichever way transformers spelled it; None is what is not said."""
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
    """Return what a configuration says of the rotary embeddings of each kind of layers, None if it knows no kinds."""
    given = config.get("rope_parameters")
    found = {name: value for name, value in given.items() if isinstance(value, dict)} if isinstance(given, dict) else {}
    return {name: _plain(value) for name, value in found.items()} or None


def _older(config: Mapping[str, Any]) -> dict[str, dict[str, Any]] | None:
    """Return the same of a configuration that transformers before 5 wrote; None if its class had no kinds of layers."""
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in _BASES:
        return None
    bases = [config.get(field, usual) for field, usual in _BASES[kind]]
    given = config.get("rope_scaling")
    scaling = _plain(given) if isinstance(given, dict) else {"rope_type": "default"}
    return {_FULL: {**scaling, "rope_theta": bases[0]}, _SLIDING: {"rope_type": "default", "rope_theta": bases[1]}}


def _plain(said: Mapping[str, Any]) -> dict[str, Any]:
    found = {"rope_type": said.get("type", "default"), **said}
    found.pop("type", None)
    return found


def _rope(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a configuration says of the rotary embeddings of all layers."""
    found: dict[str, Any] = {"rope_type": "default"}
    for name in ("rope_scaling", "rope_parameters"):
        given = config.get(name)
        said = given if isinstance(given, dict) else {}
        for field, value in said.items():
            found["rope_type" if field == "type" and "rope_type" not in said else field] = value
    found.pop("type", None)
    theta = config.get("rope_theta")
    return {**({} if theta is None else {"rope_theta": theta}), **found}
