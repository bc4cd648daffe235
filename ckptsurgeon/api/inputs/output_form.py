"""The path and the format of an output, as the user and a recipe give them."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ...engine.output.spelling import OPTIONS, Spelling
from ...util.text import escape
from .argument_types import Path

if TYPE_CHECKING:
    from ...engine.output.layout import OutputOptions
    from ..recipes import CompiledRecipe

__all__ = ["OutputForm", "run_options"]

LACKS_OPTIONS = "a plan does not contain the options of its output"
"""The beginning of the note of a printed plan on these options."""
LONGEST_COMMAND = 1000
"""The largest number of characters of options in a note."""


def run_options(key: Path | None, engine: str | None, *, consume: bool) -> tuple[str, ...]:
    """Return the given options of ``run`` as words of a command."""
    named = [("--key", os.fspath(key or "")), ("--engine", engine or "")]
    words = [word for name, value in named if value for word in (name, value)]
    return (*words, "--consume") if consume else tuple(words)


@dataclass(frozen=True)
class OutputForm:
    """The path and the format of an output, and further options; None for each that the user did not give.

    ``spelling`` says how messages call the options. ``run`` are the given options that are not about the format, as
    words: --key, --consume, --engine.
    """

    output: Path | None = None
    to: str | None = None
    max_shard_size: str | None = None
    ranks: int | None = None
    axis: Sequence[str] | None = None
    mesh: str | None = None
    spelling: Spelling = OPTIONS
    run: tuple[str, ...] = ()

    def completed(self, path: Path, order: CompiledRecipe) -> OutputForm:
        """Return this form with the values of the recipe ``path`` for the options that the user did not give."""
        said: dict[str, Any] = {"to": order.to, "max_shard_size": order.max_shard_size, **order.shared}
        fields = {name: value for name, value in said.items() if value and not getattr(self, name)}
        output = self.output if self.output is not None else order.output
        spelling = Spelling(escape(os.fspath(path)), frozenset(fields))
        return replace(self, output=output, spelling=spelling, **fields)

    def check(self) -> None:
        """Raise ConfigError or OutputError if the options are not valid; without a path, for a folder."""
        from ...engine.output.layout import check_options

        check_options(replace(self, output="output/" if self.output is None else self.output).options())

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
        words += self.run
        typed = escape(shlex.join(words), LONGEST_COMMAND)
        return (f"{LACKS_OPTIONS}: give {typed} to ckpt apply again",) if words else ()

    def without_notes(self, notes: Sequence[str]) -> list[str]:
        """Return the notes of a plan without those on an earlier output.

        These are the note on a folder with the name of a file and, if any such option is given now, that on options.
        """
        from ...engine.output.layout import NAMED_AS_FILE

        others = [note for note in notes if NAMED_AS_FILE not in note]
        return [note for note in others if not (note.startswith(LACKS_OPTIONS) and self.notes())]

    def options(self) -> OutputOptions:
        """Return the options of the output."""
        from ...engine.output.layout import OutputOptions
        from ...engine.output.ranks import RankOptions

        ranks = RankOptions(self.ranks or 0, self.axes, self.mesh or "")
        path = os.fspath(self.output) if self.output is not None else ""
        return OutputOptions(path, self.to or "", self.max_shard_size or "", ranks=ranks, spelling=self.spelling)
