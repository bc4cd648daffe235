"""What the shells run. Each gives the words on stdin, and the answer's lines are taken as they are, never evaluated."""

from __future__ import annotations

__all__ = ["SHELLS", "script"]

_BASH = r"""
_ckpt_completion() {
    local kind="" line program="${1/#\~/$HOME}"
    COMPREPLY=()
    {
        IFS= read -r kind
        while IFS= read -r line; do
            COMPREPLY+=("$line")
        done
    } < <(printf '%s\0' "${COMP_LINE:0:COMP_POINT}" "$COMP_WORDBREAKS" | _CKPT_COMPLETE=bash "$program" 2>/dev/null)
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
    local program="${${(Q)words[1]}/#\~/$HOME}" kind
    local -a found
    found=("${(@f)$(printf '%s\0' "${(@Q)words[1,CURRENT-1]}" "$PREFIX" | _CKPT_COMPLETE=zsh "$program" 2>/dev/null)}")
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
    set -l program (string replace -r '^~/' "$HOME/" -- $words[1])
    set -l found (printf '%s\0' $words "$current" | env _CKPT_COMPLETE=fish $program 2>/dev/null)
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


def script(shell: str) -> str:
    """Return what a shell has to run once so that it completes ``ckpt``."""
    return _SCRIPTS[shell].lstrip("\n")
