"""The options of an output that a recipe completes, and the notes on options that a printed plan lacks."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ...engine.output.layout import OutputOptions, is_on_folder_name
from ...engine.output.option_names import Spelling
from ...util.text import escape
from .argument_types import Path

if TYPE_CHECKING:
    from ..recipes import CompiledRecipe

__all__ = ["OutputOptions", "completed_options", "options_notes", "without_notes"]

LACKS_OPTIONS = "a plan does not contain the options of its output"
"""The beginning of the note of a printed plan on these options."""
LONGEST_COMMAND = 1000
"""The largest number of characters of options in a note."""


def completed_options(recipe: Path, order: CompiledRecipe, output: Path | None, **given: Any) -> OutputOptions:
    """Return the given options of an output, with the values of a recipe for those that the user did not give."""
    said: dict[str, Any] = {"to": order.to, "max_shard_size": order.max_shard_size, **order.shared}
    fields = {name: value for name, value in said.items() if value and not given.get(name)}
    spelling = Spelling(escape(os.fspath(recipe)), frozenset(fields))
    return OutputOptions.of(order.output if output is None else output, **given | fields, spelling=spelling)


def options_notes(options: OutputOptions, engine: str | None = None) -> tuple[str, ...]:
    """Return the note that names the given options of an output, other than its path; () if none is given."""
    named = [
        ("--to", options.to),
        ("--max-shard-size", options.max_shard_size),
        ("--ranks", options.ranks.ranks),
        *(("--axis", axis) for axis in options.ranks.axes),
        ("--mesh", options.ranks.mesh),
        ("--key", options.key),
        ("--engine", engine),
    ]
    words = [word for name, value in named if value for word in (name, str(value))]
    words += ["--consume"] if options.consume else []
    typed = escape(shlex.join(words), LONGEST_COMMAND)
    return (f"{LACKS_OPTIONS}: give {typed} to ckpt apply again",) if words else ()


def without_notes(notes: Sequence[str], options: OutputOptions, engine: str | None = None) -> list[str]:
    """Return the notes of a plan without those on an earlier output.

    These are the note on a folder with the name of a file and, if any such option is given now, that on options. They
    are found by their words, because the JSON of a plan has only the texts of its notes.
    """
    others = [note for note in notes if not is_on_folder_name(note)]
    return [note for note in others if not (note.startswith(LACKS_OPTIONS) and options_notes(options, engine))]
