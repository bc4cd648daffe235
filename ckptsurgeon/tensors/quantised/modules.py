"""Reads the quantisation settings of single modules, which may differ from the general settings.

A module may have different bits, for example, or may not be quantised at all.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import islice
from typing import Any, NamedTuple

from .autoround import is_autoround
from .expressions import LONGEST, MOST, expression_of, expressions_of, is_valid, repeated, words_of
from .modelopt_exclusions import ExcludedModules
from .settings import Settings, modelopt_of, strings_in

__all__ = [
    "BEFORE_NUMBER", "DYNAMIC", "EXTRA", "GENERAL", "GROUPS", "IGNORED", "SKIPPED", "Expression", "Modules",
    "is_section", "module_of",
]  # fmt: skip

GENERAL = -1
"""The index of the general settings, which apply to modules without their own settings."""
SKIPPED = ("modules_to_not_convert", "llm_int8_skip_modules", "ignored_layers")
"""Fields of transformers that list names of modules that are not quantised.

A name in such a list means the module with this name, its submodules, and all modules whose names end with it. If it
ends with a dot, it means only the module and its submodules.
"""
IGNORED, DYNAMIC, EXTRA, GROUPS = "ignore", "dynamic", "extra_config", "config_groups"
"""Fields of compressed-tensors (the first and the last), of GPTQModel (``dynamic``) and of AutoRound."""
_BLOCKS = "modules_in_block_to_quantize"
"""The field of GPTQ with lists of the names, within a layer, of the modules that are quantised."""
BEFORE_NUMBER = re.compile(r"^.*?\.(?=\d+(?:\.|$))")
"""Matches everything before the first number of a name."""
_IN_LAYER = re.compile(r"\.\d+\.")
_OF_MLX = ("bits", "group_size", "mode")
_STEPS = 1_000_000_000
"""The most steps that all regular expressions in settings may take in the worst case: this many take seconds."""


class Expression(NamedTuple):
    """A regular expression in the settings that excludes modules.

    It matches the beginning of a module's name. If ``whole`` is true, it matches the whole name of the module, or of a
    module that contains it.
    """

    pattern: re.Pattern[str]
    whole: bool


class Modules:
    """The parts of quantisation settings that apply to some modules only, and the modules that are left unquantised.

    Each such part is called a section; ``place`` returns its index. A regular expression that could take very long to
    match is not evaluated, and its section is treated as if it applied to all modules. ``unread`` are the entries that
    exclude modules by such an expression: they may exclude any module. ``is_exact`` is false if a target of a config
    group is such an expression. ``is_spent`` becomes true when all comparisons together could have taken ``_STEPS``
    steps: from then on, no regular expression matches.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings, self._sections = settings, list[Settings]()
        self._names: dict[str, int] = {}
        self._patterns: list[tuple[re.Pattern[str], int, str]] = []
        self._general, self._steps, self.is_exact = settings, 0, True
        self.is_spent, self.unread = False, frozenset[str]()
        if not isinstance(settings.get("quant_method"), str):
            self._add_named(settings, settings)
        if isinstance(extra := settings.get(EXTRA), dict):
            self._add_named(extra, {name: value for name, value in settings.items() if name != EXTRA})
        self._add_dynamic()
        self._is_compressed = settings.get("quant_method") == "compressed-tensors"
        if self._is_compressed:
            self._add_groups()
        self._skipped = {entry: name for name in SKIPPED for entry in strings_in(settings.get(name))}
        ignored = strings_in(settings.get(IGNORED)) if self._is_compressed else []
        self._ignored = frozenset(ignored)
        self._only = _within_blocks(settings)
        self._ignoring = expressions_of([one for one in ignored if one[:3] == "re:"], start=3)
        self._excluded = ExcludedModules(modelopt_of(settings))
        wild = [one for one in self._skipped if not re.fullmatch(r"[\w.\-]*", one)]
        self._skipping = expressions_of(wild)
        given = dict.fromkeys([*wild, *(one for one in ignored if one[:3] == "re:")])
        left = [one for one in given if one not in self._skipping and one not in self._ignoring]
        valid = {one for one in islice(left, MOST) if is_valid(one.removeprefix("re:"))}
        self.unread |= valid | set(left[MOST:]) | self._excluded.unread

    def place(self, module: str) -> int:
        """Return the index of the section for a module; ``GENERAL`` if it has none."""
        if (found := self._names.get(module)) is not None:
            return found
        return next(
            (place for one, place, _ in self._patterns if self.meets(one, module) and place != GENERAL), GENERAL
        )

    def is_included(self, module: str) -> bool:
        """Return whether the first regular expression in GPTQModel's ``dynamic`` that matches a module includes it."""
        first = next((entry for one, _, entry in self._patterns if self.meets(one, module)), "-:")
        return first[:1] not in ("", "-")

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
        """The names of modules that settings of MLX or ModelOpt exclude; loaders compare whole names."""
        is_of_mlx = not isinstance(self._settings.get("quant_method"), str)
        own = [name for name, value in self._settings.items() if value is False] if is_of_mlx else []
        return [*own, *self._excluded.names]

    @property
    def expressions(self) -> list[Expression]:
        """The regular expressions that exclude modules from quantisation."""
        started = [*self._ignoring.values(), *(one for one, _, entry in self._patterns if entry[:2] == "-:")]
        whole = [*self._skipping.values(), *self._excluded.patterns]
        return [*(Expression(one, whole=False) for one in started), *(Expression(one, whole=True) for one in whole)]

    def settings(self, place: int) -> Settings:
        """Return the settings for the modules of a section (an index), in the form of a ``quantization_config``."""
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
            return f"{IGNORED} ({module})"
        for entry, found in self._ignoring.items():
            if self.meets(found, module):
                return f"{IGNORED} ({entry})"
        if self._excluded and (by := self._excluded.by(module)):
            return by
        if self._only and _IN_LAYER.search(module) and not any(one in module for one in self._only):
            return _BLOCKS
        first = next((entry for one, _, entry in self._patterns if self.meets(one, module)), "")
        return f"{DYNAMIC} ({first})" if first[:2] == "-:" and module not in self._names else ""

    def meets(self, pattern: re.Pattern[str], module: str, *, whole: bool = False) -> bool:
        """Return whether a regular expression matches the beginning of a module's name, or the whole name if ``whole``.

        Returns False for long names, and as soon as all comparisons together could take too many steps. A name that
        lacks a word of the regular expression is not compared.
        """
        for word in words_of(pattern.pattern):
            if word not in module:
                return False
        self._steps += len(module) ** repeated(pattern.pattern)
        if len(module) > LONGEST or self._steps > _STEPS:
            self.is_spent = True
            return False
        return bool(pattern.fullmatch(module) if whole else pattern.match(module))

    def _add_named(self, sections: Mapping[str, Any], general: Settings) -> None:
        """Add a section for each item of ``sections`` whose key is the name of a module, as in MLX and AutoRound.

        In MLX, a section without a mode has the mode "affine", even if the general settings have a different mode.
        """
        own = {name: one for name, one in sections.items() if is_section(one)}
        self._general = rest = {name: one for name, one in general.items() if name not in own}
        for name, one in own.items():
            self._names[name] = len(self._sections)
            self._sections.append({**rest, **({"mode": "affine"} if "mode" in rest else {}), **one})

    def _add_dynamic(self) -> None:
        """Add a section (see ``Modules``) for each item of GPTQModel's ``dynamic``: {regular expression: settings}.

        A module gets the section of the first regular expression that matches the beginning of its name. An entry that
        begins with ``-:`` leaves the module unquantised.
        """
        given = self._settings.get(DYNAMIC)
        if not isinstance(given, dict):
            return
        found = {entry: expression_of(re.sub(r"^[+-]:", "", entry)) for entry in given} if len(given) <= MOST else {}
        rest = {name: one for name, one in self._settings.items() if name != DYNAMIC}
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
        given = self._settings.get(GROUPS)
        groups = {name: one for name, one in given.items() if isinstance(one, dict)} if isinstance(given, dict) else {}
        if len(groups) < 2:
            groups = {}
        for name, group in groups.items():
            only = {**self._settings, GROUPS: {name: group}}
            for target in strings_in(group.get("targets")):
                if target[:3] == "re:":
                    if (found := expression_of(target[3:])) and len(self._patterns) < MOST:
                        self._patterns.append((found, len(self._sections), ""))
                    else:
                        self.is_exact = False
                elif target == "Linear":
                    self._general = only
                else:
                    self._names.setdefault(target, len(self._sections))
            self._sections.append(only)


def _within_blocks(settings: Settings) -> list[str]:
    """Return the names, within a layer, of the modules that GPTQ or AutoRound quantises; [] if it quantises all."""
    given = settings.get(_BLOCKS) if settings.get("quant_method") == "gptq" or is_autoround(settings) else None
    lists = given if isinstance(given, list) else []
    return [name for one in lists for name in (strings_in(one) if isinstance(one, list) else strings_in([one]))]


def module_of(name: str) -> str:
    """Return the name of the module that has a quantised tensor: the tensor's name without ``.weight``."""
    return name.removesuffix(".weight")


def is_section(value: object) -> bool:
    """Return whether a value in MLX's settings is the settings of one module."""
    return isinstance(value, dict) and any(name in value for name in _OF_MLX)
