"""The merges that KnOTS may use in the basis that all products share, by their names in ``ckpt merge``."""

from __future__ import annotations

__all__ = ["DARE_TIES", "MERGES", "SUM", "TIES"]

SUM, TIES, DARE_TIES = "task_arithmetic", "ties", "dare_ties"
MERGES = (SUM, TIES, DARE_TIES)
