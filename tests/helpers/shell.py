"""Commands of a page, run as a reader would, and what they print held against what the page shows."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

__all__ = ["installed", "left_out", "shows"]

LEFT_OUT = ("python3 -m venv ", ". .venv/", "pip install ", "make demo", "make test", "make test-gpu", "git clone ")
"""Commands that a test does not run: they install, or are the tests."""


def left_out(command: str) -> bool:
    """Whether a command is one that only a reader runs."""
    return command.startswith(LEFT_OUT)


def installed(root: Path) -> dict[str, str]:
    """Return an environment in which ``ckpt`` is the program of this checkout, as after installing it."""
    program = Path("bin/ckpt").absolute()
    program.parent.mkdir(exist_ok=True)
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m ckptsurgeon "$@"\n')
    program.chmod(0o755)
    own = {"PATH": f"{program.parent}:{os.environ['PATH']}", "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    kept = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "CKPT_DEBUG", "FORCE_COLOR")}
    return {**kept, **own}


def shows(printed: str, shown: str, *, loose: bool = False) -> bool:
    """Whether what was printed is what a page shows of it.

    A line of ``…`` stands for any lines, ``…`` in a line for anything. ``loose`` takes any number for any other.
    """
    lines = "\n".join(_pattern(line, loose) for line in shown.splitlines())
    lines = (
        lines.replace("\n<any>\n", "\n(?:.*\n)*?").replace("<any>\n", "(?:.*\n)*?").replace("\n<any>", "\n(?:.*\n?)*?")
    )
    text = "\n".join(_plain(line, loose) for line in printed.splitlines())
    return re.fullmatch(lines, text) is not None


def _pattern(line: str, loose: bool) -> str:
    if line == "…":
        return "<any>"
    return ".*".join(re.escape(_plain(part, loose)) for part in line.split("…"))


def _plain(line: str, loose: bool) -> str:
    """Return a line; without its numbers, and the blanks that go with their width, where these may differ."""
    return re.sub(r"\s+", " ", re.sub(r"\d+(?::\d+)?(?:\.\d+)?(?:e[+-]\d+)?(?: s\b)?", "#", line)) if loose else line
