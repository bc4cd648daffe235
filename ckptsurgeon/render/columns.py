"""Lays out text for rich: aligned columns, and labels with text whose further lines are indented."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.text import Text

from ..util.notes import is_serious
from ..util.text import count, escape, human_bytes

if TYPE_CHECKING:
    from ..analysis.page.contents import Page

__all__ = ["Columns", "Hanging", "SpacedWords", "hanging", "next_view", "notes_view", "page_view", "written_view"]

GAP = 2
NARROWEST = 28
"""If the last column would be narrower than this, its text is put on separate lines."""


class Columns:
    """A table of text cells for rich; the columns in ``right`` are aligned right, and the last column is wrapped."""

    def __init__(self, rows: Iterable[Sequence[str | Text]], *, right: Iterable[int] = (), indent: int = 2) -> None:
        self._rows = [[cell if isinstance(cell, Text) else Text(cell) for cell in row] for row in rows]
        self._right = set(right)
        self._indent = indent

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if not self._rows:
            return
        number = max(map(len, self._rows))
        widths = [self._width(i, options.max_width // 2) for i in range(number - 1)]
        for row in self._rows:
            yield from self._row(row, widths, options.max_width)

    def _width(self, column: int, most: int) -> int:
        """Return the width of the widest cell of a column, but ignore cells wider than ``most``.

        Returns 0 if all cells are wider.
        """
        cells = [row[column].cell_len for row in self._rows if column < len(row)]
        return max((width for width in cells if width <= most), default=0)

    def _row(self, row: Sequence[Text], widths: Sequence[int], room: int) -> Iterator[Text]:
        line = Text(" " * self._indent)
        for i, width in enumerate(widths):
            cell = row[i] if i < len(row) else Text()
            if cell.cell_len > width:  # on separate lines; the row continues below
                start = line.cell_len
                first, *more = hanging(cell, room, first=start, rest=start)
                line.append_text(first[start:])
                line.rstrip()
                yield from (line, *more)
                line, cell = Text(" " * start), Text()
            line.append_text(_set(cell, width, right=i in self._right))
            line.append(" " * GAP)
        last = row[len(widths)] if len(row) > len(widths) else Text()
        yield from self._with_last(line, last, room)

    def _with_last(self, line: Text, last: Text, room: int) -> Iterator[Text]:
        start = line.cell_len
        if room - start < NARROWEST and last.cell_len > max(1, room - start):
            line.rstrip()
            yield line
            yield from hanging(last, room, first=self._indent + 4, rest=self._indent + 4)
            return
        first, *more = hanging(last, room, first=start, rest=start)
        line.append_text(first[start:])
        line.rstrip()
        yield from (line, *more)


def _set(cell: Text, width: int, *, right: bool) -> Text:
    blanks = Text(" " * (width - cell.cell_len))
    return blanks + cell if right else cell + blanks


def hanging(text: Text, width: int, *, first: int, rest: int) -> list[Text]:
    """Return ``text`` wrapped to lines of at most ``width`` cells.

    The first line is indented by ``first`` cells, the others by ``rest``. Lines are broken at blanks outside of
    brackets. A word that is too long for a line is broken after a comma, else after a dot, else after ``_`` or ``-``,
    else anywhere.
    """
    lines = [Text(" " * first)]
    empty = True
    for word in _words(text, max(8, width - rest)):
        room = max(8, width - (rest if len(lines) > 1 else first))
        while word.cell_len > room:
            head, word = word.divide([_break(word.plain, room)])
            lines = [*lines, Text(" " * rest)] if not empty else lines
            lines[-1].append_text(head)
            empty = False
        if not empty and lines[-1].cell_len + 1 + word.cell_len > width:
            lines.append(Text(" " * rest))
            empty = True
        lines[-1].append_text(word if empty else Text(" ") + word)
        empty = False
    for line in lines[:-1]:
        line.rstrip()
    return lines


def _words(text: Text, room: int) -> Iterator[Text]:
    """Yield the words of a text; text in brackets, such as a shape, is one word if it fits on a line."""
    held: list[Text] = []
    for word in text.split(" "):
        held.append(word)
        joined = Text(" ").join(held)
        if joined.plain.count("(") > joined.plain.count(")") and joined.cell_len < room:
            continue
        yield from [joined] if joined.cell_len <= room else held
        held = []
    yield from held


def _break(word: str, room: int) -> int:
    """Return the number of characters of a long word that are put on a line of ``room`` cells."""
    end = room
    while cell_len(word[:end]) > room:  # wide characters take two cells
        end -= 1
    for separators in (",", "./", "_-"):
        at = max(word.rfind(separator, end // 3, end) for separator in separators)
        if at >= 0:
            return at + 1
    return max(1, end)


# Notes and small answers.


class Hanging:
    """A text after a label; its further lines begin under its first word."""

    def __init__(self, label: Text, text: Text | str) -> None:
        self._label = label
        self._text = text if isinstance(text, Text) else Text(text)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        start = self._label.cell_len
        first, *more = hanging(self._text, options.max_width, first=start, rest=start)
        line = Text().append_text(self._label)  # a copy's style would apply to the whole line
        line.append_text(first[start:])
        line.rstrip()
        yield line
        yield from more


class SpacedWords:
    """Words after a label, separated by two blanks; lines are broken only between words."""

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
    """Return notes, one per line; notes that ``ckpt check`` reports as failures are shown as warnings."""
    labels = {False: Text("note: ", "yellow"), True: Text("warning: ", "bold yellow")}
    return Group(*(Hanging(labels[is_serious(note)], escape(note, 1000)) for note in notes))


def next_view(commands: Iterable[str]) -> Iterator[RenderableType]:
    """Yield a line with the commands that the user may run next; it is never broken, so that it can be copied."""
    text = ", ".join(commands)
    if text:
        yield Text(f"  next: {text}", style="dim", no_wrap=True, overflow="ignore")


def written_view(output: str, *, next_step: str) -> RenderableType:
    """Return a message that the file or folder ``output`` was written, and the command that the user may run next."""
    line = Text("  wrote ")
    line.append(escape(output), style="bold")
    return Group(line, *next_view([next_step]))


# A page that was written.


def page_view(page: Page, *, next_step: str) -> RenderableType:
    """Return the path and size of a written HTML page, its number of tensors, and a command that may be run next."""
    line = Text(escape(page.output or ""), style="bold")
    line.append(f"  {human_bytes(page.nbytes)}  {count(page.tensors, 'tensor')}", "not bold")
    return Group(Hanging(Text("  wrote "), line), *next_view([next_step]))
