"""Reads the settings of quantisation for single modules, which may differ from the general settings.

A module may have different bits, for example, or may not be quantised at all.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from itertools import islice
from typing import Any, NamedTuple

from ._settings import Settings, modelopt_of

__all__ = [
    "BEFORE_NUMBER", "GENERAL", "SKIPPED", "Expression", "Modules", "expression_of", "module_of", "parts_of",
    "renamed_modules",
]  # fmt: skip

GENERAL = -1
"""The index of the general settings, which apply to modules without their own section."""
SKIPPED = ("modules_to_not_convert", "llm_int8_skip_modules", "ignored_layers")
"""Fields of transformers that list names of modules that are not quantised.

A name in them stands for the module, for its submodules, and for all modules whose names end with it. If there is a
dot at its end, it stands for the module and its submodules.
"""
_IGNORED, _DYNAMIC, _EXTRA, _GROUPS = "ignore", "dynamic", "extra_config", "config_groups"
"""Fields of compressed-tensors (the first and the last), of GPTQModel (``dynamic``) and of AutoRound."""
_EXCLUDED = "exclude_modules"
"""The field of hf_quant_config.json (ModelOpt) with the modules that are not quantised; ``ignore`` in config.json."""
_BLOCKS = "modules_in_block_to_quantize"
"""The field of GPTQ that lists the modules in a layer that are quantised, as a list of lists."""
BEFORE_NUMBER = re.compile(r"^.*?\.(?=\d+(?:\.|$))")
"""Matches everything before the first number of a name."""
_IN_LAYER = re.compile(r"\.\d+\.")
_OF_MLX = ("bits", "group_size", "mode")
_PLAIN = re.compile(
    r"(?:\(\?i\))?\^?(?:[\w\-/]|\\b|(?:\\[.d\-_]|\.|\[\^?[\w\-.]+\])(?:[*+]|\{\d(?:,\d)?\})?\??"
    r"|\((?:\?[:=!])?(?:[\w|.\\\-]|\[[\w\-]+\])+\)\??)*\$?"
)
"""Matches those regular expressions in settings that are safe to evaluate, since they repeat no group."""
_COSTLY = re.compile(r"[^\x00-\x7f]|\\[xuUN0-9]|\[\[|--|&&|~~|\|\|")
"""Matches texts that are not compiled as expressions: they may have long ranges of characters, or Python may warn."""
_REPEATED, _GROUPED, _LONGEST, _MOST = 3, 2, 200, 200
"""Limits: unlimited repetitions and groups in an expression, characters of an expression or name, entries of a list."""
_STEPS = 1_000_000_000
"""How many steps all expressions in settings may take in the worst case: this many take seconds."""


class Expression(NamedTuple):
    """An expression in the settings that excludes modules.

    It matches the beginning of a module's name; with ``whole``, it matches the name of the module or of one around it.
    """

    pattern: re.Pattern[str]
    whole: bool


class Modules:
    """The parts of quantisation settings that apply to some modules only, and the modules that are left unquantised.

    Each such part is called a section; ``place`` is its index. A regular expression that could take very long to match
    is not evaluated, and its section is treated as if it applied to all modules. ``unread`` are the entries with such
    an expression in the fields that leave modules out: they may leave out any module. ``is_exact`` is false if a target
    of a config group has such an expression. ``is_spent`` becomes true when ``_STEPS`` comparisons with expressions are
    used up: from then on, no expression matches.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings, self._sections = settings, list[Settings]()
        self._names: dict[str, int] = {}
        self._patterns: list[tuple[re.Pattern[str], int, str]] = []
        self._general, self._steps, self.is_exact = settings, 0, True
        self.is_spent, self.unread = False, frozenset[str]()
        if not isinstance(settings.get("quant_method"), str):
            self._add_named(settings, settings)
        if isinstance(extra := settings.get(_EXTRA), dict):
            self._add_named(extra, {name: value for name, value in settings.items() if name != _EXTRA})
        self._add_dynamic()
        self._is_compressed = settings.get("quant_method") == "compressed-tensors"
        if self._is_compressed:
            self._add_groups()
        self._skipped = {entry: name for name in SKIPPED for entry in _texts(settings.get(name))}
        ignored = _texts(settings.get(_IGNORED)) if self._is_compressed else []
        self._ignored = frozenset(ignored)
        self._only = _within_blocks(settings)
        self._ignoring = _expressions([one for one in ignored if one[:3] == "re:"], start=3)
        self._excluded = _ExcludedModules(modelopt_of(settings))
        wild = [one for one in self._skipped if not re.fullmatch(r"[\w.\-]*", one)]
        self._skipping = _expressions(wild)
        given = dict.fromkeys([*wild, *(one for one in ignored if one[:3] == "re:")])
        left = [one for one in given if one not in self._skipping and one not in self._ignoring]
        valid = {one for one in islice(left, _MOST) if _is_valid(one.removeprefix("re:"))}
        self.unread |= valid | set(left[_MOST:]) | self._excluded.unread

    def place(self, module: str) -> int:
        """Return the index of the section for a module; ``GENERAL`` if there is no such section."""
        if (found := self._names.get(module)) is not None:
            return found
        return next(
            (place for one, place, _ in self._patterns if self.meets(one, module) and place != GENERAL), GENERAL
        )

    @property
    def has_sections(self) -> bool:
        """Whether there is a section for any module."""
        return bool(self._sections)

    @property
    def leave_out_any(self) -> bool:
        """Whether an entry of the settings could leave a module unquantised; if not, ``left_out`` always returns ""."""
        named = (self._skipped, self._ignored, self._ignoring, self._only, self._patterns, self._excluded)
        return any(named) or any(value is False for value in self._settings.values())

    @property
    def names(self) -> list[str]:
        """The names of excluded modules in those settings that are compared with whole names: MLX's and ModelOpt's."""
        is_of_mlx = not isinstance(self._settings.get("quant_method"), str)
        own = [name for name, value in self._settings.items() if value is False] if is_of_mlx else []
        return [*own, *self._excluded.names]

    @property
    def expressions(self) -> list[Expression]:
        """The expressions that exclude modules from quantisation."""
        started = [*self._ignoring.values(), *(one for one, _, entry in self._patterns if entry[:2] == "-:")]
        whole = [*self._skipping.values(), *self._excluded.patterns]
        return [*(Expression(one, whole=False) for one in started), *(Expression(one, whole=True) for one in whole)]

    def settings(self, place: int) -> Settings:
        """Return the settings for the modules of a section, in the form of a ``quantization_config``."""
        return self._general if place == GENERAL else self._sections[place]

    def left_out(self, module: str) -> str:
        """Return the setting that leaves a module unquantised, such as ``ignore (lm_head)``; "" if there is none."""
        if self._settings.get(module) is False:
            return module
        if self._skipped:
            words = module.split(".")
            around = [".".join(words[:end]) for end in range(len(words), 0, -1)]
            ends = [".".join(words[start:]) for start in range(1, len(words))]
            around = [one for name in around for one in (name, f"{name}.")]
            for name in (*around, *ends):
                if name in self._skipped:
                    return f"{self._skipped[name]} ({name})"
            for entry, found in self._skipping.items():
                if any(self.meets(found, name, whole=True) for name in around):
                    return f"{self._skipped[entry]} ({entry})"
        if module in self._ignored:
            return f"{_IGNORED} ({module})"
        for entry, found in self._ignoring.items():
            if self.meets(found, module):
                return f"{_IGNORED} ({entry})"
        if self._excluded and (by := self._excluded.by(module)):
            return by
        if self._only and _IN_LAYER.search(module) and not any(one in module for one in self._only):
            return _BLOCKS
        first = next((entry for one, _, entry in self._patterns if self.meets(one, module)), "")
        return f"{_DYNAMIC} ({first})" if first[:2] == "-:" and module not in self._names else ""

    def meets(self, pattern: re.Pattern[str], module: str, *, whole: bool = False) -> bool:
        """Return whether an expression matches the beginning of a module's name, or the whole name if ``whole``.

        Returns False for long names, and as soon as all comparisons together could take too many steps. A name without
        all words of the expression needs no comparison.
        """
        for word in _words(pattern.pattern):
            if word not in module:
                return False
        self._steps += len(module) ** _repeated(pattern.pattern)
        if len(module) > _LONGEST or self._steps > _STEPS:
            self.is_spent = True
            return False
        return bool(pattern.fullmatch(module) if whole else pattern.match(module))

    def _add_named(self, sections: Mapping[str, Any], general: Settings) -> None:
        """Add the sections in ``sections`` whose keys are names of modules, as in MLX and AutoRound.

        In MLX, the mode of such a section is "affine" by default, even if the general mode is a different one.
        """
        own = {name: one for name, one in sections.items() if _is_section(one)}
        self._general = rest = {name: one for name, one in general.items() if name not in own}
        for name, one in own.items():
            self._names[name] = len(self._sections)
            self._sections.append({**rest, **({"mode": "affine"} if "mode" in rest else {}), **one})

    def _add_dynamic(self) -> None:
        """Add a section for each expression in GPTQModel's ``dynamic``.

        The first expression that matches the beginning of a module's name applies to the module.
        """
        given = self._settings.get(_DYNAMIC)
        if not isinstance(given, dict):
            return
        found = {entry: expression_of(re.sub(r"^[+-]:", "", entry)) for entry in given} if len(given) <= _MOST else {}
        rest = {name: one for name, one in self._settings.items() if name != _DYNAMIC}
        if not found or not all(found.values()):
            self.unread = frozenset(given)
            return
        self._general = rest
        for entry, one in given.items():
            if (pattern := found[entry]) is not None:
                self._patterns.append((pattern, len(self._sections), entry))
                self._sections.append({**rest, **(one if isinstance(one, dict) and entry[:2] != "-:" else {})})

    def _add_groups(self) -> None:
        """Add a section for each config group of compressed-tensors.

        A target that is the name of a module takes precedence over a regular expression, which takes precedence over
        the name of a class.
        """
        given = self._settings.get(_GROUPS)
        groups = {name: one for name, one in given.items() if isinstance(one, dict)} if isinstance(given, dict) else {}
        if len(groups) < 2:
            groups = {}
        for name, group in groups.items():
            only = {**self._settings, _GROUPS: {name: group}}
            for target in _texts(group.get("targets")):
                if target[:3] == "re:":
                    if (found := expression_of(target[3:])) and len(self._patterns) < _MOST:
                        self._patterns.append((found, len(self._sections), ""))
                    else:
                        self.is_exact = False
                elif target == "Linear":
                    self._general = only
                else:
                    self._names.setdefault(target, len(self._sections))
            self._sections.append(only)


