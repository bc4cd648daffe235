"""What the program does when a shell asks it to complete: answers in time, or says nothing."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress

from .typed import typed_in

__all__ = ["VARIABLE", "answer", "run"]

VARIABLE = "_CKPT_COMPLETE"
PATIENCE_S = 4.0
"""Whoever pressed Tab waits no longer than this, whatever lies in the file."""


def run() -> int:
    """Read what was typed, write the candidates, and leave: no error is ever shown in a line that is being typed."""
    signal.signal(signal.SIGALRM, lambda *_: os._exit(0))
    signal.setitimer(signal.ITIMER_REAL, PATIENCE_S)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    said = ""
    with suppress(Exception):
        said = answer(os.environ[VARIABLE], sys.stdin.buffer.read())
    with suppress(OSError):
        sys.stdout.buffer.write(said.encode("utf-8", "surrogateescape"))
        sys.stdout.flush()
    return 0


def answer(shell: str, given: bytes) -> str:
    """Return what to tell a shell that gives ``given``: the kind, then the candidates, each on a line."""
    from .candidates import candidates

    typed = typed_in(shell, os.fsdecode(given))
    if typed is None:
        return ""
    kind, values = candidates(typed.words, typed.current)
    if kind == "files":
        return "files\n"
    if not typed.plain:  # quotes inside the word: what the shell would put in its place is not ours to say
        return ""
    if shell == "fish" and kind == "partial" and not values[0].endswith("="):
        values = [*values, f"{values[0]}."]  # what stands alone gets a blank behind it there
    kept = len(typed.kept)
    return "\n".join([kind, *(value[kept:] for value in values if value and value.startswith(typed.current)), ""])
