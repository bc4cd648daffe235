"""Finds the modules that settings of ModelOpt exclude from quantisation."""

from __future__ import annotations

import re

from .expressions import LONGEST, MOST, REPEATED, with_wildcards
from .settings import Settings, strings_in

__all__ = ["ExcludedModules"]

_EXCLUDED, _IGNORED = "exclude_modules", "ignore"
"""The fields with the modules that are not quantised: in hf_quant_config.json, and in config.json."""


class ExcludedModules:
    """The entries of ModelOpt's settings that exclude modules: names, some with wildcards.

    An entry also excludes all submodules. ``unread`` are entries with wildcards that are not compared with names, since
    they are too long or there are too many of them.
    """

    def __init__(self, settings: Settings) -> None:
        self._fields = {entry: name for name in (_EXCLUDED, _IGNORED) for entry in strings_in(settings.get(name))}
        wild = [entry for entry in self._fields if "*" in entry or "?" in entry]
        usable = [one for one in wild if len(one) <= LONGEST and one.count("*") <= REPEATED][:MOST]
        self.unread = frozenset(wild) - frozenset(usable)
        self._patterns = {one: with_wildcards(one) for one in usable}
        self._any = re.compile("|".join(self._patterns.values()))

    def __bool__(self) -> bool:
        return bool(self._fields)

    @property
    def names(self) -> list[str]:
        """The entries, with the dots and wildcards at their beginning and end removed."""
        return [name for entry in self._fields if (name := entry.strip("*."))]

    @property
    def patterns(self) -> list[re.Pattern[str]]:
        """The entries with wildcards as regular expressions, without those in ``unread``."""
        return [re.compile(one) for one in self._patterns.values()]

    def by(self, module: str) -> str:
        """Return the field and the entry that excludes a module, such as ``ignore (lm_head)``; "" if there is none."""
        words = module.split(".")
        found = next((one for end in range(len(words), 0, -1) if (one := ".".join(words[:end])) in self._fields), "")
        if not found and self._patterns and len(module) <= LONGEST and self._any.fullmatch(module):
            found = next(one for one, pattern in self._patterns.items() if re.fullmatch(pattern, module))
        return f"{self._fields[found]} ({found})" if found else ""
