"""Finds fields of a transformers configuration that ask for too many modules to build a network."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

__all__ = ["MOST_EXPERTS", "MOST_HEADS", "MOST_LABELS", "MOST_LAYERS", "too_many_modules"]

MOST_LAYERS = 2000
"""The most layers, blocks or stages: models of today have some 200."""
MOST_EXPERTS = 1 << 16
"""The most experts: most models have up to 512, and Doge, whose experts are rows of an embedding, has 16,384."""
MOST_HEADS = 1 << 16
"""The most heads of attention: models have up to some 200."""
MOST_LABELS = 1_000_000
"""The most labels: a configuration makes two names for each."""
_LAYERS = re.compile(
    r"(?:.*_)?(?:layers?|blocks?|depths?|stages?|levels|stacks|flows|networks|codebooks|quantizers|groups?|group_num|"
    r"repeats|(?:layers|blocks|attends)_per_[a-z]+)"
)
_EXPERTS = re.compile(r"(?:.*_)?(?:experts|expert_num)")
_HEADS = re.compile(r"(?:.*_)?(?:heads|n_head|num_head|num_kv|head_count)(?:_per_[a-z]+)?")
_OTHER = re.compile(r"size|dim|width|channels|tokens")
"""Matches names of fields with a size for each module, such as ``embed_dim_per_stage``: they count no modules."""


def too_many_modules(config: Mapping[str, Any]) -> str:
    """Return a phrase on a field that asks for too many modules, such as "num_layers is 9,000, over 2,000"; else ''.

    Nested configurations and lists are searched, too. The fields are checked before the configuration's class is
    called, because that class may already make lists of this length.
    """
    for path, name, number in _numbers(config):
        most = _most(name)
        if most and number > most:
            return f"{path} is {number:,.0f}, over {most:,}" if number < 1 << 60 else f"{path} is over {most:,}"
    return ""


def _most(name: str) -> int:
    """Return the largest value that a field may have; 0 if the field is not a number of modules."""
    if name == "num_labels":
        return MOST_LABELS
    if _EXPERTS.fullmatch(name):
        return MOST_EXPERTS
    if _HEADS.fullmatch(name):
        return MOST_HEADS
    return MOST_LAYERS if _LAYERS.fullmatch(name) and not _OTHER.search(name) else 0


def _numbers(config: Mapping[str, Any]) -> Iterator[tuple[str, str, int | float]]:
    """Yield (path, name, number) for each number; a number in a list has the path and the name of the list."""
    left: list[tuple[str, str, Any]] = [("", "", config)]
    while left:
        path, name, value = left.pop()
        if isinstance(value, Mapping):
            left.extend((f"{path}.{key}".removeprefix("."), str(key), one) for key, one in value.items())
        elif isinstance(value, list | tuple):
            left.extend((path, name, one) for one in value)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield path, name, value
