"""Options that are used without a verb: the version, and completion."""

from __future__ import annotations

import json
import sys
from typing import Any

import typer

from ..util.text import escape
from ..util.version import __version__

__all__ = ["COMPLETION", "install_option", "show_option", "version_option"]

COMPLETION = ("--install-completion", "--show-completion")
SHELLS = "[bash|zsh|fish]"


def version_option(*, as_json: bool) -> Any:
    """Return the option ``--version``, which prints the version, as JSON with ``as_json``."""

    def show(wanted: bool) -> None:
        if wanted:
            data = {"kind": "ckpt.version", "version": 1, "ckptsurgeon": __version__}
            _answer(data if as_json else f"ckpt {__version__}\n")

    return typer.Option(False, "--version", callback=show, is_eager=True, help="Print the version.")


def install_option(*, as_json: bool) -> Any:
    """Return the option ``--install-completion``; its value '' means the shell that runs ckpt."""

    def install(shell: str | None) -> None:
        if shell is None:
            return
        from .completion.installing import install, shell_in_use

        shell = shell_in_use(shell)
        path, start = install(shell)
        read = f", which {start} reads" if start else ""
        text = f"wrote {escape(path)}{escape(read)}; it works in every {shell} that is started from now on\n"
        _answer(_completion(shell, path=path, start=start) if as_json else text)

    return typer.Option(
        None, COMPLETION[0], metavar=SHELLS, callback=install, is_eager=True,
        help="Install Tab completion of verbs, options, files and keys for the given shell. [default: this shell]",
    )  # fmt: skip


def show_option(*, as_json: bool) -> Any:
    """Return the option ``--show-completion``; its value '' means the shell that runs ckpt."""

    def show(shell: str | None) -> None:
        if shell is None:
            return
        from .completion.installing import program, script, shell_in_use

        shell = shell_in_use(shell)
        _answer(_completion(shell) if as_json else script(shell, program()))

    return typer.Option(
        None, COMPLETION[1], metavar=SHELLS, callback=show, is_eager=True,
        help="Print the script that --install-completion would write.",
    )  # fmt: skip


def _completion(shell: str, *, path: str = "", start: str = "") -> dict[str, Any]:
    """Return the completion script of a shell as plain data, and the files that were written.

    ``path`` is the file of the script, ``start`` the shell's start-up file; '' if the file was not written.
    """
    from .completion.installing import program
    from .completion.installing import script as script_completion

    script = script_completion(shell, program())
    return {
        "kind": "ckpt.completion", "version": 1, "shell": shell, "script": script,
        "path": path or None, "read_by": start or None,
    }  # fmt: skip


def _answer(answer: dict[str, Any] | str) -> None:
    """Print a text, or plain data as JSON, and exit. Paths are printed byte for byte, even if they are not UTF-8."""
    stream: Any = sys.stdout
    if hasattr(stream, "reconfigure"):
        stream.reconfigure(encoding=sys.getfilesystemencoding(), errors=sys.getfilesystemencodeerrors())
    stream.write(answer if isinstance(answer, str) else f"{json.dumps(answer)}\n")
    raise typer.Exit
