"""Checks the adapters and the weights that the user gives to a verb with several adapters."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf, isfinite
from typing import cast

from ...checkpoint.opening import is_given
from ...errors import ConfigError
from ...util.text import count
from ..inputs.argument_types import CheckpointLike, Sources

__all__ = ["adapters_of", "weights_of_adapters"]


def adapters_of(adapters: Sources) -> list[CheckpointLike]:
    """Return the adapters as a list; a single adapter may be given without a list."""
    if is_given(adapters):
        return [cast("CheckpointLike", adapters)]
    return list(cast("Sequence[CheckpointLike]", adapters))


def weights_of_adapters(weights: Sequence[float] | None, adapters: Sequence[object]) -> list[float]:
    """Return the weight of each adapter; raises ConfigError for a wrong number or an invalid weight.

    Also raises ConfigError if there are no adapters.
    """
    if not adapters:
        raise ConfigError("no adapter given.", hint="Give at least one adapter.")
    given = [1.0] * len(adapters) if weights is None else [_number(one) for one in weights]
    if len(given) != len(adapters):
        raise ConfigError(
            f"--weights gives {count(len(given), 'weight')} for {count(len(adapters), 'adapter')}.",
            hint="Give a weight for each adapter, as in --weights 0.7,0.3.",
        )
    wrong = next((one for one in given if not isfinite(one)), None)
    if wrong is not None:
        raise ConfigError(f"--weights: {wrong} is not a valid weight.", hint="Use a finite number, as in 0.7.")
    return given


def _number(value: float) -> float:
    """Return a number as a float; an integer that is too large for a float becomes infinite."""
    try:
        return float(value)
    except OverflowError:
        return inf
