"""The command line: one small file for each verb, which parses, calls the API and prints.

What reacts to signals is there before anything that takes time to import.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from typing import Any

from .stopping import say, stop_of, stoppable

__all__ = ["command", "main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``ckpt`` and return its exit code; never a traceback, unless CKPT_DEBUG=1 asks for it.

    Without ``argv`` it is the whole program, which a signal may end from within.
    """
    if argv is None and len(sys.argv) == 1 and "_CKPT_COMPLETE" in os.environ:  # a shell asks what may come next
        from .completion.answers import run as complete

        return complete(command)
    args = list(sys.argv[1:] if argv is None else argv)
    with stoppable("--json" in args, whole_program=argv is None):
        try:
            from .run import run

            return run(args)
        except BaseException as error:
            code, line = stop_of(signal.SIGINT if isinstance(error, KeyboardInterrupt) else 0)
            if not code:
                raise
            say(line)
            return code


def command() -> Any:
    """Return the whole command line as click knows it; imported late, since a shell's question may be given up."""
    import typer

    from .application import application

    return typer.main.get_command(application(as_json=False))
