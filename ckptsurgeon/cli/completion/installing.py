"""Puts completion where a shell finds it when it starts."""

from __future__ import annotations

import os
import shlex

from ...errors import ConfigError
from ...util.text import escape
from ..stopping import unwinding
from .scripts import SHELLS, program, script

__all__ = ["install", "shell_in_use"]


def shell_in_use(named: str = "") -> str:
    """Return the shell that is named, else the one that runs this, else the user's own; raises ConfigError."""
    for shell in [named] if named else [_parent(), os.path.basename(os.environ.get("SHELL", ""))]:
        if shell in SHELLS:
            return shell
    raise ConfigError(
        f"there is no completion for {escape(named)}." if named else "it cannot be told which shell this is.",
        hint=f"Name one of {', '.join(SHELLS)}.",
    )


def _parent() -> str:
    """Return the name of the process that started this one, '' where the system does not say."""
    try:
        with open(f"/proc/{os.getppid()}/comm", encoding="utf-8", errors="replace") as file:
            return file.read().strip().lstrip("-")
    except OSError:
        return ""


def install(shell: str) -> tuple[str, str]:
    """Write the script of a shell, and have it read when the shell starts; return where it lies, and what reads it.

    fish finds it by itself. The start-up file of the others gets one line, once. Raises OutputError.
    """
    from ...storage.write.output_checks import output_error
    from ...storage.write.staging import staged_file

    path = os.path.realpath(_place(shell))
    start = {"bash": "~/.bashrc", "zsh": os.path.join(os.environ.get("ZDOTDIR") or "~", ".zshrc")}.get(shell, "")
    start = os.path.expanduser(start)
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
    except OSError as error:
        raise output_error(error.filename, error) from error
    data = os.fsencode(script(shell, program()))
    with unwinding(), staged_file(path, len(data), force=True) as staged:
        staged.write(0, data)
    if start:
        _add_line(start, os.fsencode(f"source {shlex.quote(path)}"))
    return path, start


def _place(shell: str) -> str:
    if shell == "fish":
        base = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
        return os.path.join(base, "fish", "completions", "ckpt.fish")
    base = os.environ.get("XDG_DATA_HOME") or os.path.expanduser("~/.local/share")
    return os.path.join(base, "ckptsurgeon", f"completion.{shell}")


def _add_line(path: str, line: bytes) -> None:
    """Add a line to a file that has it not yet, and change nothing else of it: not what it links to, nor its rights."""
    from ...storage.write.output_checks import output_error

    try:
        with open(path, "a+b") as file:
            file.seek(0)
            there = file.read()
            if b"\n%b\n" % line not in b"\n%b\n" % there:
                file.write((b"" if not there or there.endswith(b"\n") else b"\n") + line + b"\n")
    except OSError as error:
        raise output_error(path, error) from error
