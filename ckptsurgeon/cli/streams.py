"""stdout and stderr as they may be: closed, full, a pipe nobody reads, or unable to spell what we say."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from typing import Any, TextIO, cast

from ..errors import OutputError
from .stopping import output_in_place

__all__ = ["ReaderGoneError", "guarded_streams"]


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
