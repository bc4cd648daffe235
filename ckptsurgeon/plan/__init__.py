"""Plans: for every destination tensor where its values come from, made from headers alone, reviewable as JSON."""

from .costs import Costs
from .lora import FACTORS, Factor, Lora, Term, plain_shape
from .merge import Merge, Value
from .plan import Carried, Equal, FilePrint, Plan, PlanCompanion, PlanSource, PlanTarget
from .receipt import Failure, Fit, Note, Receipt, Verification
from .rows import Row, Rows, rows_of_each
from .step import CLASSES, MERGES, Input, Step, with_vocabularies

__all__ = [
    "CLASSES",
    "FACTORS",
    "MERGES",
    "Carried",
    "Costs",
    "Equal",
    "Factor",
    "Failure",
    "FilePrint",
    "Fit",
    "Input",
    "Lora",
    "Merge",
    "Note",
    "Plan",
    "PlanCompanion",
    "PlanSource",
    "PlanTarget",
    "Receipt",
    "Row",
    "Rows",
    "Step",
    "Term",
    "Value",
    "Verification",
    "plain_shape",
    "rows_of_each",
    "with_vocabularies",
]
