"""What goes wrong, in one line for people or for programs, with its exit code; stdout and stderr as they may be."""

from __future__ import annotations

import errno
import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from typing import Any, TextIO, cast

from ..errors import CheckpointError, ConfigError, OutputError, SourceError
from ..util.text import escape
from .stopping import output_in_place, stop_of

__all__ = ["ReaderGoneError", "failed", "guarded_streams", "is_for_memory"]

# stdout and stderr as they may be: closed, full, a pipe nobody reads, or unable to spell what we say.


class ReaderGoneError(Exception):
    """Nobody reads stdout any more, as in ``ckpt ... | head -1``."""


@contextmanager
def guarded_streams() -> Iterator[None]:
    """Make stdout and stderr writable whatever they are.

    A closed one is opened on nothing, so that no file we open takes its number. What an encoding lacks is written as an
    escape. A stdout that fails, or was closed, raises OutputError or ReaderGone when an answer is written; an stderr
    that fails is done without.
    """
    _open_closed()
    with redirect_stdout(cast(TextIO, _Answer(sys.stdout))), redirect_stderr(cast(TextIO, _Aside(sys.stderr))):
        yield


def _open_closed() -> None:
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            # The lowest number that is free, which is this one; of stdout, what is written must fail.
            os.open(os.devnull, os.O_RDONLY if number == 1 else os.O_RDWR)
    if sys.stdout is None:
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115


class _Stream:
    """A text stream that fails in its own way."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")

    def write(self, text: str) -> int:
        """Write a text."""
        if text == "":  # the parser probes streams with it and swallows what that raises
            return 0
        try:
            return self._stream.write(self._spelt(text))
        except OSError as error:
            return self._failed(error)

    def flush(self) -> None:
        """Write what is buffered."""
        try:
            self._stream.flush()
        except OSError as error:
            self._failed(error)

    def _spelt(self, text: str) -> str:
        utf = (self._stream.encoding or "").lower().startswith("utf")
        return text if utf or text.isascii() else text.replace("…", "...")

    def _failed(self, error: OSError) -> int:
        """Let what is still buffered go nowhere, since the interpreter tries to write it once more at its end.

        https://docs.python.org/3/library/signal.html#note-on-sigpipe
        """
        with suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)
        return 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class _Answer(_Stream):
    def _failed(self, error: OSError) -> int:
        super()._failed(error)
        if isinstance(error, BrokenPipeError):
            raise ReaderGoneError from error
        written = output_in_place()
        raise OutputError(
            f"the answer cannot be written to stdout: {error.strerror or error}.",
            hint=f"{written} was written." if written else "",
        ) from error


class _Aside(_Stream):
    pass


BUG = 70
LONGEST = 1200
"""Characters of a message, and of a hint, that people are shown; with --json there are all of them."""
RED, PLAIN = "\x1b[1;31m", "\x1b[0m"
_NO_MEMORY = ("failed to map segment", "cannot allocate memory", "Cannot allocate memory")
"""What the loader of shared libraries says where they find no room."""
_PACKAGE = os.path.dirname(os.path.dirname(__file__)) + os.sep
"""The compiler finds wrong syntax in a module where it has no memory."""


def failed(error: Exception, args: Sequence[str], *, as_json: bool) -> int:
    """Report an error and return its exit code; what a signal has caused, or CKPT_DEBUG=1 asks for, is raised on."""
    usage = hasattr(error, "format_message")  # the parser's own errors
    if stop_of()[0] or (os.environ.get("CKPT_DEBUG") == "1" and not usage):
        raise error
    known = _usage(error, args) if usage else _known(error)
    code = BUG if known is None else known.exit_code
    _report(known or _bug(error), code, as_json)
    return code


def _known(error: Exception) -> CheckpointError | None:
    if isinstance(error, CheckpointError):
        return error
    if isinstance(error, (OSError, ImportError)) and _is_out_of_descriptors():
        return SourceError("too many files are open for this process.", hint="Allow it more: ulimit -n.")
    if is_for_memory(error):
        return SourceError("there is not enough memory.")
    if isinstance(error, OSError):
        if not _has_folder():
            return SourceError("the working directory does not exist any more.", hint="Change to one that does.")
        about = f"{escape(os.fsdecode(error.filename))}: " if isinstance(error.filename, (str, bytes)) else ""
        return SourceError(f"{about}{error.strerror or error}.")
    return None


def is_for_memory(error: BaseException | None) -> bool:
    """Whether an error, or what it was raised for, is that there was no memory: for objects, a thread, a library."""
    if error is None:
        return False
    text = str(error)
    return (
        isinstance(error, MemoryError)
        or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
        or (isinstance(error, RuntimeError) and "can't start new thread" in text)
        or (isinstance(error, ImportError) and any(why in text for why in _NO_MEMORY))
        or (isinstance(error, SyntaxError) and str(error.filename).startswith(_PACKAGE))
        or is_for_memory(error.__cause__ or error.__context__)
    )


def _is_out_of_descriptors() -> bool:
    """Whether no file can be opened: then imports fail, too, each in its own words."""
    try:
        os.close(os.dup(2))
    except OSError as error:
        return error.errno in (errno.EMFILE, errno.ENFILE)
    return False


def _has_folder() -> bool:
    try:
        os.getcwd()
    except OSError:
        return False
    return True


def _usage(error: Exception, args: Sequence[str]) -> ConfigError:
    """Return an error of the parser as one of ours, with the way to say what was probably meant."""
    message = str(error.format_message()).rstrip(".")  # type: ignore[attr-defined]
    context = getattr(error, "ctx", None)
    hint = f"See {context.command_path} -h." if context is not None else ""
    for arg in args:
        if arg.startswith("-") and os.path.lexists(arg):
            hint = f"For the file {escape(arg)} write ./{escape(arg)}."
    return ConfigError(f"{escape(message, 1000)}.", hint=hint)


def _bug(error: Exception) -> CheckpointError:
    return CheckpointError(
        f"this is a bug: {type(error).__name__}: {error}.", hint="CKPT_DEBUG=1 shows where it happened."
    )


def _report(error: CheckpointError, code: int, as_json: bool) -> None:
    """Write an error, with no import and no file to open: there may be no memory and no descriptor for one."""
    sys.stderr.write((_as_json(error, code) if as_json else _as_text(error)) + "\n")
    sys.stderr.flush()


def _as_json(error: CheckpointError, code: int) -> str:
    """Return an error as one line of JSON."""
    data = {
        "kind": "ckpt.error",
        "version": 1,
        "error": type(error).__name__,
        "exit_code": code,
        "message": error.message,
        "hint": error.hint,
        "rule": error.rule or None,
        "details": list(error.details),
    }
    return json.dumps(data, ensure_ascii=True)


def _as_text(error: CheckpointError) -> str:
    """Return an error for people: what it repeats of arguments and files may be anything, and of any length."""
    said = [escape(part, LONGEST) for part in (error.message, error.hint) if part]
    return f"{RED}error:{PLAIN} {' '.join(said)}" if _is_coloured() else f"error: {' '.join(said)}"


def _is_coloured() -> bool:
    """Whether errors are coloured, as rich does it: on a terminal that can, unless NO_COLOR or FORCE_COLOR is set."""
    if os.environ.get("NO_COLOR"):
        return False
    able = sys.stderr.isatty() and os.environ.get("TERM", "").lower() not in ("dumb", "unknown")
    return able or bool(os.environ.get("FORCE_COLOR"))
