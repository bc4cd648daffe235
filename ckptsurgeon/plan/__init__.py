"""Plans: for every destination tensor where its values come from, made from headers alone, reviewable as JSON."""

from .costs import Costs
from .merge import Merge, Value
from .plan import (
    CLASSES,
    MERGES,
    Carried,
    Equal,
    FilePrint,
    Input,
    Plan,
    PlanCompanion,
    PlanSource,
    PlanTarget,
    Step,
    with_vocabularies,
)
from .receipt import Failure, Receipt, Verification
from .rows import Row, Rows, rows_of_each

__all__ = [
    "CLASSES",
    "MERGES",
    "Carried",
    "Costs",
    "Equal",
    "Failure",
    "FilePrint",
    "Input",
    "Merge",
    "Plan",
    "PlanCompanion",
    "PlanSource",
    "PlanTarget",
    "Receipt",
    "Row",
    "Rows",
    "Step",
    "Value",
    "Verification",
    "rows_of_each",
    "with_vocabularies",
]
