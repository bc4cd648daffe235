"""The path and the format of an output, as the user and a recipe give them."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ...errors import CheckpointError
from ...util.text import escape
from .argument_types import Path

if TYPE_CHECKING:
    from ...engine.output.layout import OutputOptions
    from ..recipes import CompiledRecipe

__all__ = ["OutputForm", "completed_form"]

LONGEST_COMMAND = 1000
"""The largest number of characters of options in a note."""


@dataclass(frozen=True)
class OutputForm:
    """The path and the format of an output, and further options; None for each that the user did not give."""

    output: Path | None = None
    to: str | None = None
    max_shard_size: str | None = None
    ranks: int | None = None
    axis: Sequence[str] | None = None
    mesh: str | None = None

    def completed(self, order: CompiledRecipe) -> OutputForm:
        """Return this form with the values of a recipe for the options that the user did not give."""
        said = order.shared
        return OutputForm(
            self.output if self.output is not None else order.output,
            self.to or order.to,
            self.max_shard_size or order.max_shard_size,
            self.ranks or said.get("ranks"),
            self.axis or said.get("axis"),
            self.mesh or said.get("mesh"),
        )

    @property
    def axes(self) -> tuple[str, ...]:
        """The strings GLOB=AXIS; () if none is given."""
        return (self.axis,) if isinstance(self.axis, str) else tuple(self.axis or ())

    def notes(self) -> tuple[str, ...]:
        """Return the note that names the given options other than the path; () if none is given."""
        named = [
            ("--to", self.to),
            ("--max-shard-size", self.max_shard_size),
            ("--ranks", self.ranks),
            *(("--axis", axis) for axis in self.axes),
            ("--mesh", self.mesh),
        ]
        words = [word for name, value in named if value for word in (name, str(value))]
        typed = escape(shlex.join(words), LONGEST_COMMAND)
        return (
            (f"a plan does not contain the options of its output: give {typed} to ckpt apply again",) if words else ()
        )

    def options(self) -> OutputOptions:
        """Return the options of the output."""
        from ...engine.output.layout import OutputOptions
        from ...engine.output.ranks import RankOptions

        ranks = RankOptions(self.ranks or 0, self.axes, self.mesh or "")
        path = os.fspath(self.output) if self.output is not None else ""
        return OutputOptions(path, self.to or "", self.max_shard_size or "", ranks=ranks)


def completed_form(path: Path, order: CompiledRecipe, given: OutputForm) -> OutputForm:
    """Return the form ``given`` with the values of the recipe ``path`` for the options that the user did not give.

    Raises ConfigError or OutputError, after closing the plan, if the options are not valid. The error names a field of
    the recipe as a field, not as an option.
    """
    from ...engine.output.layout import check_options

    form = given.completed(order)
    try:
        check_options(replace(form, output="output/" if form.output is None else form.output).options())
    except CheckpointError as error:
        order.close()
        message, hint = error.message, error.hint
        if form.to and not given.to:
            message = message.replace(f"--to {form.to} ", f"to: {form.to} ")
        for field in ("max_shard_size", "ranks", "axis", "mesh"):
            if getattr(form, field) and not getattr(given, field):
                option = f"--{field.replace('_', '-')}"
                message = re.sub(rf"^{option}(?![\w-])", f"the field {field}", message)
                hint = hint.replace(f"Leave {option} out", f"Leave the field {field} out")
        if message != error.message:
            error.message, error.hint = f"{escape(os.fspath(path))}: {message}", hint
        raise
    return form
