"""Why a tensor of a plan is what it is, and what else it could have been. Pure, from the plan and headers."""

from .explain import explain
from .facts import Alternatives, Candidate, Explained, Explanation, Passed

__all__ = ["Alternatives", "Candidate", "Explained", "Explanation", "Passed", "explain"]
