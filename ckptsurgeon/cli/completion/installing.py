"""Contains the completion scripts for the shells, and installs them."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Sequence

from ...errors import ConfigError
from ...util.text import escape
from ..stopping import unwinding

__all__ = ["SHELLS", "install", "program", "script", "shell_in_use"]

# The scripts of the shells. Each passes the words on stdin, and never evaluates the lines of the answer.
#
# A shell calls the function for every command whose last part is ``ckpt``, as in ``evil/ckpt``, before the user has
# pressed Enter. So the script runs the program that wrote the script, by its absolute path, and never the typed word.

_BASH = r"""
_ckpt_completion() {
    local kind="" line
    COMPREPLY=()
    {
        IFS= read -r kind
        while IFS= read -r line; do
            COMPREPLY+=("$line")
        done
    } < <(printf '%s\0' "${COMP_LINE:0:COMP_POINT}" "$COMP_WORDBREAKS" | _CKPT_COMPLETE=bash PROGRAM 2>/dev/null)
    case "$kind" in
        files) compopt -o default 2>/dev/null ;;
        partial) compopt -o nospace 2>/dev/null ;;
    esac
    return 0
}

complete -F _ckpt_completion ckpt
"""

_ZSH = r"""
#compdef ckpt
_ckpt_completion() {
    local kind
    local -a found
    found=("${(@f)$(printf '%s\0' "${(@Q)words[1,CURRENT-1]}" "$PREFIX" | _CKPT_COMPLETE=zsh PROGRAM 2>/dev/null)}")
    kind="$found[1]"
    shift found
    case "$kind" in
        files) _files ;;
        partial) compadd -S '' -- "${found[@]}" ;;
        words) compadd -- "${found[@]}" ;;
    esac
}

(( $+functions[compdef] )) || { autoload -Uz compinit && compinit }
compdef _ckpt_completion ckpt
"""

_FISH = r"""
function __ckpt_completion
    set -l words (commandline -opc)
    set -l current (commandline -ct)
    set -lx _CKPT_COMPLETE fish
    set -l found (printf '%s\0' $words "$current" | PROGRAM 2>/dev/null)
    if test "$found[1]" = files
        __fish_complete_path "$current"
    else if set -q found[2]
        printf '%s\n' $found[2..-1]
    end
end

complete -c ckpt -f -a '(__ckpt_completion)'
"""

_SCRIPTS = {"bash": _BASH, "zsh": _ZSH, "fish": _FISH}
SHELLS = tuple(_SCRIPTS)


def script(shell: str, words: Sequence[str]) -> str:
    """Return the script that makes a shell complete ``ckpt``; ``words`` is the command that the script runs."""
    quoted = _quoted_in_fish if shell == "fish" else _quoted
    return _SCRIPTS[shell].lstrip("\n").replace("PROGRAM", " ".join(map(quoted, words)))


def program() -> tuple[str, ...]:
    """Return the words of the command that runs this program from any folder.

    They are the path of ``ckpt`` if the program was started as ``ckpt``, else ``PYTHON -P -m ckptsurgeon``, with the
    path of the interpreter that runs now.
    """
    found = shutil.which(sys.argv[0])
    if found is not None and os.path.basename(found) == "ckpt":
        return (os.path.abspath(found),)
    return (sys.executable, "-P", "-m", "ckptsurgeon")  # -P: never import from the folder where Tab is pressed


def _quoted(word: str) -> str:
    return f"'{word}'" if shlex.quote(word) == word else shlex.quote(word)  # quotes prevent the expansion of aliases


def _quoted_in_fish(word: str) -> str:
    escaped = word.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def shell_in_use(named: str = "") -> str:
    """Return ``named``, a shell; if it is '', the shell that started this process, or else the user's login shell.

    Raises ConfigError if completion supports none of these shells.
    """
    for shell in [named] if named else [_parent(), os.path.basename(os.environ.get("SHELL", ""))]:
        if shell in SHELLS:
            return shell
    raise ConfigError(
        f"there is no completion for the shell {escape(named)}."
        if named
        else "ckpt cannot tell which shell this is, or has no completion for it.",
        hint=f"Add the name of the shell: {', '.join(SHELLS)}.",
    )


def _parent() -> str:
    """Return the name of the parent process, '' if it cannot be read from /proc."""
    try:
        with open(f"/proc/{os.getppid()}/comm", encoding="utf-8", errors="replace") as file:
            return file.read().strip().lstrip("-")
    except OSError:
        return ""


def install(shell: str) -> tuple[str, str]:
    """Write the completion script of a shell, and make the shell load it when it starts.

    Returns the path of the script, and the path of the shell's start-up file ('' for fish, which loads the script by
    itself). For other shells, a line that loads the script is added to the start-up file, if it is not there. Raises
    OutputError if a file cannot be written.
    """
    from ...storage.write.output_paths import output_error
    from ...storage.write.staged_file import staged_file

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
    """Append a line to a file, unless the file has the line already; keeps symlinks and permissions."""
    from ...storage.write.output_paths import output_error

    try:
        with open(path, "a+b") as file:
            file.seek(0)
            there = file.read()
            if b"\n%b\n" % line not in b"\n%b\n" % there:
                file.write((b"" if not there or there.endswith(b"\n") else b"\n") + line + b"\n")
    except OSError as error:
        raise output_error(path, error) from error
