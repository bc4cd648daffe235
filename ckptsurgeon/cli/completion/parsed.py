"""Parses an incomplete command line into its words, verb and options."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

__all__ = ["ParsedLine", "TypedLine", "options_of", "parsed", "typed_in"]

# The words before the cursor, and the word that is being typed.

_ASSIGNMENT = re.compile(r"[A-Za-z_]\w*=")
_ESCAPED_IN_QUOTES = '$`"\\\n'


@dataclass(frozen=True)
class TypedLine:
    """A command line that is being typed: the complete words, without the program's name, and the current word.

    ``current`` has its quotes removed. bash splits words at some characters, such as ``=``; a completion replaces only
    the text after the last of them. ``kept`` is ``current`` up to that character, or '' without one. ``plain`` is true
    if nothing in ``current`` is quoted or escaped; a quotation mark at its beginning is allowed.
    """

    words: tuple[str, ...]
    current: str
    kept: str = ""
    plain: bool = True


def typed_in(shell: str, given: str) -> TypedLine | None:
    """Parse ``given``, the text that a shell sends when the user presses Tab; return None if it is malformed.

    bash sends the line and the characters at which it splits words; other shells send the complete words and the
    current word.
    """
    fields = given.split("\0")[:-1]
    if shell == "bash" and len(fields) == 2:
        return _line(fields[0], fields[1])
    if shell in ("zsh", "fish") and len(fields) >= 2:
        *words, current = fields
        bare = current[1:] if current[:1] in ("'", '"') else current
        return TypedLine(tuple(words[1:]), bare, plain=not set(bare) & set("'\"\\"))
    return None


def _line(line: str, breaks: str) -> TypedLine | None:
    words = _lexed(line)
    while len(words) > 1 and _ASSIGNMENT.match(words[0].text):
        words = words[1:]
    if len(words) < 2:
        return None
    last = words[-1]
    kept = max((last.text.rfind(mark) + 1 for mark in breaks), default=0) if last.bare else 0
    return TypedLine(tuple(one.text for one in words[1:-1]), last.text, last.text[:kept], last.bare or last.opened)


@dataclass
class _Word:
    """A word of the command line, as the shell splits it, and whether quotes are around it.

    ``bare`` is true if the word has no quotes; ``opened`` is true if a quote at its beginning is not closed.
    """

    text: str = ""
    bare: bool = True
    opened: bool = False


def _lexed(line: str) -> list[_Word]:
    """Split a line into words by the shell's rules for quotes; the last word is the one being typed."""
    words, begun, quote, i = [_Word()], False, "", 0
    while i < len(line):
        char, word = line[i], words[-1]
        i += 1
        if char == "\\" and quote != "'" and i < len(line):
            escaped = line[i] if not quote or line[i] in _ESCAPED_IN_QUOTES else f"\\{line[i]}"
            word.text, word.bare, word.opened, begun = word.text + escaped, False, False, True
            i += 1
        elif quote and char == quote:
            quote, word.opened = "", False
        elif quote:
            word.text += char
        elif char in "'\"":
            quote, word.opened, word.bare, begun = char, not begun, False, True
        elif not char.isspace():
            word.text, begun = word.text + char, True
        elif begun:
            words.append(_Word())
            begun = False
    return words


@dataclass
class ParsedLine:
    """The parsed words before the cursor. ``wants`` is the option whose value is typed next, or None.

    ``command`` is the click command of a verb or of a group of verbs, ``name`` the words that name it. ``values`` maps
    each given option, by the name of its parameter in the Python API, to the list of its values; the list of a flag is
    empty.
    """

    command: Any
    name: str = ""
    wants: Any = None
    values: dict[str, list[str]] = field(default_factory=dict)
    arguments: list[str] = field(default_factory=list)
    only_arguments: bool = False

    @property
    def is_verb(self) -> bool:
        """True if the command is a verb, not a group of verbs."""
        return not hasattr(self.command, "commands")


def options_of(command: Any) -> Iterator[tuple[str, Any]]:
    """Yield (name, option) for each name, such as -o and --output, of each option in a command's help.

    The option is None for --help.
    """
    for param in command.params:
        if param.param_type_name == "option" and not getattr(param, "hidden", False):
            for spelling in param.opts:
                yield spelling, param
    for spelling in ("-h", "--help"):
        yield spelling, None


def parsed(root: Any, words: Sequence[str]) -> ParsedLine | None:
    """Parse the complete words of a command line; returns None for an unknown verb.

    ``root`` is the click command that has all verbs.
    """
    found = ParsedLine(root)
    for word in words:
        if found.wants is not None:
            found.values[found.wants.name].append(word)
            found.wants = None
        elif word == "--" and not found.only_arguments:
            found.only_arguments = True
        elif word.startswith("-") and len(word) > 1 and not found.only_arguments:
            _option(found, word)
        elif found.is_verb:
            found.arguments.append(word)
        elif word in found.command.commands:
            found.command, found.name = found.command.commands[word], f"{found.name} {word}".strip()
        else:
            return None
    return found


def _option(found: ParsedLine, word: str) -> None:
    spelling, equals, value = word.partition("=") if word.startswith("--") else (word, "", "")
    option = dict(options_of(found.command)).get(spelling)
    if option is None:
        return
    values = found.values.setdefault(option.name, [])
    if equals:
        values.append(value)
    elif not option.is_flag:
        found.wants = option
