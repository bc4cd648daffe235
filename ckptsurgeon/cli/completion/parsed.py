"""What the words of a command line are: the verb, its options with their values, its arguments."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Parsed", "options_of", "parsed"]


@dataclass
class Parsed:
    """Words in front of the cursor. ``wants`` is the option whose value comes next, None where none is.

    ``command`` is the parser's own, of a verb or of a group of verbs; ``values`` are those of options by their names in
    the API, an empty list for a flag.
    """

    command: Any
    name: str = ""
    wants: Any = None
    values: dict[str, list[str]] = field(default_factory=dict)
    arguments: list[str] = field(default_factory=list)
    only_arguments: bool = False

    @property
    def is_verb(self) -> bool:
        """Whether it is a verb, and not what verbs belong to."""
        return not hasattr(self.command, "commands")


def options_of(command: Any) -> Iterator[tuple[str, Any]]:
    """Yield every spelling of every option of a command that its help shows."""
    for param in command.params:
        if param.param_type_name == "option" and not getattr(param, "hidden", False):
            for spelling in param.opts:
                yield spelling, param
    for spelling in ("-h", "--help"):
        yield spelling, None


def parsed(root: Any, words: Sequence[str]) -> Parsed | None:
    """Return what words say; None for a verb that there is not."""
    found = Parsed(root)
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


def _option(found: Parsed, word: str) -> None:
    spelling, equals, value = word.partition("=") if word.startswith("--") else (word, "", "")
    option = dict(options_of(found.command)).get(spelling)
    if option is None:
        return
    values = found.values.setdefault(option.name, [])
    if equals:
        values.append(value)
    elif not option.is_flag:
        found.wants = option
