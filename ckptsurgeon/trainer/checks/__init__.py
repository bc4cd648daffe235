"""What is checked before, during and after training: one small function each."""

from ._check import FAIL, NOT_RUN, PASS, WARN, Check

__all__ = ["FAIL", "NOT_RUN", "PASS", "WARN", "Check"]
