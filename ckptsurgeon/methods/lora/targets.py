"""The modules that a PEFT adapter changes, by name or by pattern.

Follows ``check_target_module_exists`` of peft/tuners/tuners_utils.py (peft 0.21).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ...errors import ConfigError
from ...util.text import brief_repr

__all__ = ["ALL", "MODULE", "PatternTable", "Targets", "bounded", "linear_targets_of", "targets_of"]

# PEFT's patterns: the modules that an entry of ``rank_pattern`` or ``alpha_pattern`` matches.
#
# A pattern is a regular expression that matches the end of a module's name; the first match counts. Most are plain
# names, one for each module, which are looked up: so a table of 100,000 entries takes linear time.

PATTERN, REPEATS, CHOICES, MODULE = 400, 4, 12, 400
"""Limits that keep a match within milliseconds: a pattern's characters, repetitions, choices; a name's characters."""

EXPRESSIONS, TRIES = 10_000, 10_000_000
"""Limits of a table: the number of patterns that are not plain names, and of attempts to match them (some seconds)."""

ENDS = r"(.*\.)?({})$"
"""The regular expression around a pattern, so that it matches the end of a name (get_pattern_key, utils/other.py)."""

_SPECIAL = frozenset(r".^$*+?{}[]\|()")


class PatternTable:
    """A table {pattern of module names: value}, such as PEFT's ``rank_pattern``.

    Raises ValueError for a regular expression that could take very long to match, ConfigError for too many of them.
    """

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
        """The patterns that have matched none of the modules so far."""
        return [text for number, text in enumerate(self._spelled) if number not in self._used]

    def _add(self, number: int, text: Any, value: Any) -> None:
        if not isinstance(text, str) or len(text) > PATTERN:
            raise ValueError(
                f"{brief_repr(text)} is not a valid pattern: it must be a string of at most {PATTERN} characters"
            )
        name = _plain(text.removeprefix("^"))
        if name is not None:
            (self._whole if text.startswith("^") else self._names).setdefault(name, (number, value))
            return
        if len(self._others) == EXPRESSIONS:
            raise ConfigError(
                f"rank_pattern or alpha_pattern has more than {EXPRESSIONS} patterns that are not plain names.",
                hint="Write plain names as re.escape() escapes them, with ^ in front.",
            )
        self._others.append((number, _compiled(text), value))

    def of(self, module: str, default: Any) -> Any:
        """Return the value of the first pattern that matches the end of a module's name; ``default`` if none does.

        Raises ConfigError if too many patterns would have to be compared with the names.
        """
        tail = module[-MODULE:]
        found = [one[name] for one, name in self._asked(tail) if name in one]
        first, value = min(found, key=lambda one: one[0]) if found else (None, default)
        if first is not None:
            self._used.add(first)
        for number, pattern, other in self._others:
            if first is not None and number > first:
                break
            self._tries += 1
            if self._tries > TRIES:
                raise ConfigError(
                    "rank_pattern or alpha_pattern has too many patterns: comparing all modules would take too long.",
                    hint="Write the patterns as plain names, with ^ in front.",
                )
            if pattern.match(tail):
                self._used.add(number)
                return other
        return value

    def _asked(self, tail: str) -> list[tuple[dict[str, tuple[int, Any]], str]]:
        """Return pairs (table, name): a plain pattern matches a module's name if its table has the name.

        ``tail`` is the name of the module, or the end of a very long name. Patterns that are plain names are in two
        tables: one for patterns that must equal the whole name, one for patterns that must equal the end of a name. A
        name that ends with a newline is also looked up without it, because ``$`` matches before a newline at the end.
        """
        asked = []
        for name in {tail, tail.removesuffix("\n")}:
            asked += [(self._whole, name), (self._names, name)]
            dots = [at + 1 for at, letter in enumerate(name) if letter == "." and "\n" not in name[:at]]
            asked += [(self._names, name[at:]) for at in dots]
        return asked


def _plain(text: str) -> str | None:
    """Return the only name that a pattern matches, if all its special characters are escaped; else None."""
    name = re.sub(r"\\([^a-zA-Z0-9])", r"\1", text, flags=re.DOTALL)
    escaped = re.sub(r"\\([^a-zA-Z0-9])", "", text, flags=re.DOTALL)
    return None if _SPECIAL & set(escaped) else name


def bounded(text: str) -> re.Pattern[str] | None:
    """Return the compiled pattern; None if it is invalid or could be slow.

    It could be slow if matching a name of ``MODULE`` characters might take more than milliseconds.
    """
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
        raise ValueError(f"the pattern {brief_repr(text)} could take too long to match")
    return re.compile(ENDS.format(text))  # compiled in ENDS, where flags and unbalanced groups are errors


ALL = "all-linear"
"""A value of target_modules, which PEFT replaces by names when it makes an adapter."""

_TIED = frozenset(("lm_head", "embed_out", "embed_tokens", "embed_in", "wte", "word_embeddings", "shared"))
"""Modules that share one tensor in many models. With ``ensure_weight_tying`` PEFT adapts all of them or none."""

_LAYER = re.compile(r".*\.[^.]*\.(\d{1,9})\.")


@dataclass(frozen=True)
class _ModulePatterns:
    """Patterns for modules: ends of module names (``names``), or a regular expression for full names."""

    names: frozenset[str] = frozenset()
    expression: re.Pattern[str] | None = None

    def has(self, module: str) -> bool:
        if self.expression is not None:
            return self.expression.fullmatch(module) is not None
        return any(tail in self.names for tail in _tails(module))


@dataclass(frozen=True)
class Targets:
    """The modules that an adapter changes: modules that ``chosen`` matches and ``excluded`` does not.

    If ``layers`` is not empty, only modules in layers with these indices are changed, except if ``chosen`` is a regular
    expression or has the full name of the module. ``lists`` are patterns that find the index of a layer in a name.
    If ``tied`` is true, modules that may share a tensor with a chosen module (``_TIED``) are changed, too: so PEFT does
    with ``ensure_weight_tying``.
    """

    chosen: _ModulePatterns
    excluded: _ModulePatterns = _ModulePatterns()
    layers: frozenset[int] = frozenset()
    lists: tuple[re.Pattern[str], ...] = (_LAYER,)
    tied: bool = False

    def has(self, module: str) -> bool:
        """Return whether the adapter changes a module."""
        return not self.against(module)

    def against(self, module: str) -> str:
        """Return the field of the configuration that excludes a module, '' if none does."""
        if len(module) > MODULE:  # regular expressions are not tried on longer names
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
    """Return the modules that the data of an adapter_config.json selects.

    Returns None if the data selects no modules, or selects modules in a way that ckptsurgeon does not know.
    """
    chosen, excluded = _chosen(data.get("target_modules")), _chosen(data.get("exclude_modules") or ())
    layers, lists = data.get("layers_to_transform"), data.get("layers_pattern") or ()
    numbers = [layers] if type(layers) is int else layers or []
    names = [lists] if isinstance(lists, str) else lists
    sound = isinstance(numbers, list) and all(type(one) is int for one in numbers)
    plain = isinstance(names, (list, tuple)) and all(isinstance(one, str) and one.isidentifier() for one in names)
    if chosen is None or excluded is None or not (chosen.names or chosen.expression) or not sound or not plain:
        return None
    patterns = tuple(re.compile(rf".*\.{name}\.(\d{{1,9}})\.") for name in names)
    tied = data.get("ensure_weight_tying") is True and not _TIED.isdisjoint(map(_last, chosen.names))
    return Targets(chosen, excluded, frozenset(numbers), patterns or (_LAYER,), tied)


def linear_targets_of(data: Mapping[str, Any]) -> Targets | None:
    """Return the linear layers that an adapter_config.json selects with "all-linear": all except excluded layers.

    Returns None for other values of target_modules, and if only some layers are selected (layers_to_transform).
    """
    said = data.get("target_modules")
    is_all = isinstance(said, str) and said.lower() == ALL and data.get("layers_to_transform") in (None, [])
    return targets_of({**data, "target_modules": ".*"}) if is_all else None


def _chosen(value: Any) -> _ModulePatterns | None:
    if isinstance(value, str):
        expression = bounded(value) if value != ALL else None
        return _ModulePatterns(expression=expression) if expression is not None else None
    if not isinstance(value, (list, tuple)) or not all(isinstance(one, str) for one in value):
        return None
    return _ModulePatterns(frozenset(value))


def _last(module: str) -> str:
    return module.rpartition(".")[2]


def _tails(module: str) -> Iterator[str]:
    yield module
    for at, letter in enumerate(module):
        if letter == ".":
            yield module[at + 1 :]
