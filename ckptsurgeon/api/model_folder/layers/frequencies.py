"""Notes on stored frequencies of rotary embeddings (``inv_freq``) that contradict config.json or another model's."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from ....checkpoint.checkpoint import Checkpoint
from ....errors import CheckpointError
from ....storage.read.uri import scheme_of
from ....util.text import escape
from ..config import has_parts
from ..config_fields import base_of_rope
from .rotary import rope_settings

if TYPE_CHECKING:
    from ....planning.plan.plan import Plan

__all__ = ["frequency_notes", "unlike_frequency_notes"]

_STORED = re.compile(r"^(?:model\.|gpt_neox\.)?(?:layers\.\d+\.(?:self_attn|attention)\.)?rotary_emb\.inv_freq$")
"""Matches the keys of the frequencies of a text model, in its layers or beside them."""
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
"""The largest errors that rounding makes: ``NEAR`` is the relative error in bfloat16, ``TINY`` the error in float16."""


def frequency_notes(checkpoint: Checkpoint, config: Mapping[str, Any]) -> Iterator[str]:
    """Yield a note if the stored frequencies of a model's rotary embedding are not those of its configuration.

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
    yield f"{escape(key)} {has}, but {said}: transformers 5 and llama.cpp compute with that base"


def unlike_frequency_notes(plan: Plan, opened: Sequence[Checkpoint]) -> Iterator[str]:
    """Yield a note if a merge takes the frequencies of one model, and another model has other frequencies.

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
    from ....engine.compute.reading import read_part  # imports numpy
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
    """Return the base whose powers the frequencies are, to 3 digits; 0 if they are not the powers of any base."""
    usable = [place for place, one in enumerate(values) if place and 1e-3 < one < 1]
    if not usable:
        return 0
    exact = values[usable[-1]] ** (-len(values) / usable[-1])
    return next((base for base in (float(f"{exact:.2e}"), exact) if _are_of(base, values)), 0)
