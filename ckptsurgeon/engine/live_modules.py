"""Applies plans to the tensors of live modules: either all tensors change, or none does."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING

from ..checkpoint.checkpoint import Checkpoint
from ..checkpoint.zero_notes import seen_zero_notes
from ..errors import PlanError
from ..planning.plan.plan import Plan
from ..planning.plan.step import Step
from ..tensors.dtypes import SATURATED
from ..tensors.info import TensorInfo
from ..tensors.ops.casts import CastLosses, cast, count_special, raw_dtype
from ..tensors.ops.regions import Array, Box
from ..util.text import escape
from .check_steps import check_step
from .checksums import check_storage, checkable
from .compute.compute import computed_blocks, takes_numbers
from .compute.compute_steps import check_equal
from .compute.reading import read_part, relevant
from .compute.rows import overlay
from .inputs import PlanInputs
from .one_output_part import changed_error, check_unchanged, keeping, lost_notes, unsound_notes
from .prefetch import prefetch

if TYPE_CHECKING:
    import torch

__all__ = ["put_tensors", "stage_tensors"]

Put = Callable[[str, "torch.Tensor"], None]
"""A function that is called with a key and its values."""


def stage_tensors(
    plan: Plan, inputs: PlanInputs, boxes: Mapping[str, Box] | None = None, put: Put | None = None
) -> tuple[dict[str, torch.Tensor], tuple[str, ...]]:
    """Return the tensors that a plan computes from ``inputs``, by destination key, and notes.

    Notes are, for example, on values that became infinite. ``boxes`` is {key: the part of the tensor to return}; other
    tensors are returned whole. If a tensor is copied or cast, only the part to return is read. All tensors are read and
    checked here, so that errors are raised before the caller writes anything. If ``put`` is given, it is called with
    each tensor as soon as the tensor is read, and the returned dict is empty.
    """
    with keeping(inputs.sources):
        if any(source.is_remote for source in inputs.sources):
            prefetch(plan, inputs)
        check_equal(plan, inputs.sources)
        staged, lost, unsound = _staged(plan, inputs, boxes or {}, put)
        check_unchanged(inputs.sources)
    odd = (note for one in inputs.sources for note in one.odd_scale_notes)
    zeros = seen_zero_notes(inputs.sources, said=plan.notes)
    return staged, (*lost_notes(lost, plan.steps), *unsound_notes(unsound), *odd, *zeros)


def _staged(
    plan: Plan, inputs: PlanInputs, boxes: Mapping[str, Box], put: Put | None
) -> tuple[dict[str, torch.Tensor], dict[str, CastLosses], dict[str, int]]:  # fmt: skip
    """Return three dicts by destination key: the values, the counts of lost values, and how many are NaN or infinite.

    If ``put`` is given, it is called with each key and the values of its tensor, and the first dict is empty. A value
    is lost if a cast makes it infinite or zero.
    """
    staged: dict[str, torch.Tensor] = {}
    lost: dict[str, CastLosses] = {}
    unsound: dict[str, int] = {}
    checked: set[int] = set()
    for step in plan.steps:
        check_step(step)
        if step.tied_to or step.op in ("init", "keep") or step.source is None:
            continue
        source = inputs.sources[step.source]
        _check_once(source, source.get(step.source_key), checked)
        values, found = _read(step, source, inputs, boxes.get(step.key))
        special = _special(values, step.dtype) if takes_numbers(step, [source[step.source_key]]) else 0
        special -= 0 if step.dtype in SATURATED else found.infinite
        if put is None:
            staged[step.key] = values
        else:
            put(step.key, values)
        lost[step.key] = relevant(found, [source[step.source_key]], step)
        unsound |= {step.key: special} if special > 0 else {}
    return staged, lost, unsound


def _special(values: torch.Tensor, dtype: str) -> int:
    """Return the number of NaN or infinite values of a tensor; ``dtype`` is the name of its dtype."""
    import torch

    raw = values.reshape(-1).view(torch.uint8).numpy()
    return sum(count_special(raw.view(raw_dtype(dtype)), dtype))


def _check_once(source: Checkpoint, info: TensorInfo | None, checked: set[int]) -> None:
    """Raise FormatError if the storage of a tensor does not match its checksum.

    Each storage is checked only once, since several tensors may share it: ``checked`` has the ids of the storages that
    were checked before.
    """
    for file, storage in checkable(source, info) if info is not None else ():
        if id(storage) not in checked:
            checked.add(id(storage))
            check_storage(file, storage)


def put_tensors(pairs: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> None:
    """Set the first tensor of each pair to the values of the second, either for all pairs or for none.

    If a tensor cannot be written, all earlier tensors are set back to their old values, and PlanError is raised.
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


def _read(step: Step, source: Checkpoint, inputs: PlanInputs, box: Box | None) -> tuple[torch.Tensor, CastLosses]:
    """Return the tensor that a step makes, or the part ``box`` of it, on the CPU, and the counts of lost values."""
    import numpy as np

    info = source[step.source_key]
    if info.dtype != step.source_dtype or info.shape != step.source_shape or info.opaque:
        raise changed_error(source, step.source_key)
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
        flat, lost = values.reshape(-1), CastLosses()
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
