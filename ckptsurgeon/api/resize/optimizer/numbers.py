"""Copies the numbers that an optimizer stores for a parameter, such as ``step``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ....checkpoint.optimizer_states import STATE
from ....planning.keys.spelling import quoted
from ....planning.resizing.gradients import FIRST, SECOND
from .names import ParameterId, ParameterState

__all__ = ["OLD", "copied_numbers"]

OLD = "old"
"""The temporary prefix of values that are copied to new parameters unchanged."""


def copied_numbers(kept: Mapping[str, ParameterState], ids: Mapping[str, ParameterId]) -> Iterator[dict[str, Any]]:
    """Yield the operations that copy the numbers of a parameter, such as ``step``, to all parameters made from it.

    ``kept`` maps each parameter of the output that keeps moments to its state in the source, ``ids`` to its new id.
    """
    into: dict[str, list[str]] = {}
    for name, state in kept.items():
        for one, info in state.tensors.items():
            if not info.shape and one not in (*FIRST, *SECOND):
                key = f"{OLD}.{quoted(str(state.id))}.{quoted(one)}"
                into.setdefault(key, []).append(quoted(f"{STATE}.{ids[name]}.{one}"))
        for one, value in state.numbers.items():
            key = f"{STATE}.{ids[name]}.{one}"
            yield {"constant": key, "values": [float(value)]}
            yield {"reshape": quoted(key), "shape": []}
    yield from ({"copy": key, "into": keys} for key, keys in into.items())
