"""Computes llama.cpp's tensor ``rope_freqs.weight``: the divisors that stretch the context of Llama 3.1 and later.

The frequencies of the rotary embedding are divided by them. The formula is the same as in transformers
(``modeling_rope_utils.py``, rope_type llama3).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from ...errors import PlanError

__all__ = ["FrequencyScaling", "rope_factors"]


@dataclass(frozen=True)
class FrequencyScaling:
    """How low frequencies of the rotary embedding are scaled.

    ``context`` is the number of positions that the model was first trained on. A frequency that makes fewer than
    ``low`` full turns in these positions is divided by ``factor``. A frequency that makes more than ``high`` turns
    stays the same. Between the two limits, the scaling is interpolated.
    """

    factor: float
    low: float
    high: float
    context: float


def rope_factors(theta: float, size: int, scaling: FrequencyScaling) -> tuple[float, ...]:
    """Return the divisor of each of the ``size // 2`` frequencies of a head, in double precision.

    ``theta`` is the base of the rotary embedding. Raises PlanError if it is not above 0.
    """
    if not 0 < theta < math.inf:
        raise PlanError(
            f"the base of the rotary embedding in config.json is {theta:g}, not a number above 0.",
            hint="Correct config.json.",
        )
    return tuple(_factor(theta ** (-pair / size), scaling) for pair in range(0, size, 2))


def _factor(frequency: float, scaling: FrequencyScaling) -> float:
    """Return the divisor of a frequency, which is in radians per position."""
    turns = scaling.context * frequency / (2 * math.pi)
    smooth = min(max((turns - scaling.low) / (scaling.high - scaling.low), 0.0), 1.0)
    return 1 / ((1 - smooth) / scaling.factor + smooth)
