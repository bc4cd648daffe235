"""What a shell's script asks, and what it is told."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ckptsurgeon.cli import command
from ckptsurgeon.cli.completion.answers import answer

Run = Callable[..., Any]
ROOT = Path(__file__).parents[3]
BREAKS = " \t\n\"'><=;|&(:"
"""bash's own COMP_WORDBREAKS."""


def given(shell: str, line: str) -> bytes:
    """What a shell's script writes for a line whose cursor is at its end."""
    if shell == "bash":
        return f"{line}\0{BREAKS}\0".encode()
    return "".join(f"{word}\0" for word in line.split(" ")).encode()


def told(line: str, shell: str = "zsh") -> tuple[str, list[str]]:
    """The kind of the answer to ``ckpt`` and a line behind it, and its candidates."""
    kind, *values = answer(command, shell, given(shell, f"ckpt {line}")).splitlines()
    return kind, values
