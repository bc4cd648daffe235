"""Compares the rotary embeddings of two configurations, and adds omitted lists with the kind of each layer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ....util.text import count
from ..config_fields import base_of_rope
from .derived_kinds import derived_lists, model_type_in
from .derived_lists import PERIODS

__all__ = ["factor_notes", "rope_settings", "rotary_differences", "with_order"]

_PATTERN = ("sliding_window_pattern", "_sliding_window_pattern", "global_attn_every_n_layers")
"""Fields with the period of full attention; they override ``PERIODS``."""
_FULL, _SLIDING = "full_attention", "sliding_attention"
_BASES = {
    "gemma3_text": (("rope_theta", 1e6), ("rope_local_base_freq", 1e4)),
    "gemma3n_text": (("rope_theta", 1e6), ("rope_local_base_freq", 1e4)),
    "modernbert": (("global_rope_theta", 160000.0), ("local_rope_theta", 1e4)),
    "modernbert-decoder": (("global_rope_theta", 160000.0), ("local_rope_theta", 1e4)),
}
"""Older fields with the rotary base of full attention and of sliding attention, each with its default."""


def with_order(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return {field: default of the class} for omitted fields with the kind of each layer, such as ``layer_types``."""
    kind, made = model_type_in(config), dict[str, Any]()
    if kind in PERIODS and not any(name in config for name in _PATTERN):
        made = dict.fromkeys(_PATTERN, PERIODS[kind][0])
    return {**made, **derived_lists(config)}


def factor_notes(config: Mapping[str, Any]) -> Iterator[str]:
    """Yield a note if ``short_factor`` or ``long_factor`` does not have one number for each rotated pair of a head."""
    rope, width, heads = rope_settings(config), config.get("hidden_size"), config.get("num_attention_heads")
    if config.get("model_type") not in OF_PHI and rope.get("rope_type") not in OF_FACTORS:
        return
    size = next((config[name] for name in ROTATED if config.get(name) is not None), None)
    if size is None and type(width) is int and type(heads) is int and heads > 0:
        size = width // heads
    share = rope.get("partial_rotary_factor", config.get("partial_rotary_factor", 1.0))
    if type(size) is not int or not 0 < size <= LARGEST or not (isinstance(share, (int, float)) and 0 < share <= 1):
        return
    pairs = int(size * share) // 2
    for field in ("short_factor", "long_factor"):
        given = rope.get(field)
        if isinstance(given, list) and len(given) != pairs > 0:
            yield (
                f"config.json has {count(len(given), 'number')} in {field}, but a head rotates "
                f"{count(pairs, 'pair')} of numbers: the model cannot be run"
            )


LARGEST = 1 << 20
"""The largest plausible size of a head."""
OF_FACTORS = ("longrope", "su")
"""Types of rotary embeddings with a factor for each rotated pair of a head: one list for short texts, one for long."""
ROTATED = ("qk_rope_head_dim", "head_dim")
"""Fields with the number of rotated values of a head, or else its size; the first that exists is used."""
OF_PHI = ("phi3", "phimoe", "phi4_multimodal")
"""Model types that have ``short_factor`` and ``long_factor`` with any ``rope_type``."""


def rotary_differences(
    theirs: Mapping[str, Any], ours: Mapping[str, Any], *, is_one_kind: bool
) -> Iterator[tuple[str, Any, Any]]:
    """Yield (field, value in ``theirs``, value in ``ours``) for each field of rotary embeddings that differs.

    The value of a field that is not set is None. An older field is compared with the newer field that replaced it.
    ``is_one_kind`` is true if both configurations have the same model type.
    """
    pair = _by_kind(theirs), _by_kind(ours)
    if pair[0] is None and pair[1] is None:
        section = "rope_scaling" if any(one.get("rope_scaling") for one in (theirs, ours)) else "rope_parameters"
        yield from _compared(rope_settings(theirs), rope_settings(ours), ours, is_one_kind=is_one_kind, section=section)
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
    section: str = "rope_scaling",
) -> Iterator[tuple[str, Any, Any]]:
    base = (base_of_rope(ours.get("model_type")) if usual is None else usual) if is_one_kind else None
    pair = [found.get("rope_theta") for found in (one, here)]
    meant = [base if value is None else value for value in pair]
    if meant[0] != meant[1] and None not in meant and pair != [None, None]:
        yield "rope_theta", pair[0], pair[1]
    rest = [{name: value for name, value in found.items() if name != "rope_theta"} for found in (one, here)]
    same = rest[0].get("rope_type") == rest[1].get("rope_type")
    if not same or any(rest[0][name] != rest[1][name] for name in rest[0] if name in rest[1]):
        yield section, rest[0], rest[1]


def _by_kind(config: Mapping[str, Any]) -> dict[str, dict[str, Any]] | None:
    """Return the settings of rotary embeddings for each kind of layers (sliding or full attention, for instance).

    Returns None if the configuration has the same settings for all layers.
    """
    given = config.get("rope_parameters")
    found = {name: value for name, value in given.items() if isinstance(value, dict)} if isinstance(given, dict) else {}
    return {name: _plain(value) for name, value in found.items()} or None


def _older(config: Mapping[str, Any]) -> dict[str, dict[str, Any]] | None:
    """Return settings of rotary embeddings for each kind of layers from a configuration older than transformers 5.

    Returns None if layers of its model type do not have different settings.
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


def rope_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of rotary embeddings (scaling, base) that a configuration has for all layers.

    If it has both the older section ``rope_scaling`` and ``rope_parameters``, transformers 5 uses the older one.
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
