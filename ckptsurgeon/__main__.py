"""Where the program ``ckpt`` begins: with nothing imported that takes time.

Until the command line reacts to signals in its own way, Ctrl-C ends the process as it ends any other: a traceback out
of some import would say nothing.
"""

from __future__ import annotations

import signal
import sys

__all__ = ["main"]


def main() -> int:
    """Run ``ckpt`` as the whole program and return its exit code."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # and is not ignored, as behind nohup
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from .cli import main as run

    return run()


if __name__ == "__main__":  # python -m ckptsurgeon
    sys.exit(main())
