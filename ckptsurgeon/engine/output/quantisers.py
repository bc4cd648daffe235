"""Reads the scales and zero points of tensors that torch quantised, to store them in the output, too."""

from __future__ import annotations

from collections.abc import Sequence

from ...checkpoint.checkpoint import Checkpoint
from ...formats.base.header import ChannelNumbers, StoredQuantiser
from ...planning.plan.plan import Plan
from ...tensors.info import TensorInfo
from ...tensors.torch_quantisers import codes_of, quantiser_of

__all__ = ["quantisers_of", "stored_quantiser"]


def quantisers_of(plan: Plan, sources: Sequence[Checkpoint]) -> dict[str, StoredQuantiser]:
    """Return {key: scales and zero points} for the tensors of an output that are copies of tensors quantised by torch.

    ``sources`` are the open sources of the plan. A tensor that a source lacks is left out.
    """
    found = {}
    for step in plan.steps:
        info = sources[step.source].get(step.source_key) if step.source is not None else None
        if step.source is not None and info is not None and codes_of(info) is not None:
            found[step.key] = stored_quantiser(sources[step.source], info)
    return found


def stored_quantiser(source: Checkpoint, info: TensorInfo) -> StoredQuantiser:
    """Return the scales and zero points that ``source`` stores with a tensor that torch quantised."""
    found = quantiser_of(info)
    scale = _numbers(source, found.scale) if isinstance(found.scale, TensorInfo) else found.scale
    zero = _numbers(source, found.zero) if isinstance(found.zero, TensorInfo) else found.zero
    return StoredQuantiser(found.scheme, scale, zero, found.axis)


def _numbers(source: Checkpoint, info: TensorInfo) -> ChannelNumbers:
    from ..compute.reading import read_part

    return ChannelNumbers(info.dtype, read_part(source, info, ((0, info.numel),)).tobytes())