class _ExcludedModules:
    """The entries of ModelOpt's settings that exclude modules: names, some with wildcards.

    An entry also excludes all submodules. ``unread`` are entries with wildcards that are not compared with names: they
    are too long, or too many.
    """

    def __init__(self, settings: Settings) -> None:
        self._fields = {entry: name for name in (_EXCLUDED, _IGNORED) for entry in _texts(settings.get(name))}
        wild = [entry for entry in self._fields if "*" in entry or "?" in entry]
        usable = [one for one in wild if len(one) <= _LONGEST and one.count("*") <= _REPEATED][:_MOST]
        self.unread = frozenset(wild) - frozenset(usable)
        self._patterns = {one: _with_wildcards(one) for one in usable}
        self._any = re.compile("|".join(self._patterns.values()))

    def __bool__(self) -> bool:
        return bool(self._fields)

    @property
    def names(self) -> list[str]:
        """The entries without dots and wildcards at their beginning and end."""
        return [name for entry in self._fields if (name := entry.strip("*."))]

    @property
    def patterns(self) -> list[re.Pattern[str]]:
        """The entries with wildcards as regular expressions, without those in ``unread``."""
        return [re.compile(one) for one in self._patterns.values()]

    def by(self, module: str) -> str:
        """Return the field and the entry that excludes a module; "" if there is none."""
        words = module.split(".")
        found = next((one for end in range(len(words), 0, -1) if (one := ".".join(words[:end])) in self._fields), "")
        if not found and self._patterns and len(module) <= _LONGEST and self._any.fullmatch(module):
            found = next(one for one, pattern in self._patterns.items() if re.fullmatch(pattern, module))
        return f"{self._fields[found]} ({found})" if found else ""


