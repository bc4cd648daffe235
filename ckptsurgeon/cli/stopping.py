"""Handles signals: writes one line to stderr, sets the exit status, and leaves no incomplete output.

This module is loaded before everything else and imports only cheap modules of the standard library. While an output is
being written, a signal raises StoppedBySignal in the code that writes, which then removes its temporary files. At any
other time, a signal ends the program at once.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

__all__ = [
    "StoppedBySignal",
    "output_in_place",
    "say",
    "set_run_folder",
    "set_study_folder",
    "stop_message",
    "stoppable",
    "unwinding",
]

WORDS = {int(signal.SIGINT): "interrupted", int(signal.SIGTERM): "terminated", int(signal.SIGHUP): "hung up"}
IMPATIENT_S = 1.0
"""A second signal at least this many seconds after the first ends the program without removing temporary files."""
AGAIN_S = 0.01
"""If Python ignored a StoppedBySignal, the exception is raised again after this many seconds."""

Identity = tuple[int, int] | None


class StoppedBySignal(BaseException):
    """The exception that a signal raises while an output is being written.

    It is a BaseException, so that ``except Exception`` does not catch it.
    """


class _SignalState:
    """The state of the signal handlers; global, because a process has one set of handlers.

    ``unwinds`` is true if a signal raises StoppedBySignal instead of ending the program. ``number`` is the number of
    the first signal, 0 if there was none; ``since`` is its time. ``before`` identifies the file that was at the path
    ``output`` when the work began. ``hasty`` is true if a second signal ended the program before temporary files were
    removed. ``run`` is the folder of a training run, ``study`` the folder of a search.
    """

    as_json = False
    unwinds = False
    number = 0
    since = 0.0
    output = ""
    before: Identity = None
    hasty = False
    run = ""
    study = ""


@contextmanager
def stoppable(as_json: bool, *, whole_program: bool) -> Iterator[None]:
    """Handle SIGINT, SIGTERM and SIGHUP during the block, except signals that are ignored when it begins (``nohup``).

    With ``whole_program``, signals are ignored after the block: the interpreter's exit cannot be interrupted safely.
    """
    _SignalState.as_json, _SignalState.unwinds, _SignalState.number, _SignalState.output = (
        as_json,
        not whole_program,
        0,
        "",
    )
    _SignalState.run = _SignalState.study = ""
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
    """Make signals raise StoppedBySignal during the block; ``output`` is the file that the block writes, if any."""
    outside, _SignalState.unwinds = _SignalState.unwinds, True
    _SignalState.output, _SignalState.before = output, _identity(output)
    try:
        yield
    finally:
        _SignalState.unwinds = outside
    if _SignalState.number:  # the exception was raised, but other code caught and dropped it
        raise StoppedBySignal


def _stop(number: int, _: object) -> None:
    again = number == signal.SIGALRM
    if again and not _SignalState.number:
        return
    first = not _SignalState.number
    if first:
        _SignalState.number, _SignalState.since = number, time.monotonic()
    if _SignalState.unwinds and (first or again):
        raise StoppedBySignal
    if _SignalState.unwinds and time.monotonic() - _SignalState.since < IMPATIENT_S:
        return
    _SignalState.hasty = _SignalState.unwinds
    code, line = stop_message()
    say(line)
    os._exit(code)


def _unraisable(found: Any) -> None:
    """Raise StoppedBySignal again a moment later if Python ignored it, because a finaliser or a callback was running.

    This is set as ``sys.unraisablehook``; any other exception is reported as usual.
    """
    if found.exc_type is not None and issubclass(found.exc_type, StoppedBySignal):
        signal.setitimer(signal.ITIMER_REAL, AGAIN_S)
        return
    sys.__unraisablehook__(found)


def say(line: str) -> None:
    """Write a line to stderr, unbuffered; errors are ignored."""
    with suppress(OSError):
        os.write(2, f"{line}\n".encode("utf-8", "backslashreplace"))


def stop_message(number: int = 0) -> tuple[int, str]:
    """Return the exit code and the message for signal ``number``, or for the received signal if it is 0.

    Returns (0, '') if there was no signal.
    """
    number = number or _SignalState.number
    if not number:
        return 0, ""
    code, message = 128 + number, f"{WORDS[number]}; {_remains()}."
    if not _SignalState.as_json:
        return code, f"error: {message}"
    # The JSON is written by hand, because the signal may have interrupted the import of json.
    quoted = message.replace("\\", "\\\\").replace('"', '\\"')
    head = '{"kind": "ckpt.error", "version": 1, "error": "CheckpointError", "exit_code": '
    return code, f'{head}{code}, "message": "{quoted}", "hint": "", "rule": null, "details": []}}'


def set_run_folder(folder: str) -> None:
    """Set the folder of the training run, so that the message after a signal contains the run's last checkpoint."""
    _SignalState.run = folder


def set_study_folder(folder: str) -> None:
    """Set the folder of a search, so that the message after a signal says that its trials are kept."""
    _SignalState.study = folder


def _saved_checkpoint() -> str:
    """Return a clause with the run's last checkpoint and the command that resumes it; '' if no checkpoint was saved."""
    try:
        step = os.readlink(os.path.join(_SignalState.run, "last")) if _SignalState.run else ""
    except OSError:
        return ""
    from ..util.text import escape

    at = "" if _SignalState.run == "run" else f" --run {escape(_SignalState.run)}"
    return f"{escape(os.path.join(_SignalState.run, step))} is saved; ckpt train{at} --resume continues" if step else ""


def _remains() -> str:
    if saved := _saved_checkpoint():
        return saved
    placed = output_in_place()
    if placed:
        return f"{placed} was already written"
    if parts := _finished_parts():
        return parts
    if _SignalState.study and os.path.isdir(_SignalState.study):
        from ..util.text import escape

        return f"the trials in {escape(_SignalState.study)} are kept: the same command goes on from there"
    return "a temp file may be left; the next run removes it" if _SignalState.hasty else "no incomplete file was left"


def _finished_parts() -> str:
    """Return a clause on the finished parts of the output, from which the same command can continue; '' if none."""
    from ..storage.write.journal import unfinished_output

    found = unfinished_output(os.path.realpath(_SignalState.output)) if _SignalState.output else None
    if found is None:
        return ""
    return f"{found.done} parts are finished and kept: the same command continues from there"


def output_in_place() -> str:
    """Return the path of the output if the file there was written or replaced since the work began, otherwise ''."""
    if not _SignalState.output or _identity(_SignalState.output) in (None, _SignalState.before):
        return ""
    from ..util.text import escape

    return escape(_SignalState.output)


def _identity(path: str) -> Identity:
    """Return the device and inode of a file, which change if another file replaces it; None if there is no file."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return None
    return found.st_dev, found.st_ino
