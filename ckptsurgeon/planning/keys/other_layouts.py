"""Notes on tensors whose new names usually mean another layout of the values: kernels and fused projections."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping

from ...tensors.info import TensorInfo
from ...util.text import NUMBER_IN_KEY, count, escape

__all__ = ["layout_notes"]

KERNEL, WEIGHT = "kernel", "weight"
_BY_HEAD = re.compile(r"(?:^|\.)query_key_value\.(?:weight|bias)$")
"""The fused projection of GPT-NeoX, BLOOM and Falcon: queries, keys and values of one head, then of the next."""
_IN_THIRDS = re.compile(r"(?:^|[._])(?:c_attn|Wqkv|qkv|qkv_proj|in_proj|attn_qkv)[._](?:weight|bias)$")
"""The fused projection of GPT-2, MPT, timm, Phi-3, torch and llama.cpp: all queries, then all keys, then all values."""


def layout_notes(names: Collection[tuple[str, str]], source: Mapping[str, TensorInfo]) -> Iterator[str]:
    """Yield notes on tensors that are only renamed, although their new names suggest another layout of the values.

    ``names`` are (old, new) keys of tensors of ``source``.
    """
    matrices = [(old, new) for old, new in names if len(_shape(old, source)) > 1]
    kernels = [pair for pair in matrices if {*_leaves(*pair)} == {KERNEL, WEIGHT}]
    if kernels:
        old, new = kernels[0]
        what = f"become {_leaves(old, new)[1]}s" if len(kernels) > 1 else f"becomes a {_leaves(old, new)[1]}"
        verb, more = ("transpose", "") if len(_shape(old, source)) == 2 else ("permute", ", dims: …")
        yield (
            f"{count(len(kernels), 'tensor')} {what} without being transposed ({escape(old)} as {escape(new)}): "
            "TensorFlow and JAX have the inputs before the outputs in kernels, torch has the outputs first in weights; "
            f"transpose them with --operations: - {{{verb}: '{_pattern(old)}'{more}}}"
        )
    fused = [(old, new) for old, new in names if (_BY_HEAD.search(old) and _IN_THIRDS.search(new))]
    fused += [(old, new) for old, new in names if (_IN_THIRDS.search(old) and _BY_HEAD.search(new))]
    if fused:
        old, new = fused[0]
        yield (
            f"{count(len(fused), 'fused projection')} may need another order of rows ({escape(old)} as {escape(new)}): "
            "query_key_value of GPT-NeoX, BLOOM and Falcon has the queries, keys and values of the first head, then "
            "those of the next; a projection with the other name usually has all queries, all keys, then all values; "
            "reorder the rows with reshape and permute of --operations"
        )


def _shape(key: str, source: Mapping[str, TensorInfo]) -> tuple[int, ...]:
    return source[key].shape if key in source else ()


def _leaves(old: str, new: str) -> tuple[str, str]:
    return old.rpartition(".")[2], new.rpartition(".")[2]


def _pattern(key: str) -> str:
    """Return a pattern for a key that matches it in all layers."""
    return NUMBER_IN_KEY.sub("*", escape(key))
