"""Reads the state of an optimizer of torch, which is stored by parameter, as tensors with one key each.

``state`` maps each parameter, by its number or its name, to tensors such as ``exp_avg``; ``param_groups`` has the
numbers or names of each group of parameters, and the group's settings:
https://docs.pytorch.org/docs/stable/generated/torch.optim.Optimizer.state_dict.html.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import FormatError, UnsafeError
from ..formats.base import limits
from ..formats.pickle.values import key_text
from ..util.text import escape

__all__ = ["GROUPS", "STATE", "has_moments", "is_optimizer", "optimizer_entries"]

STATE, GROUPS = "state", "param_groups"
"""The two entries of an optimizer's state."""


def is_optimizer(node: Any) -> bool:
    """Return whether a value in a file is the state of an optimizer."""
    return isinstance(node, dict) and node.keys() >= {STATE, GROUPS}


def has_moments(node: Mapping[Any, Any]) -> bool:
    """Return whether the state of an optimizer has a value for any parameter.

    There is no value before the first step, and none for SGD without momentum, for which older versions of torch store
    None.
    """
    of_parameters = node[STATE]
    each = of_parameters.values() if isinstance(of_parameters, dict) else ()
    return any(one is not None for values in each if isinstance(values, dict) for one in values.values())


def optimizer_entries(node: Mapping[Any, Any], uri: str) -> dict[str, Any]:
    """Return the state of an optimizer without nesting: ``state.PARAMETER.NAME`` for each value, and ``param_groups``.

    Values may be tensors or plain numbers, such as ``step``. Raises FormatError if two values get the same key,
    UnsafeError for more values than any real state has.
    """
    groups = node[GROUPS]
    if isinstance(groups, dict) and list(groups) == list(range(len(groups))):
        groups = list(groups.values())  # so torch.distributed.checkpoint stores a list
    found: dict[str, Any] = {GROUPS: groups}
    of_parameters = node[STATE]
    for parameter, values in of_parameters.items() if isinstance(of_parameters, dict) else ():
        for name, value in values.items() if isinstance(values, dict) else ():
            key = f"{STATE}.{key_text(parameter)}.{key_text(name)}"
            if key in found:
                raise FormatError(f"{escape(uri)}: two values have the key {escape(key)}.", rule="optimizer")
            found[key] = value
        if len(found) > limits.TENSORS:
            raise UnsafeError(
                f"{escape(uri)}: the optimizer has more values than the limit of {limits.TENSORS}.", rule="tensors"
            )
    return found
