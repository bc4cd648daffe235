"""Torch's operations: the tensors in their nested arguments, and their effects, by their names and schemas."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
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
    "instances_in",
    "makes",
    "replaced",
    "tensors_in",
]

# ``torch.utils._pytree`` walks over all kinds of containers, but takes half of the time that a construction takes.
# So tuples, lists and dicts are walked directly here, and ``_pytree`` handles only other containers.

Kind = type[Any] | tuple[type[Any], ...]

_LEAVES = frozenset(
    {int, float, bool, complex, str, type(None), torch.dtype, torch.device, torch.layout, torch.memory_format}
)
"""Types of arguments that contain no other values."""


def tensors_in(tree: Any) -> list[Tensor]:
    """Return all tensors in nested arguments."""
    return instances_in(tree, Tensor)


def instances_in(tree: Any, kind: Kind) -> list[Any]:
    """Return all objects of the class ``kind`` in nested arguments."""
    found: list[Any] = []
    _collect(tree, kind, found)
    return found


def _collect(tree: Any, kind: Kind, found: list[Any]) -> None:
    own = type(tree)
    if own is tuple or own is list or own is dict:
        for item in tree.values() if own is dict else tree:
            if isinstance(item, kind):
                found.append(item)
            elif type(item) not in _LEAVES:
                _collect(item, kind, found)
    elif isinstance(tree, kind):
        found.append(tree)
    elif own not in _LEAVES and not isinstance(tree, Tensor):
        leaves = pytree.tree_leaves(tree, is_leaf=lambda node: isinstance(node, kind))
        found += [leaf for leaf in leaves if isinstance(leaf, kind)]


def replaced(tree: Any, kind: Kind, replace: Callable[[Any], Any]) -> Any:
    """Return the nested arguments ``tree`` with each value of the class ``kind`` replaced by ``replace(value)``."""
    own = type(tree)
    if own is tuple:
        return tuple([replaced(item, kind, replace) for item in tree])
    if own is list:
        return [replaced(item, kind, replace) for item in tree]
    if own is dict:
        return {key: replaced(item, kind, replace) for key, item in tree.items()}
    if isinstance(tree, kind):
        return replace(tree)
    if own in _LEAVES or isinstance(tree, Tensor):
        return tree
    return pytree.tree_map(
        lambda leaf: replace(leaf) if isinstance(leaf, kind) else leaf,
        tree,
        is_leaf=lambda node: isinstance(node, kind),
    )


# The effects of torch's operations on tensors, by the names and schemas of the operations.

aten = torch.ops.aten

ALLOCATES = {
    "aten::empty",
    "aten::empty_like",
    "aten::new_empty",
    "aten::empty_strided",
    "aten::new_empty_strided",
}
"""Operations that allocate memory, but write no values."""
COPIES = {"aten::clone", "aten::copy_", "aten::detach", "aten::alias"}
"""Operations that copy values unchanged."""
REBINDS = {"aten::set_", "aten::resize_", "aten::detach_", "aten::requires_grad_"}
"""Operations that change a tensor's storage, size or autograd state, but no values."""
OVERWRITES = {
    "aten::normal_", "aten::uniform_", "aten::zero_", "aten::fill_", "aten::copy_", "aten::random_", "aten::bernoulli_",
    "aten::exponential_", "aten::log_normal_", "aten::cauchy_", "aten::geometric_", "aten::eye",
}  # fmt: skip
"""Operations that overwrite every element of the tensor that they change."""
SMALL = {
    "aten::arange", "aten::eye", "aten::full", "aten::linspace", "aten::logspace", "aten::ones", "aten::zeros",
    "aten::scalar_tensor", "aten::tril_indices", "aten::triu_indices", "aten::hann_window", "aten::hamming_window",
}  # fmt: skip
"""Operations that make constants; small constants are made with storage, so that constructors can read them."""
BY_SIZE = {aten.rand.default, aten.randn.default, aten.rand.generator, aten.randn.generator}
"""Random operations whose first argument is the size of the result; torch's shape function would import sympy."""


@cache
def draws(func: Any) -> bool:
    """Return whether an operation uses the random generator."""
    return torch.Tag.nondeterministic_seeded in func.tags


def constant_size(func: Any, args: Any) -> Any:
    """Return an estimate of how many elements an operation such as ``torch.arange`` makes with ``args``.

    If the arguments do not determine this, the estimate is the largest number in them.
    """
    name = func._schema.name
    numbers = instances_in(args, (int, float))
    if name in ("aten::ones", "aten::zeros", "aten::full"):
        return math.prod(args[0])
    if name in ("aten::eye", "aten::tril_indices", "aten::triu_indices"):
        return math.prod(int(number) for number in numbers[:2]) * (numbers[0] if len(numbers) == 1 else 1)
    if name == "aten::arange" and len(numbers) == 3:
        return int(abs((numbers[1] - numbers[0]) / (numbers[2] or 1)))
    if name in ("aten::linspace", "aten::logspace"):
        return int(numbers[2])
    return int(max(map(abs, numbers), default=1))


@cache
def makes(func: Any) -> bool:
    """Return whether an operation makes a new tensor: it has an argument for the device of its result."""
    return any(argument.name == "device" for argument in func._schema.arguments)


def changed_by(func: Any, args: Any, kwargs: Any) -> list[Tensor]:
    """Return the tensors in the arguments that an operation changes according to its schema."""
    if _changes_view(func):
        return []
    found: list[Tensor] = []
    for position, name in _written(func):
        found += tensors_in(args[position] if position < len(args) else kwargs.get(name))
    return found or _changed_unsaid(func, args)


@cache
def _changes_view(func: Any) -> bool:
    return torch.Tag.inplace_view in func.tags


@cache
def _written(func: Any) -> tuple[tuple[int, str], ...]:
    """Return the position and the name of each argument to which an operation writes according to its schema."""
    arguments = enumerate(func._schema.arguments)
    return tuple((at, one.name) for at, one in arguments if one.alias_info is not None and one.alias_info.is_write)


def _changed_unsaid(func: Any, args: Any) -> list[Tensor]:
    """Return the running statistics that a batch norm changes in training, although its schema does not declare it."""
    if func is not aten.native_batch_norm.default or not args[5]:
        return []
    return tensors_in(args[3:5])
