"""Finds what a LoRA of stacked experts changes in a base that stores the stacks themselves, such as gpt-oss.

A stack is (experts, out, in), or (experts, in, out) as in gpt-oss. Its shape shows which, unless its matrices are
square: then it is laid out like the other stacks of the adapter, or like gpt-oss if the shapes of the base show that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from ...errors import FormatError
from ...methods.lora.adapter import AdapterModule
from ...methods.lora.config import AdapterConfig
from ...methods.lora.expert_stack import fits_stack, stack_kind
from ...tensors.info import TensorInfo
from ...util.text import escape
from ..lora_output.stacked_experts import ExpertStack, expert_stacks, target_stacks

__all__ = ["has_stacks", "stack_modules"]

Shape: TypeAlias = Sequence[int]
_JOINED, _LAST = ".experts.gate_up_proj", ".experts.down_proj"


def has_stacks(data: Mapping[str, Any], base: Mapping[str, Shape]) -> bool:
    """Return whether an adapter with the configuration ``data`` changes stacks of experts that the base stores.

    ``base`` has the shapes of the base's tensors by key, here and below.
    """
    parameters = target_stacks(data)
    return any(
        len(shape) == 3 and any(key.endswith(f".experts.{one}") for one in parameters) for key, shape in base.items()
    )


def stack_modules(
    tensors: Mapping[str, TensorInfo],
    data: Mapping[str, Any],
    settings: AdapterConfig,
    name: str,
    base: Mapping[str, Shape],
) -> list[AdapterModule]:
    """Return the modules of an adapter for stacked experts of ``base``, one for each stack, with their scales.

    ``tensors`` are the headers of the adapter, ``data`` is its configuration, ``settings`` that of its layers; ``name``
    is the name of the file in messages. If ``base`` is empty, every kind says that the weights are not transposed.
    Raises FormatError if factors do not fit each other or the configuration, or if it cannot be told whether the
    weights are (experts, out, in).
    """
    stacks = [*expert_stacks(tensors, data, settings, name)]
    ways = {stack: _layouts(stack, base) for stack in stacks}
    shown = {way for found in ways.values() if len(found) == 1 for way in found}
    modules = []
    for stack, found in ways.items():
        is_turned = _of_square(stack, shown, base, name) if len(found) > 1 else found == [True]
        parameter, kind = f"{stack.module}.{stack.parameter}", stack_kind(stack.experts, transposed=is_turned)
        modules.append(AdapterModule(parameter, stack.a, stack.b, settings.scale_of(parameter), kind=kind))
    return modules


def _layouts(stack: ExpertStack, base: Mapping[str, Shape]) -> list[bool]:
    """Return the layouts in which ``stack`` fits a stack of the base: True is (experts, in, out), False (..., out, in).

    The result is empty if it fits in none: then the plan reports it.
    """
    sizes = [(stack.experts * stack.rank, stack.inputs), (stack.outputs, stack.rank * stack.experts)]
    shapes = {tuple(shape) for key, shape in base.items() if key.endswith(f".experts.{stack.parameter}")}
    return [
        way
        for way in (False, True)
        if any(fits_stack(stack_kind(stack.experts, transposed=way), shape, sizes) for shape in shapes)
    ]


def _of_square(stack: ExpertStack, shown: set[bool], base: Mapping[str, Shape], name: str) -> bool:
    """Return whether a stack of square matrices is (experts, in, out).

    ``shown`` are the layouts that the shapes of the adapter's other stacks show. Without them, a base laid out like
    gpt-oss decides. For other bases, PEFT's versions differ: until 0.17 they have (experts, in, out) for all.
    """
    if len(shown) == 1:
        return next(iter(shown))
    if _is_turned(base):
        return True
    raise FormatError(
        f"{escape(name)} changes the square matrices of {escape(stack.module)}.{stack.parameter} "
        f"({stack.experts} of {stack.outputs} x {stack.inputs}), and nothing shows whether they are "
        "(out, in) or (in, out): versions of PEFT differ.",
        hint="Merge it with the PEFT that trained it: merge_and_unload().",
        rule="rank",
    )


def _is_turned(base: Mapping[str, Shape]) -> bool:
    """Return whether the stacks of a base are (experts, in, out), as the two sizes of its gate and up show."""

    def shape(ending: str) -> Shape:
        return next((shape for key, shape in base.items() if key.endswith(ending)), ())

    joined, last = shape(_JOINED), shape(_LAST)
    return len(joined) == len(last) == 3 and joined[2] == 2 * last[1] and joined[1] == last[2]
