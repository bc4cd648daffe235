"""A shell at a terminal."""

from __future__ import annotations

import os
import pty
import re
import select
import time


class Terminal:
    """A shell at a terminal, into which is typed."""

    def __init__(self, *command: str) -> None:
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.environ.update(PS1="", TERM="dumb", INPUTRC="/dev/null", LC_ALL="C.UTF-8")
            os.execvp(command[0], command)

    def types(self, text: str, until: str) -> str:
        """Type, and return what is seen once it matches ``until``."""
        os.write(self.fd, text.encode())
        seen, end = "", time.monotonic() + 60
        while not re.search(until, seen) and time.monotonic() < end:
            if select.select([self.fd], [], [], 0.2)[0]:
                seen += os.read(self.fd, 65536).decode()
        assert re.search(until, seen), seen
        return seen
