"""What may become of a tensor whose shape or dtype differs from what the destination wants. Pure, without numpy."""

from .casts import cast_fault
from .fitting import Fit, fit, fitting_policies
from .kernels import PATCH
from .parse import MISMATCH_POLICIES, Policy, parse_policy
from .positions import Positions, positions_of
from .shapes import is_reshape

__all__ = [
    "MISMATCH_POLICIES",
    "PATCH",
    "Fit",
    "Policy",
    "Positions",
    "cast_fault",
    "fit",
    "fitting_policies",
    "is_reshape",
    "parse_policy",
    "positions_of",
]
