"""Makes a note on the size of a head, if no configuration has the numbers of heads.

Numbers of heads that are wrong by a factor also fit the shapes of the tensors. The size of a head shows such an error.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ...util.text import count
from .heads import FUSED, PROJECTIONS, heads_in
from .layout import Numbers, Row, Tensors

__all__ = ["GIVEN", "head_size_note"]

GIVEN = "--heads"
"""The entry of the settings that says that the user gave the numbers of heads."""
_SEPARATE = tuple(f"{one.format('q')}.weight" for one in PROJECTIONS)
_JOINED = (
    *(fused for fused, _ in FUSED),
    "model.layers.0.self_attn.qkv_proj.weight",
    "transformer.h.0.attn.qkv.weight",
    "gpt_neox.layers.0.attention.query_key_value.weight",
)
_TURNED = ("transformer.h.0.attn.c_attn.weight", "h.0.attn.c_attn.weight")
"""Matrices of GPT-2, whose larger dimension has the queries, keys and values."""
_HEADED = ("heads", "groups", "sizes")
"""Fields of operations that depend on numbers of heads."""


def head_size_note(tensors: Tensors, config: Mapping[str, Any], numbers: Numbers, rows: Sequence[Row]) -> str:
    """Return a note on the size of heads, if ``rows`` depend on numbers that no configuration states; else ''.

    ``tensors`` are those before the operations ``rows``.
    """
    is_given = GIVEN in config
    if "heads" not in numbers or not any(name in row for row in rows for name in _HEADED):
        return ""
    if heads_in(tensors, config) and not is_given:
        return ""
    size = _head_size(tensors, numbers["heads"], numbers["keys"])
    why = f"as {GIVEN} says; compare it with the model's configuration" if is_given else "as the tensors show"
    said = f"{count(numbers['heads'], 'head')} of queries and {numbers['keys']} of keys and values, {why}"
    return f"head size {size}: {said}" if size else ""


def _head_size(tensors: Tensors, heads: int, keys: int) -> int:
    """Return the number of rows of a head of the first layer; 0 if no known tensor shows it."""
    shapes = {key: tensors[key].shape for key in (*_SEPARATE, *_JOINED, *_TURNED) if key in tensors}
    for key, shape in shapes.items():
        if len(shape) > 1:
            rows = max(shape) if key in _TURNED else shape[-2]
            return rows // (heads if key in _SEPARATE else heads + 2 * keys)
    return 0
