"""Prints a command's result to stdout, as text or JSON, and notes and progress to stderr."""

from __future__ import annotations

import io
import json
import os
import shlex
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from ..errors import ConfigError
from ..util.notes import is_serious
from ..util.text import escape
from .options import Json, Quiet, Verbose
from .progress_bar import ProgressBar
from .stopping import unwinding

if TYPE_CHECKING:
    from rich.console import Console

    from ..planning.plan.plan import Plan
    from ..planning.plan.receipt import Receipt

__all__ = [
    "Jsonable",
    "Printer",
    "check_output",
    "console_of",
    "given_output",
    "print_to",
    "quoted",
    "show_plan",
    "show_receipt",
]

WIDTH = 100
"""The width of a line in columns if neither COLUMNS nor a terminal determines the width."""
NARROWEST = 60
"""The smallest width of a table in columns; on a narrower terminal, the lines wrap."""


class Jsonable(Protocol):
    """A result of the API that can be printed as JSON."""

    def to_json(self) -> dict[str, Any]:
        """Return the result as plain data."""
        ...


def _width(stream: Any) -> int:
    """Return the width for a stream in characters, from COLUMNS or the terminal; WIDTH if there is no valid width."""
    columns = os.environ.get("COLUMNS", "")
    width = int(columns) if columns.isascii() and columns.isdigit() and len(columns) < 6 else 0
    if not width and stream.isatty():
        try:
            width = os.get_terminal_size(stream.fileno()).columns or 80
        except (OSError, ValueError):
            width = 80
    return max(width or WIDTH, NARROWEST)


def console_of(stream: Any, file: Any = None) -> Console:
    """Return rich's console for a stream, with the width of the stream.

    With ``file``, the output goes there instead.
    """
    from rich.console import Console

    return Console(
        file=file or stream, force_terminal=stream.isatty() or None, width=_width(stream),
        highlight=False, markup=False, emoji=False, soft_wrap=False,
    )  # fmt: skip


def print_to(stream: Any, *views: Any, wrapped: bool = True) -> None:
    """Print rich's texts and tables to a stream in one write, with colours if the stream is a terminal.

    If ``wrapped`` is false, long lines are not wrapped.
    """
    text = io.StringIO()
    console = console_of(stream, text)
    for view in views:
        console.print(view, soft_wrap=not wrapped, crop=False)  # lines that must not be wrapped may be wider
    stream.write(text.getvalue())
    stream.flush()


@dataclass
class Printer:
    """The options --json, -q and -v of a command, and methods that print its output according to these options."""

    json: Json = False
    quiet: Quiet = False
    verbose: Verbose = False

    def answer(self, result: Jsonable | dict[str, Any]) -> bool:
        """Print a result as JSON if --json was given; return whether it was given."""
        if not self.json:
            return False
        data = result if isinstance(result, dict) else result.to_json()
        # allow_nan is false, because NaN is not valid JSON
        sys.stdout.write(json.dumps(data, indent=2, allow_nan=False, ensure_ascii=True) + "\n")
        sys.stdout.flush()
        return True

    def show(self, *views: Any) -> None:
        """Print texts and tables to stdout, unless -q or --json was given."""
        if not self.quiet and not self.json:
            print_to(sys.stdout, *views)

    def lines(self, lines: Iterable[str]) -> None:
        """Print lines to stdout without changes: they are neither wrapped nor coloured."""
        for line in lines:
            sys.stdout.write(line + "\n")
        sys.stdout.flush()

    def notes(self, notes: Iterable[str]) -> None:
        """Print notes to stderr: with -q only warnings; with --json none, because the JSON contains them."""
        notes = list(notes)
        if self.json or not notes:
            return
        from ..render.columns import notes_view

        if shown := [note for note in notes if not self.quiet or is_serious(note)]:
            print_to(sys.stderr, notes_view(shown))

    @contextmanager
    def working(self, what: str, output: str = "") -> Iterator[Any]:
        """Yield a callback (done, total) that draws a progress bar if the work takes over a second.

        Yields None if there is no terminal, or if -q or --json was given. A signal during the block stops the work and
        removes its temporary files. ``what`` is the text before the bar; ``output`` is the file that the work writes,
        if any.
        """
        with unwinding(output):
            if self.quiet or self.json or not sys.stderr.isatty():
                yield None
                return
            bar = ProgressBar(what, console_of(sys.stderr))
            try:
                yield bar.update
            finally:
                bar.stop()

    @contextmanager
    def waiting(self, what: Callable[[], str]) -> Iterator[None]:
        """Show what the command waits for, if the block takes over a second; the line is removed after the block.

        ``what`` returns the text, and is called when the line appears. Nothing is shown if stderr is not a terminal, or
        if -q or --json was given.
        """
        if self.quiet or self.json or not sys.stderr.isatty():
            yield
            return
        from .waiting_message import WaitingLine

        line = WaitingLine(what, console_of(sys.stderr))
        try:
            yield
        finally:
            line.stop()


def show_plan(printer: Printer, plan: Plan, notes: Sequence[str]) -> None:
    """Show a plan: its notes, its table and, with -v, every step."""
    printer.notes(notes)
    if printer.quiet:
        return
    from ..render.plan import plan_lines, plan_view

    if printer.verbose:
        printer.lines([*plan_lines(plan), ""])
    printer.show(plan_view(plan))


def show_receipt(printer: Printer, receipt: Receipt, shown: Collection[str]) -> None:
    """Show the receipt of an output, with its notes that are not in ``shown``."""
    printer.notes(note for note in receipt.notes if note not in shown)
    if printer.quiet:
        return
    from ..render.verification import receipt_view

    next_steps = [f"ckpt verify {quoted(receipt.output)}"]
    printer.show(receipt_view(receipt, next_steps=next_steps, every=printer.verbose))


def check_output(path: str) -> None:
    """Raise ConfigError if the path of the output is ``-``: stdout is not supported."""
    if path == "-":
        raise ConfigError(
            "-o - is not a file name, and an output cannot be written to stdout.",
            hint="Write a path after -o; for a file called - write ./-.",
        )


def given_output(output: str | None) -> str:
    """Return ``output`` if it is given, else raise ConfigError; for commands without a default output."""
    if output is None:
        raise ConfigError("no output given.", hint="Set the output with -o.")
    check_output(output)
    return output


def quoted(path: str) -> str:
    r"""Return a path quoted for a shell; control characters are written as escapes, as in $'a\x1b'."""
    if escape(path, len(path)) == path:
        return shlex.quote(path)
    return f"$'{''.join(map(_spelled, path))}'"


def _spelled(char: str) -> str:
    """Return a character as a shell reads it between ``$'`` and ``'`` (POSIX.1-2024, 2.2.4)."""
    if char in "'\\":
        return f"\\{char}"
    plain = char.isascii() and char.isprintable()
    return char if plain else "".join(f"\\x{byte:02x}" for byte in os.fsencode(char))