def parts_of(module: str) -> set[str]:
    """Return all sequences of words in a module's name: ``a.b.c`` has the parts a, b, c, a.b, b.c and a.b.c."""
    words = module.split(".")
    ends = range(1, len(words) + 1)
    return {".".join(words[start:end]) for end in ends for start in range(end)}


def _with_wildcards(entry: str) -> str:
    """Return a regular expression for a name with wildcards, and for the names of its submodules."""
    text = re.escape(entry).replace(r"\*", ".*").replace(r"\?", ".")
    return rf"{text}(?:\..*)?"


def _within_blocks(settings: Settings) -> list[str]:
    """Return the names, within a layer, of the modules that GPTQ quantises; an empty list means all modules."""
    given = settings.get(_BLOCKS) if settings.get("quant_method") == "gptq" else None
    lists = given if isinstance(given, list) else []
    return [name for one in lists for name in (_texts(one) if isinstance(one, list) else _texts([one]))]


def module_of(name: str) -> str:
    """Return the name of a quantised tensor's module: its own name without ``.weight``."""
    return name.removesuffix(".weight")


def renamed_modules(settings: Settings, names: Callable[[str], Sequence[str]]) -> Settings:
    """Return the settings with modules renamed; regular expressions are not changed.

    ``names`` returns the new names of a module, or nothing if the module keeps its name.
    """
    found = dict(settings)
    if not isinstance(settings.get("quant_method"), str):
        found = _renamed_keys(settings, lambda name: names(name) if _is_of_module(settings[name]) else ())
    for name, value in settings.items():
        if name == _EXTRA and isinstance(value, dict):
            found[name] = _renamed_keys(value, names)
        elif name == _DYNAMIC and isinstance(value, dict):
            found[name] = _renamed_keys(value, lambda entry: _with_sign(entry, names))
        elif name in (*SKIPPED, _IGNORED) and isinstance(value, list):
            found[name] = _renamed_entries(value, names)
        elif name == _GROUPS and isinstance(value, dict):
            found[name] = {
                group: {**one, "targets": _renamed_entries(one["targets"], names)}
                if isinstance(one, dict) and isinstance(one.get("targets"), list)
                else one
                for group, one in value.items()
            }
    return found


