"""Lists what the codes of bitsandbytes' nf4 and fp4 represent, and how the key of their settings ends."""

from __future__ import annotations

__all__ = ["STATE", "VALUES"]

STATE = ".quant_state.bitsandbytes__"
"""The ending of the key of a ``quant_state``; the name of the type (nf4 or fp4) follows it."""
VALUES = {
    "nf4": (
        -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
        -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
        0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
    ),
    "fp4": tuple(one / 12 for one in (0, 0.0625, 8, 12, 4, 6, 2, 3, 0, -0.0625, -8, -12, -4, -6, -2, -3)),
}  # fmt: skip
"""The values that the 16 codes of each type represent.

The values of nf4 are quantiles of a normal distribution (https://arxiv.org/abs/2305.14314, appendix E). The values of
fp4, which has a sign and three bits for exponent and fraction, are divided by the largest value, 12.
"""
