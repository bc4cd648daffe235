"""Gives values to tensors of a recording that outlive it, so that the caller is left with none that has no values.

A constructor may keep what it makes: in a cache, in an attribute of its class. What was recorded has no values, and
would have none for the rest of the process.
"""

from __future__ import annotations

import gc
import logging

import torch
from torch import Tensor

from .graph import Recording
from .replay import behind, replay

__all__ = ["release"]

MAX_BYTES = 256 << 20
"""Bytes that are made for what outlives a recording; beyond, it stays without values."""

logger = logging.getLogger(__name__)


def release(record: Recording, seed: int) -> None:
    """Fill the recorded tensors that something else than the module still holds."""
    if any(ghost() is not None for ghost in record.ghosts):
        gc.collect()  # most often it is only a cycle
    kept = [tensor for ghost in record.ghosts if (tensor := ghost()) is not None]
    record.ghosts.clear()
    if sum(tensor.untyped_storage().nbytes() for tensor in kept) > MAX_BYTES:
        logger.warning("%d tensors that the constructor keeps elsewhere stay without values", len(kept))
        return
    for tensor in kept:
        _fill(record, tensor, seed)


def _fill(record: Recording, tensor: Tensor, seed: int) -> None:
    ref = record.ref(tensor)
    nodes = behind(record, [ref.storage])
    streams = {node.index: ("", node.index) for node in nodes if node.random}
    values = replay(record, nodes, ref, seed=seed, streams=streams).requires_grad_(tensor.requires_grad)
    try:
        torch.utils.swap_tensors(tensor, values)  # type: ignore[no-untyped-call]
    except RuntimeError as error:  # something in torch itself still refers to it
        logger.warning("a tensor that the constructor keeps elsewhere stays without values: %s", error)
