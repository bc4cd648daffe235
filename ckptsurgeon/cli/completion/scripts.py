"""What the shells run. Each gives the words on stdin, and the answer's lines are taken as they are, never evaluated.

A shell calls the function for every word whose last part is ``ckpt``, as in ``evil/ckpt``, before anyone has pressed
Enter: what is run is the program that made the script, by its absolute path, and never the word that was typed.
"""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Sequence

__all__ = ["SHELLS", "program", "script"]

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
    """Return what a shell has to run once so that it completes ``ckpt`` by what the program ``words`` answers."""
    quoted = _quoted_in_fish if shell == "fish" else _quoted
    return _SCRIPTS[shell].lstrip("\n").replace("PROGRAM", " ".join(map(quoted, words)))


def program() -> tuple[str, ...]:
    """Return the words that run this program from anywhere: its file, or where there is none, Python and the module."""
    found = shutil.which(sys.argv[0])
    if found is not None and os.path.basename(found) == "ckpt":
        return (os.path.abspath(found),)
    return (sys.executable, "-P", "-m", "ckptsurgeon")  # -P: not what lies in the folder where Tab is pressed


def _quoted(word: str) -> str:
    return f"'{word}'" if shlex.quote(word) == word else shlex.quote(word)  # in quotes it is no alias


def _quoted_in_fish(word: str) -> str:
    escaped = word.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"
