"""Proposes which tensors of one model are which of another's, from headers alone. Proposes only."""

from .names import Likeness
from .proposal import Match, Proposal
from .solve import propose

__all__ = ["Likeness", "Match", "Proposal", "propose"]
