"""The command line. Each verb is a small file that declares its options, calls the API and prints the result.

Signal handlers are installed first, before modules that take time to import.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from .stopping import say, stop_message, stoppable

__all__ = ["RARELY", "command", "main"]

RARELY = (10_000_000, 50, 50)
"""The thresholds of the garbage collector: two headers of 92,000 tensors make a million objects, all of them in use."""


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
            from .run import run

            return run(args)
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
