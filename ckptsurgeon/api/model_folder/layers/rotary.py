"""Compares the rotary embeddings of two configurations, and stored frequencies with a configuration."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from ....checkpoint.checkpoint import Checkpoint
from ....errors import CheckpointError
from ....storage.read.uri import scheme_of
from ....util.note_kind import NoteKind
from ....util.notes import notes_of
from ....util.text import count, escape
from ..config import has_parts
from ..config_fields import base_of_rope
from .derived_kinds import derived_lists, model_type_in
from .derived_lists import PERIODS

if TYPE_CHECKING:
    from ....planning.plan.plan import Plan

__all__ = [
    "factor_notes",
    "frequency_notes",
    "rope_settings",
    "rotary_differences",
    "unlike_frequency_notes",
    "with_order",
]

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
    """Return the defaults of the class for missing fields that give each layer its kind, such as ``layer_types``."""
    kind, made = model_type_in(config), dict[str, Any]()
    if kind in PERIODS and not any(name in config for name in _PATTERN):
        made = dict.fromkeys(_PATTERN, PERIODS[kind][0])
    return {**made, **derived_lists(config)}


@notes_of(NoteKind.CONFIGURATION_REFUSED)
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
"""Types of rotary embeddings with a factor for each rotated pair of a head, in two lists: for short and long texts."""
ROTATED = ("qk_rope_head_dim", "head_dim")
"""Fields with the number of rotated values in a head, or with the size of the head; the first that exists is used."""
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


_STORED = re.compile(r"^(?:model\.|gpt_neox\.)?(?:layers\.\d+\.(?:self_attn|attention)\.)?rotary_emb\.inv_freq$")
"""Matches the keys of a text model's stored frequencies, inside its layers or outside."""
_BASE, _OLDER_BASE = "rope_theta", "rotary_emb_base"
_KINDS = (
    "cohere", "deepseek_v2", "deepseek_v3", "falcon", "gemma", "gemma2", "glm", "glm4", "gpt_neox", "granite", "llama",
    "mistral", "mixtral", "olmo", "olmo2", "persimmon", "phi", "phi3", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe",
    "stablelm", "starcoder2",
)  # fmt: skip
"""Model types whose frequencies are powers of one base, the same in all layers, unless they are scaled."""
MOST = 1024
"""The largest number of frequencies that are read; a head of 128 numbers has 64."""
NEAR, TINY = 0.01, 1e-7
"""The largest rounding errors: ``NEAR`` is the relative error of bfloat16, ``TINY`` the absolute error of float16."""


@notes_of(NoteKind.CONFIGURATION)
def frequency_notes(checkpoint: Checkpoint, config: Mapping[str, Any]) -> Iterator[str]:
    """Yield a note if the stored frequencies of a model's rotary embedding do not follow from its configuration.

    Frequency k of n is 1 / base^(k/n). Only the first stored tensor is read (8 to 64 numbers), and only from a local
    file. There is no note if the configuration scales the frequencies or has nested configurations, or if the model
    type is not in ``_KINDS``.
    """
    base = _base_of(config)
    key = next(filter(_STORED.match, checkpoint), "") if base else ""
    values = _values(checkpoint, key) if key else []
    if len(values) < 2 or _are_of(base, values):
        return
    own = _base_in(values)
    field = next((one for one in (_OLDER_BASE, _BASE) if one in rope_settings(config) or one in config), "")
    said = (
        f"config.json says {base:,.10g} ({field})"
        if field
        else f"the default of its model type is {base:,.10g} ({_BASE})"
    )
    has = f"has the frequencies of a base of {own:,.10g}" if own else "does not have the frequencies of any base"
    yield f"{escape(key)} {has}, but {said}: transformers 5 and llama.cpp compute with {base:,.10g}"


def unlike_frequency_notes(plan: Plan, opened: Sequence[Checkpoint]) -> Iterator[str]:
    """Yield a note if a merge copies the frequencies of one model although another model has different ones.

    ``opened`` are the sources of the plan, in its order. One tensor of each model is read.
    """
    step = next((one for one in plan.steps if one.op == "copy" and _STORED.match(one.key)), None)
    if step is None or step.source is None or step.source >= len(opened):
        return
    own, name = _values(opened[step.source], step.source_key), escape(plan.sources[step.source].name)
    for checkpoint, source in zip(opened, plan.sources, strict=False):
        values = _values(checkpoint, step.key) if own and step.key in checkpoint else own
        if len(values) == len(own) and not all(map(_is_near, own, values)):
            here, there = (
                f" (those of a base of {base:,.10g})" if (base := _base_in(one)) else "" for one in (own, values)
            )
            yield (
                f"{escape(step.key)} has other frequencies in {name}{here} than in {escape(source.name)}{there}: the "
                f"output gets those of {name}, because frequencies cannot be averaged"
            )
            return


def _base_of(config: Mapping[str, Any]) -> float:
    """Return the base of the rotary embedding of a configuration; 0 if it is not known or the embedding is scaled."""
    rope, kind = rope_settings(config), config.get("model_type")
    if kind not in _KINDS or has_parts(config) or config.get("auto_map") or rope.get("rope_type") != "default":
        return 0
    base = rope.get(_BASE, config.get(_OLDER_BASE, base_of_rope(kind)))
    return float(base) if type(base) in (int, float) and 1 < base < 1e30 else 0


def _values(checkpoint: Checkpoint, key: str) -> list[float]:
    """Return the frequencies under a key; [] if they cannot be read, or are not a vector of plain numbers."""
    info = checkpoint.get(key)
    if info is None or info.opaque or len(info.shape) != 1 or info.numel > MOST or scheme_of(checkpoint.path):
        return []
    from ....engine.compute.reading import read_part
    from ....tensors.ops.casts import cast

    with suppress(CheckpointError):
        wide, _ = cast(read_part(checkpoint, info, ((0, info.shape[0]),)), info.dtype, "float64")
        return [float(one) for one in wide]
    return []


def _are_of(base: float, values: Sequence[float]) -> bool:
    return all(_is_near(base ** (-place / len(values)), one) for place, one in enumerate(values))


def _is_near(expected: float, value: float) -> bool:
    return abs(value - expected) <= NEAR * abs(expected) + TINY


def _base_in(values: Sequence[float]) -> float:
    """Return the base of stored frequencies, rounded to 3 digits if it still fits them; 0 if they have no base.

    Frequency k of n is 1 / base^(k/n).
    """
    usable = [place for place, one in enumerate(values) if place and 1e-3 < one < 1]
    if not usable:
        return 0
    exact = values[usable[-1]] ** (-len(values) / usable[-1])
    return next((base for base in (float(f"{exact:.2e}"), exact) if _are_of(base, values)), 0)
