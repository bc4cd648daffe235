"""Which modules an adapter of PEFT's is for, by name or by pattern.

As ``check_target_module_exists`` of peft/tuners/tuners_utils.py has it (peft 0.21).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ...errors import ConfigError
from ...util.text import brief_repr

__all__ = ["MODULE", "PatternTable", "Targets", "bounded", "targets_of"]

# PEFT's patterns: which modules an entry of ``rank_pattern`` or ``alpha_pattern`` is of.
#
# A pattern is a regular expression that a module's name ends with; the first one counts. Most are plain names, one for
# each module, which are looked up: so tables of 100,000 entries take no longer than they are long.

PATTERN, REPEATS, CHOICES, MODULE = 400, 4, 12, 400
"""Characters of a pattern, repetitions in it, characters of what it is held against: so each takes milliseconds."""

EXPRESSIONS, TRIES = 10_000, 10_000_000
"""Patterns of one table that are not plain names, and how often one is held against a module, which takes seconds."""

ENDS = r"(.*\.)?({})$"
"""How PEFT looks for a pattern at the end of a module's name (``get_pattern_key`` of peft/utils/other.py)."""

_SPECIAL = frozenset(r".^$*+?{}[]\|()")


class PatternTable:
    """The values of patterns, each compiled once. Raises ValueError for a pattern that could take too long."""

    def __init__(self, values: Mapping[Any, Any] | None = None) -> None:
        self._names: dict[str, tuple[int, Any]] = {}
        self._whole: dict[str, tuple[int, Any]] = {}
        self._others: list[tuple[int, re.Pattern[str], Any]] = []
        self._tries = 0
        self._spelled: list[str] = []
        self._used: set[int] = set()
        for number, (text, value) in enumerate((values or {}).items()):
            self._add(number, text, value)
            self._spelled.append(text)

    @property
    def unused(self) -> list[str]:
        """The patterns that decided for no module of those that were asked for."""
        return [text for number, text in enumerate(self._spelled) if number not in self._used]

    def _add(self, number: int, text: Any, value: Any) -> None:
        if not isinstance(text, str) or len(text) > PATTERN:
            raise ValueError(f"a pattern {brief_repr(text)}")
        name = _plain(text.removeprefix("^"))
        if name is not None:
            (self._whole if text.startswith("^") else self._names).setdefault(name, (number, value))
            return
        if len(self._others) == EXPRESSIONS:
            raise ConfigError(
                f"has over {EXPRESSIONS} patterns that are not plain names, more than are read.",
                hint="Write names as re.escape() does, with ^ in front.",
            )
        self._others.append((number, _compiled(text), value))

    def of(self, module: str, otherwise: Any) -> Any:
        """Return what the first pattern says that a module ends with."""
        tail = module[-MODULE:]
        found = [one[name] for one, name in self._asked(tail) if name in one]
        first, value = min(found, key=lambda one: one[0]) if found else (None, otherwise)
        if first is not None:
            self._used.add(first)
        for number, pattern, other in self._others:
            if first is not None and number > first:
                break
            self._tries += 1
            if self._tries > TRIES:
                raise ConfigError("has so many patterns, for so many modules, that comparing them would not end soon.")
            if pattern.match(tail):
                self._used.add(number)
                return other
        return value

    def _asked(self, tail: str) -> list[tuple[dict[str, tuple[int, Any]], str]]:
        """Return under which names a module may stand, and where: ``$`` is also in front of a last newline."""
        asked = []
        for name in {tail, tail.removesuffix("\n")}:
            asked += [(self._whole, name), (self._names, name)]
            dots = [at + 1 for at, letter in enumerate(name) if letter == "." and "\n" not in name[:at]]
            asked += [(self._names, name[at:]) for at in dots]
        return asked


def _plain(text: str) -> str | None:
    """Return the name that a pattern is, with everything special in it escaped; None for another expression."""
    name = re.sub(r"\\([^a-zA-Z0-9])", r"\1", text, flags=re.DOTALL)
    escaped = re.sub(r"\\([^a-zA-Z0-9])", "", text, flags=re.DOTALL)
    return None if _SPECIAL & set(escaped) else name


