"""Plans the average of several checkpoints: the mean of the tensors that have the same key."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from math import cos, pi, prod, sqrt
from typing import Any

from ..errors import ConfigError, PlanError
from ..tensors.dtypes import DTYPES
from ..tensors.info import tied_keys
from ..util.text import count, escape, listing, shape_text
from .computed_buffers import COMPUTED
from .keys.wrappers import without_wrappers
from .llama_cpp.names import layout_hint
from .merge.missing import UNWRAP, layouts_hint, named_keys
from .merge.tied_tensors import ModelTies
from .opaque_tensor_errors import opaque_error
from .plan.files import PlanTarget, SourceView
from .plan.plan import Plan
from .plan.step import Input, Step
from .quantised import refuse_codes

__all__ = ["DECAYS", "INT_BUFFERS", "decay_weights", "ema_weights", "plan_average", "running_weights"]

_WEIGHTS = ("weight", "weights", "kernel")
"""Endings of the names of weights, which are floats in all networks."""
INT_BUFFERS = ("last", "first", "max")
"""The rules for integer and boolean tensors, which have no mean: take the last or the first value, or the maximum."""

ALIKE = "Average checkpoints of one model"


def ema_weights(decay: float, number: int) -> tuple[float, ...]:
    """Return the weight of each of ``number`` checkpoints in their exponential moving average, the oldest first.

    The average is at first the oldest checkpoint; each later checkpoint is added with the weight ``1 - decay``, and the
    average so far is scaled by ``decay``. The returned weights sum to 1. Raises ConfigError unless ``decay`` is between
    0 and 1.
    """
    if not 0 < decay < 1:
        raise ConfigError(f"--ema {decay} is not a valid decay.", hint="Use a number between 0 and 1, as in 0.999.")
    first, *rest = (decay ** (number - 1 - i) for i in range(number))
    return (first, *((1 - decay) * weight for weight in rest))


DECAYS: Mapping[str, Callable[[float], float]] = {
    "linear": lambda time: 1 - time,
    "1-sqrt": lambda time: 1 - sqrt(time),
    "cosine": lambda time: (1 + cos(pi * time)) / 2,
}
"""{name of a curve: the learning rate at a time}: it falls from 1 at the time 0 to 0 at the time 1."""


def decay_weights(shape: str, number: int) -> tuple[float, ...]:
    """Return the weights of ``number`` checkpoints of a run with a constant learning rate, the oldest first.

    Their average approximates the result of a run whose learning rate decays along the curve ``shape`` (a name in
    ``DECAYS``) from the first checkpoint on. The average is c[0] plus the sum of r[i] * (c[i] - c[i-1]), where c are
    the checkpoints and r[i] is the curve's value at c[i]. For a linear decay, all weights are equal. See WSM,
    https://arxiv.org/abs/2507.17634. Raises ConfigError for an unknown curve.
    """
    if shape not in DECAYS:
        raise ConfigError(f"--decay {escape(shape)} is unknown.", hint=f"Use {', '.join(DECAYS)}.")
    rates = [DECAYS[shape](time / number) for time in range(number)]
    return tuple(now - later for now, later in zip(rates, (*rates[1:], 0.0), strict=True))


def running_weights(steps: Sequence[int]) -> tuple[float, float]:
    """Return the weights of two running averages in the sum that is the average of the steps between the two.

    A running average (icefall's ``model_avg``) is the mean of a model's weights since the first step. ``steps`` has the
    number of steps of each average. Raises ConfigError unless there are two numbers, and the second is larger.
    """
    if len(steps) != 2 or not 0 <= steps[0] < steps[1]:
        given = ", ".join(map(str, steps))
        raise ConfigError(
            f"--running needs two checkpoints of one run, the older first, but their numbers of steps are {given}.",
            hint="The average covers the steps between the two checkpoints: give the earlier checkpoint first, then "
            "the later one.",
        )
    later = steps[1] / (steps[1] - steps[0])
    return 1 - later, later


def plan_average(
    views: Sequence[SourceView],
    *,
    weights: tuple[float, ...] = (),
    int_buffers: str = "last",
    arguments: Mapping[str, Any] | None = None,
    metadata: Mapping[str, str] | None = None,
    notes: Sequence[str] = (),
) -> Plan:
    """Return the plan of the average of checkpoints that have the same keys.

    The output has its tensors in the order of the first checkpoint. Without ``weights`` all checkpoints have the same
    weight. ``int_buffers`` decides the value of integer tensors: the last checkpoint's, the first's, or the maximum.
    Buffers that a model computes, such as ``inv_freq``, are copied from the first checkpoint.

    Raises ConfigError for fewer than two checkpoints or an unknown ``int_buffers``; PlanError if keys, shapes or kinds
    of numbers (float, integer) differ, or if a tensor is quantised; FormatError if the values of a tensor are not plain
    bytes.
    """
    if len(views) < 2:
        found = "only one checkpoint is given" if views else "there are no checkpoints to average"
        raise ConfigError(f"{found}.", hint="Give at least two checkpoints.")
    if int_buffers not in INT_BUFFERS:
        raise ConfigError(f"--int-buffers {int_buffers} is unknown.", hint=f"Use {', '.join(INT_BUFFERS)}.")
    refuse_codes(views, "average")
    _check_keys(views)
    steps = []
    ties = _ties(views)
    for key in views[0].tensors:
        inputs = [Input(i, key, v.tensors[key].dtype, v.tensors[key].shape) for i, v in enumerate(views)]
        _check_alike(key, inputs, views)
        dtype = views[0].dtype_of(key)
        steps.append(_step(key, inputs, weights, dtype=dtype, int_buffers=int_buffers, tied_to=ties.get(key, "")))
    return Plan(
        verb="average",
        sources=tuple(view.source for view in views),
        target=PlanTarget("edit", views[0].source.name, ""),
        steps=tuple(steps),
        arguments=arguments or {},
        metadata=metadata or {},
        notes=(
            *notes,
            *ModelTies(views, [tied_keys(view.tensors) for view in views]).apart(steps),
            *_mixed(steps, views),
            *_kept(steps, int_buffers),
        ),
    )


def _mixed(steps: Sequence[Step], views: Sequence[SourceView]) -> Iterator[str]:
    """Yield a note on averaged tensors whose dtypes differ: the output has the first checkpoint's dtypes."""
    mixed = [step for step in steps if len({one.dtype for one in step.inputs}) > 1]
    dtypes = {step.key: [views[one.source].dtype_of(one.key) for one in step.inputs] for step in mixed}
    mixed = [step for step in mixed if len(set(dtypes[step.key])) > 1]
    if mixed:
        each = [escape(dtype) for dtype in dict.fromkeys(dtype for step in mixed for dtype in dtypes[step.key])]
        made = listing(list(dict.fromkeys(step.dtype for step in mixed)), where="")
        keys = listing([step.key for step in mixed])
        head = f"{count(len(mixed), 'tensor')} with different dtypes in the checkpoints ({', '.join(each)})"
        yield f"{head}: the output has the dtype of the first checkpoint, {made}: {keys}"


def _kept(steps: Sequence[Step], int_buffers: str) -> Iterator[str]:
    """Yield a note on integer tensors with names of weights: they have no mean, and may be quantised weights."""
    odd = [
        step.key
        for step in steps
        if DTYPES[step.dtype].kind in ("int", "uint") and prod(step.shape) > 1 and step.key.endswith(_WEIGHTS)
    ]
    if odd:
        own = f"the values of the {int_buffers} checkpoint are taken"
        one = "the maximum is taken" if int_buffers == "max" else own
        have = "has" if len(odd) == 1 else "have"
        yield (
            f"{count(len(odd), 'weight')} {have} integer values, which have no mean: {one} (--int-buffers); if "
            f"these are codes of quantised weights, the output is wrong: {listing(odd)}"
        )


def _check_keys(views: Sequence[SourceView]) -> None:
    every = dict.fromkeys(key for view in views for key in view.tensors)
    for view in views:
        missing = [key for key in every if key not in view.tensors]
        if missing:
            raise PlanError(
                f"{escape(view.source.name)} lacks tensors that other checkpoints have: {listing(missing)}.",
                hint=UNWRAP
                if _are_wrapped(views)
                else layout_hint(named_keys(views))
                or layouts_hint(views)
                or f"{ALIKE}, or first remove the tensors that some of them lack, with ckpt filter.",
                details=missing,
            )
        opaque = [key for key, info in view.tensors.items() if info.opaque]
        if opaque:
            raise opaque_error(
                opaque[0], view.source.name, view.tensors[opaque[0]], "cannot be averaged", verb="average",
                leave=f"Leave the tensor out first: ckpt filter --exclude {escape(opaque[0])}.", details=opaque,
            )  # fmt: skip


def _are_wrapped(views: Sequence[SourceView]) -> bool:
    """Return whether all checkpoints have the same keys once wrappers such as ``module.`` are removed from the keys."""
    return len({frozenset(map(without_wrappers, view.tensors)) for view in views}) == 1


def _check_alike(key: str, inputs: Sequence[Input], views: Sequence[SourceView]) -> None:
    first = inputs[0]
    for one in inputs[1:]:
        here, there = escape(views[first.source].source.name), escape(views[one.source].source.name)
        if one.shape != first.shape:
            shapes = f"{shape_text(first.shape)} in {here}, {shape_text(one.shape)} in {there}"
            raise PlanError(f"shapes differ: {escape(key)} is {shapes}.", hint=f"{ALIKE}.")
        if DTYPES[one.dtype].kind != DTYPES[first.dtype].kind:
            raise PlanError(
                f"kinds of numbers differ: {escape(key)} is {first.dtype} in {here}, {one.dtype} in {there}.",
                hint=f"{ALIKE}.",
            )
    for one in inputs:
        if DTYPES[one.dtype].is_floating and DTYPES[one.dtype].is_packed:
            name = escape(views[one.source].source.name)
            raise PlanError(
                f"the tensor {escape(key)} of {name} is {one.dtype}, which packs several numbers in a byte, so it "
                "cannot be averaged.",
                hint=f"Leave the tensor out first: ckpt filter --exclude {escape(key)}.",
            )


def _ties(views: Sequence[SourceView]) -> dict[str, str]:
    """Return the ties that all checkpoints have: a map from each further key of a tied tensor to its first key."""
    first, *others = (tied_keys(view.tensors) for view in views)
    return {key: owner for key, owner in first.items() if all(other.get(key) == owner for other in others)}


def _step(
    key: str, inputs: Sequence[Input], weights: tuple[float, ...], *, dtype: str, int_buffers: str, tied_to: str
) -> Step:
    first, last = inputs[0], inputs[-1]
    floating = DTYPES[first.dtype].is_floating
    if COMPUTED.search(key):
        return Step(key, "copy", first.dtype, first.shape, first.source, key, first.dtype, first.shape, tied_to=tied_to)
    if not floating and int_buffers != "max":
        one = last if int_buffers == "last" else first
        return Step(
            key, "copy", one.dtype, one.shape, one.source, key, one.dtype, one.shape,
            rule=f"--int-buffers {int_buffers}", tied_to=tied_to,
        )  # fmt: skip
    return Step(
        key, "average" if floating else "max", dtype, first.shape, first.source, key, first.dtype, first.shape,
        tied_to=tied_to, more=tuple(inputs[1:]), weights=weights if floating else (),
    )  # fmt: skip