def _renamed_keys(given: Mapping[str, Any], names: Callable[[str], Sequence[str]]) -> dict[str, Any]:
    return {new: value for name, value in given.items() for new in names(name) or (name,)}


def _renamed_entries(given: Sequence[Any], names: Callable[[str], Sequence[str]]) -> list[Any]:
    return [new for one in given for new in ((isinstance(one, str) and names(one)) or (one,))]


def _with_sign(entry: str, names: Callable[[str], Sequence[str]]) -> Sequence[str]:
    sign = entry[:2] if entry[:2] in ("+:", "-:") else ""
    return [f"{sign}{name}" for name in names(entry[len(sign) :])]


def _is_of_module(value: object) -> bool:
    return value is False or _is_section(value)


def _is_section(value: object) -> bool:
    return isinstance(value, dict) and any(name in value for name in _OF_MLX)


def _texts(value: object) -> list[str]:
    return [one for one in value if isinstance(one, str) and one] if isinstance(value, list) else []


def _expressions(entries: Sequence[str], start: int = 0) -> dict[str, re.Pattern[str]]:
    """Return {entry: compiled regular expression}; the expression is the text of the entry from ``start`` on.

    Entries with an invalid expression, or with one that could take long to match, are left out.
    """
    found = {one: expression_of(one[start:]) for one in entries[:_MOST]}
    return {one: pattern for one, pattern in found.items() if pattern is not None}


def _repeated(text: str) -> int:
    """Return how many repetitions (``*``, ``+``, ``{1,2}``) an expression has, not counting one at its end."""
    text = text.removesuffix("$").removesuffix(".*")
    return text.count("*") + text.count("+") + text.count("{")


@cache
def _words(text: str) -> tuple[str, ...]:
    """Return words that each name has which the expression matches; none for one with alternatives or classes."""
    plain = re.sub(r"\\.", " ", text)
    return () if re.search(r"[(\[{?|]|[^.\s]\*", plain) else tuple(re.findall(r"\w+", plain))


def _is_valid(text: str) -> bool:
    """Return whether a text may be a regular expression. A loader cannot use one that is not: it excludes nothing."""
    return len(text) > _LONGEST or bool(_COSTLY.search(text)) or _compiled(text) is not None


def expression_of(text: str) -> re.Pattern[str] | None:
    """Return a compiled regular expression; None if it is not valid or could take long to compile or to match."""
    is_short = len(text) <= _LONGEST and text.count("(") <= _GROUPED
    if not is_short or _repeated(text) > _REPEATED or not _PLAIN.fullmatch(text) or _COSTLY.search(text):
        return None
    return _compiled(text)


def _compiled(text: str) -> re.Pattern[str] | None:
    """Return a compiled regular expression; None if it is not valid."""
    try:
        return re.compile(text)
    except (re.error, ValueError, OverflowError, RecursionError):  # ValueError: flags that contradict each other
        return None