def bounded(text: str) -> re.Pattern[str] | None:
    """Return an expression that ends soon on any name of ``MODULE`` characters; None for any other, and for none."""
    try:
        return None if len(text) > PATTERN or _is_long(text) else re.compile(text)
    except (re.error, OverflowError, RecursionError):
        return None


def _is_long(text: str) -> bool:
    plain = re.sub(r"\\.", "", text)
    often = sum(map(plain.count, "*+{")) > REPEATS or sum(map(plain.count, "?|")) > CHOICES
    return often or re.search(r"\)[*+{?]", plain) is not None


def _compiled(text: str) -> re.Pattern[str]:
    if _is_long(text):
        raise ValueError(f"the pattern {brief_repr(text)} repeats too much")
    return re.compile(ENDS.format(text))  # as it is used: flags, and groups that are closed too early, are faults there


ALL = "all-linear"
"""What PEFT replaces by names when it makes an adapter."""

_TIED = frozenset(("lm_head", "embed_out", "embed_tokens", "embed_in", "wte", "word_embeddings", "shared"))
"""Modules that are one tensor in many models. With ``ensure_weight_tying`` PEFT adapts all of them or none."""

_LAYER = re.compile(r".*\.[^.]*\.(\d+)\.")


@dataclass(frozen=True)
class _Chosen:
    """Names that a module is called or ends with, or the expression that all of its name matches."""

    names: frozenset[str] = frozenset()
    expression: re.Pattern[str] | None = None

    def has(self, module: str) -> bool:
        if self.expression is not None:
            return self.expression.fullmatch(module) is not None
        return any(tail in self.names for tail in _tails(module))


@dataclass(frozen=True)
class Targets:
    """The modules that are meant: ``chosen`` but not ``excluded``, of these ``layers`` if there are any."""

    chosen: _Chosen
    excluded: _Chosen = _Chosen()
    layers: frozenset[int] = frozenset()
    lists: tuple[re.Pattern[str], ...] = (_LAYER,)
    tied: bool = False

    def has(self, module: str) -> bool:
        """Whether a module is meant."""
        return not self.against(module)

    def against(self, module: str) -> str:
        """Return the field by which a module is not meant, '' for one that is."""
        if len(module) > MODULE:  # longer than any expression is held against
            return ""
        if self.excluded.has(module):
            return "exclude_modules"
        if not self.chosen.has(module):
            return "" if self.tied and _last(module) in _TIED else "target_modules"
        if not self.layers or self.chosen.expression is not None or module in self.chosen.names:
            return ""
        found = next((one for one in (pattern.match(module) for pattern in self.lists) if one), None)
        return "" if found is not None and int(found[1]) in self.layers else "layers_to_transform"


def targets_of(data: Mapping[str, Any]) -> Targets | None:
    """Return the modules that a configuration means; None where it names none, or in a way that is not understood."""
    chosen, excluded = _chosen(data.get("target_modules")), _chosen(data.get("exclude_modules") or ())
    layers, lists = data.get("layers_to_transform"), data.get("layers_pattern") or ()
    numbers = [layers] if type(layers) is int else layers or []
    names = [lists] if isinstance(lists, str) else lists
    sound = isinstance(numbers, list) and all(type(one) is int for one in numbers)
    plain = isinstance(names, (list, tuple)) and all(isinstance(one, str) and one.isidentifier() for one in names)
    if chosen is None or excluded is None or not (chosen.names or chosen.expression) or not sound or not plain:
        return None
    patterns = tuple(re.compile(rf".*\.{name}\.(\d+)\.") for name in names)
    tied = data.get("ensure_weight_tying") is True and not _TIED.isdisjoint(map(_last, chosen.names))
    return Targets(chosen, excluded, frozenset(numbers), patterns or (_LAYER,), tied)


def _chosen(said: Any) -> _Chosen | None:
    if isinstance(said, str):
        expression = bounded(said) if said != ALL else None
        return _Chosen(expression=expression) if expression is not None else None
    if not isinstance(said, (list, tuple)) or not all(isinstance(one, str) for one in said):
        return None
    return _Chosen(frozenset(said))


def _last(module: str) -> str:
    return module.rpartition(".")[2]


def _tails(module: str) -> Iterator[str]:
    yield module
    for at, letter in enumerate(module):
        if letter == ".":
            yield module[at + 1 :]
