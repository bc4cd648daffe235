"""Proposes which tensors of one model are which of another's, from headers alone. Proposes only."""

from .proposal import Match, Proposal
from .solve import propose

__all__ = ["Match", "Proposal", "propose"]
