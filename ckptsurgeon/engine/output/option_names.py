"""Names the options of an output in messages: as options, or as fields of the recipe that contains them."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["OPTIONS", "Spelling"]


@dataclass(frozen=True)
class Spelling:
    """The names of an output's options in messages.

    ``fields`` are the options that the user gave as fields of a recipe, such as ``max_shard_size``. ``recipe`` is the
    name of this recipe.
    """

    recipe: str = ""
    fields: frozenset[str] = frozenset()

    def name(self, option: str) -> str:
        """Return the name of an option, such as ``--ranks``, or ``the field ranks of r.yaml``."""
        field = _field(option)
        return f"the field {field} of {self.recipe}" if field in self.fields else option

    def around(self, option: str) -> tuple[str, str]:
        """Return the texts before and behind a value of an option."""
        field = _field(option)
        return (f"{field}: ", f" in {self.recipe}") if field in self.fields else (f"{option} ", "")

    def given(self, option: str, value: object) -> str:
        """Return an option with its value, as in ``--ranks 2``, or ``ranks: 2 in r.yaml``."""
        before, behind = self.around(option)
        return f"{before}{value}{behind}"


def _field(option: str) -> str:
    return option.removeprefix("--").replace("-", "_")


OPTIONS = Spelling()
"""All options are given as options."""
