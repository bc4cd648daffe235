"""Runs one command line with streams that are safe to write to, and turns its outcome into an exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, redirect_stderr, redirect_stdout, suppress
from typing import Any, TextIO, cast

import typer

from ..errors import OutputError
from .application import COMPLETION, GROUPS, TIMEOUT, application
from .failing import failed
from .stopping import output_in_place

__all__ = ["run"]

GLOBAL = ("--json", "-q", "--quiet", "-v", "--verbose")
SIGPIPE = 141
"""The exit code if the process that reads stdout has ended."""


def run(args: Sequence[str]) -> int:
    """Run one command line and return its exit code."""
    as_json = "--json" in args
    with guarded_streams(), ExitStack() as stack:
        try:
            args = _set_timeout(args, stack)
            code = _invoke(_verb_first(_search_of_merge(args)), as_json)
            sys.stdout.flush()
        except ReaderGoneError:
            return SIGPIPE
        except Exception as error:
            return failed(error, args, as_json=as_json)
        return code


def _invoke(args: list[str], as_json: bool) -> int:
    """Parse and run a command line, and return its exit code.

    click's own ``main`` is not used because it has its own exit codes.
    """
    args = _complete_wait_options(_complete_shell_options(args))
    command = typer.main.get_command(application(as_json=as_json, word="".join(args[:1])))
    if not args:
        with command.make_context("ckpt", [], resilient_parsing=True) as context:
            sys.stderr.write(command.get_help(context) + "\n")
        return 2
    try:
        with command.make_context("ckpt", args) as context:
            command.invoke(context)
    except typer.Exit as ended:
        return ended.exit_code
    return 0


def _set_timeout(args: Sequence[str], stack: ExitStack) -> list[str]:
    """Set the timeout for servers until ``stack`` closes; return the command line without ``--timeout``.

    ``--timeout`` may be anywhere on the line; if there are several, the last one wins.
    """
    end = args.index("--") if "--" in args else len(args)
    kept: list[str] = []
    at = 0
    while at < len(args):
        name, between, value = args[at].partition("=")
        if at >= end or name != TIMEOUT:
            kept.append(args[at])
        else:
            at += not between
            stack.enter_context(_timeout_of(value if between else "".join(args[at : at + 1])))
        at += 1
    return kept


def _timeout_of(seconds: str) -> AbstractContextManager[None]:
    from ..storage.read.http.timeouts import server_timeout

    return server_timeout(seconds)


def _search_of_merge(args: Sequence[str]) -> list[str]:
    """Return the command line with ``merge search RECIPE`` replaced by the verb ``search RECIPE``.

    If no recipe follows, ``search`` may be the name of a model to merge, and the command line is unchanged.
    """
    head = 0
    while head < len(args) and args[head] in GLOBAL:
        head += 1
    is_search = list(args[head : head + 2]) == ["merge", "search"]
    if is_search and "".join(args[head + 2 : head + 3]).lower().endswith((".yaml", ".yml")):
        return [*args[:head], *args[head + 1 :]]
    return list(args)


def _verb_first(args: Sequence[str]) -> list[str]:
    """Return the command line with global options moved after the verb, so that ``ckpt --json inspect x`` works."""
    head = 0
    while head < len(args) and args[head] in GLOBAL:
        head += 1
    if head == len(args) or args[head].startswith("-"):
        return list(args)
    words = 2 if args[head] in GROUPS and not "".join(args[head + 1 : head + 2]).startswith("-") else 1
    return [*args[head : head + words], *args[:head], *args[head + words :]]


def _complete_wait_options(args: Sequence[str]) -> list[str]:
    """Return the command line with each --wait without a number replaced by ``--wait=inf``: wait without limit."""
    found: list[str] = []
    for number, arg in enumerate(args):
        if arg == "--":
            return [*found, *args[number:]]
        following = args[number + 1] if number + 1 < len(args) else ""
        found.append("--wait=inf" if arg == "--wait" and not _is_number(following) else arg)
    return found


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _complete_shell_options(args: Sequence[str]) -> list[str]:
    """Return the command line with '' added after each completion option that has no value.

    The value '' means the shell that runs ckpt.
    """
    found: list[str] = []
    for number, arg in enumerate(args):
        if not arg.startswith("-"):  # a verb or the name of a shell follows
            return [*found, *args[number:]]
        found.append(arg)
        following = args[number + 1 : number + 2]
        if arg in COMPLETION and (not following or following[0].startswith("-")):
            found.append("")
    return found


# stdout and stderr may be closed, full or a pipe that nobody reads; their encoding may lack some characters.


class ReaderGoneError(Exception):
    """Raised by writing to stdout if the process that reads it has ended, as in ``ckpt ... | head -1``."""


@contextmanager
def guarded_streams() -> Iterator[None]:
    """Make stdout and stderr safe to write to during the block.

    If a stream is closed, its descriptor is opened on /dev/null, so that no other file gets the descriptor. Characters
    that the encoding lacks are written as escapes. If stdout was closed or cannot be written, writing to it raises
    OutputError or ReaderGoneError; errors in writing to stderr are ignored.
    """
    _open_closed()
    with (
        redirect_stdout(cast(TextIO, _AnswerStream(sys.stdout))),
        redirect_stderr(cast(TextIO, _ErrorStream(sys.stderr))),
    ):
        yield


def _open_closed() -> None:
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            # open() uses the lowest free descriptor, which is this one. Writing to a closed stdout must fail, so stdout
            # is opened read-only.
            os.open(os.devnull, os.O_RDONLY if number == 1 else os.O_RDWR)
    if sys.stdout is None:
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115


class _Stream:
    """A text stream that passes its errors to ``_failed`` instead of raising OSError."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")

    def write(self, text: str) -> int:
        """Write a string; an error is passed to ``_failed``."""
        if text == "":  # the parser tests streams with '', and ignores errors
            return 0
        try:
            return self._stream.write(self._encodable(text))
        except OSError as error:
            return self._failed(error)

    def flush(self) -> None:
        """Write the buffered text."""
        try:
            self._stream.flush()
        except OSError as error:
            self._failed(error)

    def _encodable(self, text: str) -> str:
        utf = (self._stream.encoding or "").lower().startswith("utf")
        return text if utf or text.isascii() else text.replace("…", "...")

    def _failed(self, error: OSError) -> int:
        """Redirect the stream to /dev/null after an error, and return 0.

        The interpreter flushes the buffer once more at exit, which would fail again:
        https://docs.python.org/3/library/signal.html#note-on-sigpipe
        """
        with suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)
        return 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class _AnswerStream(_Stream):
    def _failed(self, error: OSError) -> int:
        super()._failed(error)
        if isinstance(error, BrokenPipeError):
            raise ReaderGoneError from error
        written = output_in_place()
        raise OutputError(
            f"cannot write the result to stdout: {error.strerror or error}.",
            hint=f"{written} was written." if written else "",
        ) from error


class _ErrorStream(_Stream):
    pass
