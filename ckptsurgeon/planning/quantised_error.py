"""The error for a plan that would use codes as numbers, and its hint."""

from __future__ import annotations

from ..errors import PlanError

__all__ = ["QuantisedError", "SettingsError", "UndecodableWeightError", "dequantise"]

DECODING = ("average", "lora extract", "lora merge", "merge", "transplant")
"""The commands that have the option ``--encoding dequantize``."""


def dequantise(verb: str) -> str:
    """Return the hint, without a full stop, that says how to dequantise a model for the command ``verb``."""
    how = "--encoding dequantize" if verb in DECODING else "ckpt convert --dequantize"
    return f"Dequantise the model first, with {how} or the package that quantised it"


class QuantisedError(PlanError):
    """Raised for a plan that would use codes as plain numbers, or numbers as codes; decoding the sources may help."""


class UndecodableWeightError(PlanError):
    """Raised for a quantised weight that a verb must decode, but cannot."""


class SettingsError(PlanError):
    """Raised if quantised tensors would be decoded differently with the output's settings than with the source's."""
