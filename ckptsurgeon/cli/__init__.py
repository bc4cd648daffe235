"""The command line. Each verb is a small file that declares its options, calls the API and prints the result.

Signal handlers are installed first, before modules that take time to import: these are imported in functions.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout, suppress
from typing import Any, TextIO, cast

from .stopping import output_in_place, say, stop_message, stoppable

__all__ = ["RARELY", "command", "main"]

RARELY = (10_000_000, 50, 50)
"""The thresholds of the garbage collector: two headers of 92,000 tensors make a million objects, all of them in use."""
GLOBAL = ("--json", "-q", "--quiet", "-v", "--verbose")
SIGPIPE = 141
"""The exit code if the process that reads stdout has ended."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``ckpt`` and return its exit code; a traceback is printed only if CKPT_DEBUG=1 is set.

    Without ``argv``, the command line of the process is used; a signal may then end the process at once.
    """
    if argv is None and len(sys.argv) == 1 and "_CKPT_COMPLETE" in os.environ:  # a shell asks for completions
        from .completion.answers import run as complete

        return complete(command)
    args = list(sys.argv[1:] if argv is None else argv)
    with stoppable("--json" in args, whole_program=argv is None), _rare_collection(whole_program=argv is None):
        try:
            return _run(args)
        except BaseException as error:
            code, line = stop_message(signal.SIGINT if isinstance(error, KeyboardInterrupt) else 0)
            if not code:
                raise
            say(line)
            return code


@contextmanager
def _rare_collection(*, whole_program: bool) -> Iterator[None]:
    """Let the cyclic garbage collector run rarely within the ``with`` block, to save time.

    If the process ends with the command, it stays rare: a collection at the end would be time lost.
    """
    thresholds = gc.get_threshold()
    gc.set_threshold(*RARELY)
    try:
        yield
    finally:
        if not whole_program:
            gc.set_threshold(*thresholds)


def command() -> Any:
    """Return the click command that has all verbs.

    Its modules are imported only when this function is called, because completion may not need them.
    """
    import typer

    from .application import application

    return typer.main.get_command(application(as_json=False))


# One command line.


def _run(args: Sequence[str]) -> int:
    """Run one command line with streams that are safe to write to, and return its exit code."""
    from .application import TIMEOUT
    from .failing import failed

    as_json = "--json" in args
    with _guarded_streams(), ExitStack() as stack:
        try:
            args = _set_timeout(args, TIMEOUT, stack)
            code = _invoke(_search_of_merge(args), as_json)
            sys.stdout.flush()
        except _ReaderGoneError:
            return SIGPIPE
        except Exception as error:
            return failed(error, args, as_json=as_json)
        return code


def _invoke(args: list[str], as_json: bool) -> int:
    """Parse and run a command line, and return its exit code.

    click's own ``main`` is not used because it has its own exit codes.
    """
    import typer

    from .application import COMPLETION, GROUPS, application

    args = _complete_wait_options(_complete_shell_options(_verb_first(args, GROUPS), COMPLETION))
    parser = typer.main.get_command(application(as_json=as_json, word="".join(args[:1])))
    if not args:
        with parser.make_context("ckpt", [], resilient_parsing=True) as context:
            sys.stderr.write(parser.get_help(context) + "\n")
        return 2
    try:
        with parser.make_context("ckpt", args) as context:
            parser.invoke(context)
    except typer.Exit as ended:
        return ended.exit_code
    return 0


def _set_timeout(args: Sequence[str], option: str, stack: ExitStack) -> list[str]:
    """Set the timeout for servers until ``stack`` closes; return the command line without ``option`` (``--timeout``).

    The option may be anywhere on the line; if there are several, the last one wins.
    """
    end = args.index("--") if "--" in args else len(args)
    kept: list[str] = []
    at = 0
    while at < len(args):
        name, between, value = args[at].partition("=")
        if at >= end or name != option:
            kept.append(args[at])
        else:
            from ..storage.read.http.timeouts import server_timeout

            at += not between
            stack.enter_context(server_timeout(value if between else "".join(args[at : at + 1])))
        at += 1
    return kept


def _search_of_merge(args: Sequence[str]) -> list[str]:
    """Return the command line with ``merge search RECIPE`` replaced by the verb ``search RECIPE``.

    If no recipe follows, ``search`` may be the name of a model to merge, and the command line is unchanged.
    """
    head = next((at for at, arg in enumerate(args) if arg not in GLOBAL), len(args))
    is_search = list(args[head : head + 2]) == ["merge", "search"]
    if is_search and "".join(args[head + 2 : head + 3]).lower().endswith((".yaml", ".yml")):
        return [*args[:head], *args[head + 1 :]]
    return list(args)


def _verb_first(args: Sequence[str], groups: Collection[str]) -> list[str]:
    """Return the command line with global options moved after the verb, so that ``ckpt --json inspect x`` works.

    ``groups`` are the first words of verbs that have two words, such as ``lora``.
    """
    head = next((at for at, arg in enumerate(args) if arg not in GLOBAL), len(args))
    if head == len(args) or args[head].startswith("-"):
        return list(args)
    words = 2 if args[head] in groups and not "".join(args[head + 1 : head + 2]).startswith("-") else 1
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


def _complete_shell_options(args: Sequence[str], options: Collection[str]) -> list[str]:
    """Return the command line with '' added after each of the completion ``options`` that has no value.

    The value '' means the shell that runs ckpt.
    """
    found: list[str] = []
    for number, arg in enumerate(args):
        if not arg.startswith("-"):  # a verb or the name of a shell follows
            return [*found, *args[number:]]
        found.append(arg)
        following = args[number + 1 : number + 2]
        if arg in options and (not following or following[0].startswith("-")):
            found.append("")
    return found


# stdout and stderr may be closed, full or a pipe that nobody reads; their encoding may lack some characters.


class _ReaderGoneError(Exception):
    """Raised by writing to stdout if the process that reads it has ended, as in ``ckpt ... | head -1``."""


@contextmanager
def _guarded_streams() -> Iterator[None]:
    """Make stdout and stderr safe to write to during the block.

    If a stream is closed, its descriptor is opened on /dev/null, so that no other file gets the descriptor. Characters
    that the encoding lacks are written as escapes. If stdout was closed or cannot be written, writing to it raises
    OutputError or _ReaderGoneError; errors in writing to stderr are ignored.
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
            raise _ReaderGoneError from error
        from ..errors import OutputError

        written = output_in_place()
        raise OutputError(
            f"cannot write the result to stdout: {error.strerror or error}.",
            hint=f"{written} was written." if written else "",
        ) from error


class _ErrorStream(_Stream):
    pass
