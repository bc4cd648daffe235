"""Computes the completions of a command line that a shell requests, and writes them to stdout."""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any

from .parsed import ParsedLine, options_of, parsed, typed_in
from .values import destination_keys, roots, segments, shorten_to_beginnings, source_keys, values_of

__all__ = ["VARIABLE", "answer", "candidates", "run"]

# Completions of the word at the cursor (candidates).

Candidates = tuple[str, list[str]]
"""(Kind, candidates).

The kind is ``words``; ``partial`` for words after which no blank is added; or ``files``, which the shell completes.
"""

NOTHING: Candidates = ("words", [])
FILES: Candidates = ("files", [])
_OF_FILES = re.compile(r"FILE|DIR|CKPT|SRC|DST|PLAN|MODEL=LIST|NAME=PATH|OUT")
_OF_KEYS = re.compile(r"GLOB|PATTERN|FROM=TO|KEY")
_OF_THE_DESTINATION = ("reinit", "require", "on_mismatch", "vocab_keys", "explain")


def candidates(command: Any, words: Sequence[str], current: str) -> Candidates:
    """Return the candidates for completing ``current``, the word at the cursor, after the complete words ``words``.

    ``command`` is the click command that has all verbs.
    """
    found = parsed(command, words)
    if found is None:
        return NOTHING
    if found.wants is not None:
        return _values(found, found.wants, current)
    spelling, equals, text = current.partition("=")
    if spelling.startswith("--") and equals and not found.only_arguments:
        option = dict(options_of(found.command)).get(spelling)
        kind, values = _values(found, option, text) if option is not None and not option.is_flag else NOTHING
        return kind, [f"{spelling}={value}" for value in values]
    if current.startswith("-") and not found.only_arguments:
        return "words", [name for name, _ in options_of(found.command) if name.startswith(current)]
    if not found.is_verb:
        return "words", [name for name in found.command.commands if name.startswith(current)]
    return FILES


def _values(found: ParsedLine, option: Any, text: str) -> Candidates:
    """Return the candidates for the value of an option; ``text`` is the part of the value that is already typed.

    The option's metavar in the help, such as FILE or GLOB, shows which kind of value the option has.
    """
    metavar = option.metavar or ""
    if option.name == "root":
        return "words", _beginning(roots(found), text)
    if metavar == "KEY=VALUE":
        return _settings(text) if "--set" in option.opts else NOTHING
    known = values_of(option.name, metavar)
    if not _OF_KEYS.match(metavar.lstrip("[")):
        return ("words", _beginning(known, text)) if known else FILES if _OF_FILES.search(metavar) else NOTHING
    before, equals, last = text.rpartition("=")
    if equals:
        return "words", [f"{before}={value}" for value in _beginning(known, last)]
    of_destination = found.name == "transplant" and option.name in _OF_THE_DESTINATION
    keys = destination_keys(found) if of_destination else source_keys(found)
    return _keys(segments(keys, text), _beginning(known, text), more=metavar == "FROM=TO")


def _keys(found: dict[str, bool], others: Sequence[str], *, more: bool) -> Candidates:
    """Return the kind of the candidates, and the candidates: the names in ``found`` and the words ``others``.

    ``found`` maps names to true for a module, after which more segments follow, and to false for a key. If the
    only candidate is a module, the kind is "partial": the shell then adds no blank. With ``more``, ``=`` is appended if
    the only candidate is a complete key.
    """
    words = shorten_to_beginnings([*found, *others])
    if len(words) > 1 or not words:
        return "words", words
    (word,) = words
    if more and found.get(word) is False:
        return "partial", [f"{word}="]
    return ("partial" if found.get(word, word not in others) else "words"), words


def _settings(text: str) -> Candidates:
    name, equals, last = text.partition("=")
    if equals:
        return "words", [f"{name}={value}" for value in _beginning(values_of(f"set {name}", ""), last)]
    names = [f"{value}=" for value in _beginning(values_of("set", ""), text)]
    return ("partial", names) if names else NOTHING


def _beginning(values: Iterable[str], text: str) -> list[str]:
    return [value for value in values if value.startswith(text)]


# Answers the shell within a time limit; if it is exceeded, no candidates are offered.

VARIABLE = "_CKPT_COMPLETE"
PATIENCE_S = 4.0
"""After this many seconds, no candidates are offered, so that a user who presses Tab never waits longer."""


def run(command: Callable[[], Any]) -> int:
    """Read the typed words from stdin, write the candidates to stdout, and return the exit code 0.

    Errors are never shown, because they would appear in the line that is being typed.
    """
    signal.signal(signal.SIGALRM, lambda *_: os._exit(0))
    signal.setitimer(signal.ITIMER_REAL, PATIENCE_S)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    reply = ""
    with suppress(Exception):
        reply = answer(command, os.environ[VARIABLE], sys.stdin.buffer.read())
    with suppress(OSError):
        sys.stdout.buffer.write(reply.encode("utf-8", "surrogateescape"))
        sys.stdout.flush()
    return 0


def answer(command: Callable[[], Any], shell: str, given: bytes) -> str:
    """Return the answer to a shell that sent ``given``, the typed words: a line with the kind, then the candidates."""
    typed = typed_in(shell, os.fsdecode(given))
    if typed is None:
        return ""
    kind, values = candidates(command(), typed.words, typed.current)
    if kind == "files":
        return "files\n"
    if not typed.plain:  # quotes inside the word: it is not known which part the shell would replace
        return ""
    if shell == "fish" and kind == "partial" and not values[0].endswith("="):
        values = [*values, f"{values[0]}."]  # the shell would add a space after a single candidate
    kept = len(typed.kept)
    return "\n".join([kind, *(value[kept:] for value in values if value and value.startswith(typed.current)), ""])
