"""Carries a plan out into the tensors of a live module: all of them, or none."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from ..checkpoint import Checkpoint
from ..errors import PlanError
from ..ops import raw_dtype
from ..plan import Plan, Step
from ..tensors import TensorInfo
from ..text import escape
from .checksums import check_storage, checkable
from .compute import computed_blocks, overlay
from .compute_steps import check_equal
from .run import Inputs, check_step, check_unchanged, overflow_notes

if TYPE_CHECKING:
    import torch

__all__ = ["load_tensors"]


def load_tensors(plan: Plan, inputs: Inputs, tensors: dict[str, torch.Tensor]) -> tuple[str, ...]:
    """Put what a plan brings into ``tensors``; returns what is to be said of it.

    Everything is read and checked first, so that a fault leaves every tensor, flag and tie as it was.
    """
    check_equal(plan, inputs.sources)
    staged: dict[str, torch.Tensor] = {}
    overflowed: dict[str, int] = {}
    checked: set[int] = set()
    for step in plan.steps:
        check_step(step)
        if step.tied_to or step.op in ("init", "keep") or step.source is None:
            continue
        source = inputs.sources[step.source]
        _check_once(source, source.get(step.source_key), checked)
        staged[step.key], lost = _read(step, source, inputs)
        if lost:
            overflowed[step.key] = lost
    check_unchanged(inputs)
    _put(staged, tensors)
    return overflow_notes(overflowed)


def _check_once(source: Checkpoint, info: TensorInfo | None, checked: set[int]) -> None:
    """Check the records that a tensor lies in, which many may share, if they were not checked before."""
    for file, storage in checkable(source, info) if info is not None else ():
        if id(storage) not in checked:
            checked.add(id(storage))
            check_storage(file, storage)


def _put(staged: dict[str, torch.Tensor], tensors: dict[str, torch.Tensor]) -> None:
    """Put values into tensors, and back what was there where one of them cannot be written."""
    previous: dict[str, torch.Tensor] = {}
    try:
        for key in list(staged):
            previous[key] = tensors[key].detach().to("cpu", copy=True)
            _set(tensors[key], staged.pop(key))
    except BaseException as error:
        for key, values in previous.items():
            with suppress(RuntimeError):
                _set(tensors[key], values)
        if isinstance(error, RuntimeError):
            raise PlanError(f"a tensor of the module cannot be written: {escape(str(error))}.") from error
        raise


def _set(tensor: torch.Tensor, values: torch.Tensor) -> None:
    import torch

    with torch.inference_mode(tensor.is_inference()), torch.no_grad():
        tensor.copy_(values)


def _read(step: Step, source: Checkpoint, inputs: Inputs) -> tuple[torch.Tensor, int]:
    """Return the values that a step brings, on the CPU, and how many became infinite."""
    import numpy as np
    import torch

    info = source[step.source_key]
    if info.dtype != step.source_dtype or info.shape != step.source_shape or info.opaque:
        raise PlanError(f"{escape(source.path)} no longer has {escape(step.source_key)} as it was planned.")
    values = np.empty(step.shape, raw_dtype(step.dtype))
    if step.draws:
        assert inputs.target is not None
        for _, data in inputs.target.initial([step.key], 0):
            values[...] = np.frombuffer(data, values.dtype).reshape(step.shape)
        lost = overlay(step, info, source, values)
    else:
        flat, lost = values.reshape(-1), 0
        for offset, block, more in computed_blocks(step, [(info, source)]):
            begin = offset // values.itemsize
            flat[begin : begin + block.size] = block.reshape(-1)
            lost += more
    dtype: torch.dtype = getattr(torch, step.dtype)
    return torch.from_numpy(values.reshape(-1).view("u1")).view(dtype).view(step.shape), lost
