"""Carries plans out into the tensors of live modules: all of them, or none."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING

from ..checkpoint.checkpoint import Checkpoint
from ..errors import PlanError
from ..planning.plan.plan import Plan
from ..planning.plan.step import Step
from ..tensors.dtypes import SATURATED
from ..tensors.info import TensorInfo
from ..tensors.ops.boxes import Array, Box
from ..tensors.ops.casts import Lost, cast, count_special, raw_dtype
from ..util.text import escape
from .check_steps import check_step
from .checksums import check_storage, checkable
from .compute.compute import computed_blocks, takes_numbers
from .compute.compute_steps import check_equal
from .compute.reading import read_part, relevant
from .compute.rows import overlay
from .prefetch import announce, keeping
from .run import Inputs, check_unchanged, lost_notes, unsound_notes

if TYPE_CHECKING:
    import torch

__all__ = ["put_tensors", "stage_tensors"]

Put = Callable[[str, "torch.Tensor"], None]
"""Takes the values of a key."""


def stage_tensors(
    plan: Plan, inputs: Inputs, boxes: Mapping[str, Box] | None = None, put: Put | None = None
) -> tuple[dict[str, torch.Tensor], tuple[str, ...]]:
    """Return the values that a plan brings, by destination key, and what is to be said of them.

    Of a tensor with a box it is that part, and no more is read of one that is copied or cast. Everything is read and
    checked here, so that a fault comes before anything is written; but where there is a ``put``, each tensor is given
    to that as soon as it is read, and none is returned.
    """
    with keeping(inputs):
        announce(plan, inputs)
        check_equal(plan, inputs.sources)
        staged, lost, unsound = _staged(plan, inputs, boxes or {}, put)
        check_unchanged(inputs)
    return staged, (*lost_notes(lost, plan.steps), *unsound_notes(unsound))


def _staged(
    plan: Plan, inputs: Inputs, boxes: Mapping[str, Box], put: Put | None
) -> tuple[dict[str, torch.Tensor], dict[str, Lost], dict[str, int]]:  # fmt: skip
    """Return the values by destination key, and how many of each tensor lost their size, or were never finite."""
    staged: dict[str, torch.Tensor] = {}
    lost: dict[str, Lost] = {}
    unsound: dict[str, int] = {}
    checked: set[int] = set()
    for step in plan.steps:
        check_step(step)
        if step.tied_to or step.op in ("init", "keep") or step.source is None:
            continue
        source = inputs.sources[step.source]
        _check_once(source, source.get(step.source_key), checked)
        values, found = _read(step, source, inputs, boxes.get(step.key))
        special = _special(values, step.dtype) if takes_numbers(step) else 0
        special -= 0 if step.dtype in SATURATED else found.infinite
        if put is None:
            staged[step.key] = values
        else:
            put(step.key, values)
        lost[step.key] = relevant(found, [source[step.source_key]], step)
        unsound |= {step.key: special} if special > 0 else {}
    return staged, lost, unsound


def _special(values: torch.Tensor, dtype: str) -> int:
    """Return how many values are NaN or infinite."""
    import torch

    raw = values.reshape(-1).view(torch.uint8).numpy()
    return sum(count_special(raw.view(raw_dtype(dtype)), dtype))


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


def _read(step: Step, source: Checkpoint, inputs: Inputs, box: Box | None) -> tuple[torch.Tensor, Lost]:
    """Return the values that a step brings, on the CPU, and how many lost their size."""
    import numpy as np

    info = source[step.source_key]
    if info.dtype != step.source_dtype or info.shape != step.source_shape or info.opaque:
        raise PlanError(f"{escape(source.path)} no longer has {escape(step.source_key)} as it was planned.")
    if box is not None and step.op == "copy" and info.made is None and len(info.shape) == len(step.shape):
        values, lost = cast(read_part(source, info, box), info.dtype, step.dtype)
        return _as_torch(values, step.dtype), lost
    values = np.empty(step.shape, raw_dtype(step.dtype))
    if step.draws:
        assert inputs.target is not None
        for _, data in inputs.target.initial([step.key], 0):
            values[...] = np.frombuffer(data, values.dtype).reshape(step.shape)
        lost = overlay(step, info, source, values)
    else:
        flat, lost = values.reshape(-1), Lost()
        for offset, block, more in computed_blocks(step, [(info, source)]):
            begin = offset // values.itemsize
            flat[begin : begin + block.size] = block.reshape(-1)
            lost += more
    if box is not None:
        values = values[tuple(slice(*part) for part in box)]
    return _as_torch(values, step.dtype), lost


def _as_torch(values: Array, dtype: str) -> torch.Tensor:
    import numpy as np
    import torch

    raw = np.ascontiguousarray(values).reshape(-1).view("u1")
    return torch.from_numpy(raw).view(getattr(torch, dtype)).view(values.shape)
