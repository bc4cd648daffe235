"""Rereads an output and holds it against its recipe, its plan and its sources, bit for bit."""

from .expected import Expected, expected_of_plan, expected_of_recipe
from .verify import verify_output

__all__ = ["Expected", "expected_of_plan", "expected_of_recipe", "verify_output"]
