"""The entry point of the program ``ckpt``; it imports nothing that takes time.

Until the command line installs its own signal handlers, Ctrl-C ends the process silently (``SIG_DFL``): a traceback
from the middle of an import would not help the user.
"""

from __future__ import annotations

import gc
import signal
import sys

__all__ = ["main"]


def main() -> int:
    """Run the command in ``sys.argv`` and return its exit code; it is only called if ``ckpt`` is the whole process."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # the parent may have set SIG_IGN
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from .cli import main as run

    try:
        return run()
    finally:  # otherwise, Python looks for unreachable objects three times at its end: 50 ms, and 0.2 s with torch
        gc.freeze()


if __name__ == "__main__":  # python -m ckptsurgeon
    sys.exit(main())
