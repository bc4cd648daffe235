"""Remarks and small answers: one line each, and what is too long for it indented below."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.text import Text

from ..util.text import escape
from .columns import hanging

__all__ = ["Hanging", "Spread", "next_view", "notes_view", "written_view"]


class Hanging:
    """A text behind a label; its further lines begin under its first word."""

    def __init__(self, label: Text, text: Text | str) -> None:
        self._label = label
        self._text = text if isinstance(text, Text) else Text(text)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        start = self._label.cell_len
        first, *more = hanging(self._text, options.max_width, first=start, rest=start)
        line = Text().append_text(self._label)  # of a copy the label's colour would be that of the whole line
        line.append_text(first[start:])
        line.rstrip()
        yield line
        yield from more


class Spread:
    """Words behind a label, two blanks between them; a line ends between two words, never inside one."""

    def __init__(self, label: Text, words: Sequence[str | Text]) -> None:
        self._label, self._words = label, [word if isinstance(word, Text) else Text(word) for word in words]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        line, start = Text().append_text(self._label), self._label.cell_len
        for number, word in enumerate(self._words):
            between = "  " if line.cell_len > start else ""
            if number and line.cell_len + len(between) + word.cell_len > options.max_width:
                yield line
                line, between = Text(" " * start), ""
            line.append(between).append_text(word)
        yield line


def notes_view(notes: Iterable[str]) -> RenderableType:
    """Return remarks, one below the other."""
    return Group(*(Hanging(Text("note: ", "yellow"), escape(note, 1000)) for note in notes))


def next_view(commands: Iterable[str]) -> Iterator[RenderableType]:
    """Yield the line that says what to do next; a command stays on one line, to be copied."""
    text = ", ".join(commands)
    if text:
        yield Text(f"  next: {text}", style="dim", no_wrap=True, overflow="ignore")


def written_view(output: str, *, next_step: str) -> RenderableType:
    """Return that a small file was written, and the next command."""
    line = Text("  wrote ")
    line.append(escape(output), style="bold")
    return Group(line, *next_view([next_step]))
