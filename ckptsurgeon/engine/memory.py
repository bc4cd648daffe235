"""Carries plans out into the tensors of live modules: all of them, or none."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from typing import TYPE_CHECKING

from ..checkpoint import Checkpoint
from ..errors import PlanError
from ..ops import raw_dtype
from ..plan import Plan, Step
from ..tensors import TensorInfo
from ..text import escape
from .announcing import announce, keeping
from .check_steps import check_step
from .checksums import check_storage, checkable
from .compute import computed_blocks
from .compute_steps import check_equal
from .overlaying import overlay
from .run import Inputs, check_unchanged, overflow_notes

if TYPE_CHECKING:
    import torch

__all__ = ["put_tensors", "stage_tensors"]


def stage_tensors(plan: Plan, inputs: Inputs) -> tuple[dict[str, torch.Tensor], tuple[str, ...]]:
    """Return the values that a plan brings, by destination key, and what is to be said of them.

    Everything is read and checked here, so that a fault comes before anything is written.
    """
    with keeping(inputs):
        announce(plan, inputs)
        check_equal(plan, inputs.sources)
        staged, overflowed = _staged(plan, inputs)
        check_unchanged(inputs)
    return staged, overflow_notes(overflowed)


def _staged(plan: Plan, inputs: Inputs) -> tuple[dict[str, torch.Tensor], dict[str, int]]:
    """Return the values by destination key, and of how many values each tensor that has such became infinite."""
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
    return staged, overflowed


def _check_once(source: Checkpoint, info: TensorInfo | None, checked: set[int]) -> None:
    """Check the records that a tensor lies in, which many may share, if they were not checked before."""
    for file, storage in checkable(source, info) if info is not None else ():
        if id(storage) not in checked:
            checked.add(id(storage))
            check_storage(file, storage)


def put_tensors(pairs: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> None:
    """Put into the first of each pair the values of the second: of all pairs, or of none.

    Where a tensor cannot be written every one before it gets back what it held, so that values, flags and ties are as
    they were.
    """
    previous: list[tuple[torch.Tensor, torch.Tensor]] = []
    try:
        for tensor, values in pairs:
            previous.append((tensor, tensor.detach().to("cpu", copy=True)))
            _set(tensor, values)
    except BaseException as error:
        for tensor, values in reversed(previous):
            with suppress(RuntimeError):
                _set(tensor, values)
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
