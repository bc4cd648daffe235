"""Checks that memory is enough for merging blocks while networks run: for RegMean++."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import TYPE_CHECKING

from ...errors import ConfigError
from ...methods.merge.arithmetic.grams import held_by_grams
from ...util.text import human_bytes
from ..statistics.experts import are_experts
from ..statistics.gram_matrices import GramSums, is_transposed, weights_of

if TYPE_CHECKING:
    from torch import nn

    from ..prove.network import Network

__all__ = ["check_memory", "is_turned"]

READ, MERGED = 8, 8
"""Bytes of memory for a value of a tensor: in each model (as read, and as passed to the method), and in the result."""
WIDE, WIDE_MERGED = 8, 24
"""Further bytes for a value merged by Gram matrices, in double precision: in each model, and for sums and products."""


def check_memory(network: Network, blocks: Sequence[str], grams: GramSums, *, models: int, limit: int) -> None:
    """Raise ConfigError if merging one of ``blocks`` takes more than ``limit`` bytes.

    ``network`` is one of the networks that are merged, ``grams`` are its Gram matrices, and ``models`` is the number of
    networks. The following are in memory at the same time: the merged block, the parameters outside of blocks, and the
    values of one tensor in all models, with its Gram matrices.
    """
    tensors = {name: tuple(one.shape) for name, one in network.module.named_parameters(remove_duplicate=False)}
    keys = weights_of(network).keys
    inside = {block: [name for name in tensors if _is_in(name, block)] for block in blocks}
    outside = sorted(tensors.keys() - {name for names in inside.values() for name in names})

    def of(name: str) -> int:
        is_by_grams = grams.collects(name, keys.get(name, ""))
        return _of_tensor(network.module, name, tensors[name], models, is_by_grams=is_by_grams)

    kept = 4 * sum(prod(tensors[name]) for name in outside)
    need = max(
        kept + 4 * sum(prod(tensors[name]) for name in names) + max(map(of, names), default=0)
        for names in (outside, *inside.values())
    )
    if need > limit:
        raise ConfigError(
            f"merging the largest block takes {human_bytes(need)} of memory: for merged weights, and for one tensor of "
            f"all {models} models with its Gram matrices. The limit is {human_bytes(limit)}.",
            hint=f"Allow more memory: --memory {need}B. Or give large layers to --exclude: they are then averaged.",
        )


def _is_in(name: str, block: str) -> bool:
    return not block or name == block or name.startswith(f"{block}.")


def _of_tensor(model: nn.Module, name: str, shape: tuple[int, ...], models: int, *, is_by_grams: bool) -> int:
    """Return the number of bytes that are needed to merge the parameter ``name`` of ``models`` models."""
    values = READ * models + MERGED
    if not (is_by_grams and len(shape) in (2, 3)):
        return values * prod(shape)
    values += WIDE * models + WIDE_MERGED
    in_rows = (*shape[:-2], shape[-1], shape[-2]) if is_turned(model, name) else shape
    return values * prod(shape) + held_by_grams(in_rows, models, 4, {})


def is_turned(model: nn.Module, name: str) -> bool:
    """Return whether the parameter ``name`` is a weight of shape (in, out)."""
    module = model.get_submodule(name.rpartition(".")[0])
    return is_transposed(module) or bool(are_experts(module) and getattr(module, "is_transposed", False))
