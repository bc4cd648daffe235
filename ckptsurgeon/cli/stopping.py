"""Signals: whenever one comes, one line, the right exit status, and nothing left half done.

It is loaded before everything else and imports only what an interpreter has at hand. While nothing is being
written a signal ends the program at once; while something is, it unwinds what writes, which removes its temp files.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

__all__ = ["Stopped", "output_in_place", "say", "stop_of", "stoppable", "trains_in", "unwinding"]

WORDS = {int(signal.SIGINT): "interrupted", int(signal.SIGTERM): "terminated", int(signal.SIGHUP): "hung up"}
IMPATIENT_S = 1.0
"""A second signal that comes later than this after the first does not wait for the unwinding."""
AGAIN_S = 0.01

Identity = tuple[int, int] | None


class Stopped(BaseException):
    """A signal, on its way through whatever is being written."""


class _State:
    """What the handlers need to know; there is one, as there is one set of handlers."""

    as_json = False
    unwinds = False
    number = 0
    since = 0.0
    output = ""
    before: Identity = None
    hasty = False
    run = ""


@contextmanager
def stoppable(as_json: bool, *, whole_program: bool) -> Iterator[None]:
    """React to SIGINT, SIGTERM and SIGHUP; one that whoever started us has ignored stays ignored.

    When the whole program is done they are ignored, because the interpreter's own end cannot be interrupted tidily.
    """
    _State.as_json, _State.unwinds, _State.number, _State.output = as_json, not whole_program, 0, ""
    _State.run = ""
    taken = [number for number in WORDS if signal.getsignal(number) is not signal.SIG_IGN]
    previous = {number: signal.signal(number, _stop) for number in (*taken, int(signal.SIGALRM))}
    hook, sys.unraisablehook = sys.unraisablehook, _unraisable
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, signal.SIG_IGN if whole_program else handler)
        sys.unraisablehook = hook


@contextmanager
def unwinding(output: str = "") -> Iterator[None]:
    """Let signals raise Stopped while the block runs, which may write ``output``."""
    outside, _State.unwinds = _State.unwinds, True
    _State.output, _State.before = output, _identity(output)
    try:
        yield
    finally:
        _State.unwinds = outside
    if _State.number:  # it was raised, and something that catches everything swallowed it
        raise Stopped


def _stop(number: int, _: object) -> None:
    again = number == signal.SIGALRM
    if again and not _State.number:
        return
    first = not _State.number
    if first:
        _State.number, _State.since = number, time.monotonic()
    if _State.unwinds and (first or again):
        raise Stopped
    if _State.unwinds and time.monotonic() - _State.since < IMPATIENT_S:
        return
    _State.hasty = _State.unwinds
    code, line = stop_of()
    say(line)
    os._exit(code)


def _unraisable(found: Any) -> None:
    """Raise again, a little later, what was raised where Python ignores exceptions: in a finaliser, a callback."""
    if found.exc_type is not None and issubclass(found.exc_type, Stopped):
        signal.setitimer(signal.ITIMER_REAL, AGAIN_S)
        return
    sys.__unraisablehook__(found)


def say(line: str) -> None:
    """Write a line to stderr, past every buffer; where that is gone, do without."""
    with suppress(OSError):
        os.write(2, f"{line}\n".encode("utf-8", "backslashreplace"))


def stop_of(number: int = 0) -> tuple[int, str]:
    """Return the exit code and the line of ``number`` or of the signal that came; 0 where none did."""
    number = number or _State.number
    if not number:
        return 0, ""
    code, message = 128 + number, f"{WORDS[number]}; {_left()}."
    if not _State.as_json:
        return code, f"error: {message}"
    # By hand: what writes JSON may be the very thing whose import was interrupted.
    quoted = message.replace("\\", "\\\\").replace('"', '\\"')
    head = '{"kind": "ckpt.error", "version": 1, "error": "CheckpointError", "exit_code": '
    return code, f'{head}{code}, "message": "{quoted}", "hint": "", "rule": null, "details": []}}'


def trains_in(folder: str) -> None:
    """Let what a signal leaves be a run's last checkpoint."""
    _State.run = folder


def _saved() -> str:
    """Return which checkpoint a run has and how it goes on, '' where nothing was saved."""
    try:
        step = os.readlink(os.path.join(_State.run, "last")) if _State.run else ""
    except OSError:
        return ""
    from ..util.text import escape

    at = "" if _State.run == "run" else f" --run {escape(_State.run)}"
    return f"{escape(os.path.join(_State.run, step))} is saved, and ckpt train{at} --resume goes on" if step else ""


def _left() -> str:
    if saved := _saved():
        return saved
    placed = output_in_place()
    if placed:
        return f"{placed} was already in place"
    return "a temp file may be left, which the next run removes" if _State.hasty else "nothing was left half done"


def output_in_place() -> str:
    """Return the output's name if what is there now is not what was there before."""
    if not _State.output or _identity(_State.output) in (None, _State.before):
        return ""
    from ..util.text import escape

    return escape(_State.output)


def _identity(path: str) -> Identity:
    """Return what tells a file from one that takes its place."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return None
    return found.st_dev, found.st_ino
