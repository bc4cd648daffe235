"""What torch's operations do to tensors, by their names and schemas."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

__all__ = [
    "ALLOCATES",
    "BY_SIZE",
    "COPIES",
    "OVERWRITES",
    "REBINDS",
    "SMALL",
    "aten",
    "changed_by",
    "constant_size",
    "draws",
    "makes",
    "tensors_in",
]

aten = torch.ops.aten

ALLOCATES = {
    "aten::empty",
    "aten::empty_like",
    "aten::new_empty",
    "aten::empty_strided",
    "aten::new_empty_strided",
}
COPIES = {"aten::clone", "aten::copy_", "aten::detach", "aten::alias"}
"""Operations that leave values as they are."""
REBINDS = {"aten::set_", "aten::resize_", "aten::detach_", "aten::requires_grad_"}
OVERWRITES = {
    "aten::normal_", "aten::uniform_", "aten::zero_", "aten::fill_", "aten::copy_", "aten::random_", "aten::bernoulli_",
    "aten::exponential_", "aten::log_normal_", "aten::cauchy_", "aten::geometric_", "aten::eye",
}  # fmt: skip
"""Operations that leave nothing of what was in their destination."""
SMALL = {
    "aten::arange", "aten::eye", "aten::full", "aten::linspace", "aten::logspace", "aten::ones", "aten::zeros",
    "aten::scalar_tensor", "aten::tril_indices", "aten::triu_indices", "aten::hann_window", "aten::hamming_window",
}  # fmt: skip
"""Operations that make constants; small ones are made for real, so that constructors can look at them."""
BY_SIZE = {aten.rand.default, aten.randn.default, aten.rand.generator, aten.randn.generator}
"""Draws whose result has the size of their first argument; torch's own shape rule for them imports sympy."""


def draws(func: Any) -> bool:
    """Whether an operation takes from the random generator."""
    return torch.Tag.nondeterministic_seeded in func.tags


def tensors_in(tree: Any) -> list[Tensor]:
    """Return the tensors among nested arguments."""
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor)]


def constant_size(func: Any, args: Any) -> Any:
    """Return about how many elements a factory makes: the product of its sizes, or its largest number."""
    name = func._schema.name
    numbers = [leaf for leaf in pytree.tree_leaves(args) if isinstance(leaf, (int, float))]
    if name in ("aten::ones", "aten::zeros", "aten::full"):
        return math.prod(args[0])
    if name in ("aten::eye", "aten::tril_indices", "aten::triu_indices"):
        return math.prod(int(number) for number in numbers[:2]) * (numbers[0] if len(numbers) == 1 else 1)
    if name == "aten::arange" and len(numbers) == 3:
        return int(abs((numbers[1] - numbers[0]) / (numbers[2] or 1)))
    if name in ("aten::linspace", "aten::logspace"):
        return int(numbers[2])
    return int(max(map(abs, numbers), default=1))


def makes(func: Any) -> bool:
    """Whether an operation lets one say on which device its result shall be."""
    return any(argument.name == "device" for argument in func._schema.arguments)


def changed_by(func: Any, args: Any, kwargs: Any) -> list[Tensor]:
    """Return the tensors that an operation changes, by its schema."""
    if torch.Tag.inplace_view in func.tags:
        return []
    found: list[Tensor] = []
    for position, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[position] if position < len(args) else kwargs.get(argument.name)
            found += tensors_in(value)
    return found or _changed_unsaid(func, args)


def _changed_unsaid(func: Any, args: Any) -> list[Tensor]:
    """Return the running statistics that a batch norm in training changes, of which its schema says nothing."""
    if func is not aten.native_batch_norm.default or not args[5]:
        return []
    return tensors_in(args[3:5])
