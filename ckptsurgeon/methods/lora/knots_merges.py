"""Names the merges that KnOTS can apply in the shared basis of all products, as ``ckpt merge`` names them."""

from __future__ import annotations

__all__ = ["DARE_TIES", "MERGES", "SUM", "TIES"]

SUM, TIES, DARE_TIES = "task_arithmetic", "ties", "dare_ties"
MERGES = (SUM, TIES, DARE_TIES)
