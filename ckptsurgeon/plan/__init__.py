"""Plans: for every destination tensor where its values come from, made from headers alone, reviewable as JSON."""

from .plan import CLASSES, Carried, Equal, FilePrint, Plan, PlanSource, PlanTarget, Step
from .receipt import Failure, Receipt, Verification

__all__ = [
    "CLASSES",
    "Carried",
    "Equal",
    "Failure",
    "FilePrint",
    "Plan",
    "PlanSource",
    "PlanTarget",
    "Receipt",
    "Step",
    "Verification",
]
