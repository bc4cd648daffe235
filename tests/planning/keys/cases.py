"""The cases of key patterns that Python and the page of ``ckpt view`` both have to pass."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

__all__ = ["CASES", "Case"]


@dataclass(frozen=True)
class Case:
    """A pattern with the keys that match (``yes``) and those that do not, or with its error and hint."""

    pattern: str
    yes: tuple[str, ...] = ()
    no: tuple[str, ...] = ()
    error: str = ""
    hint: str = ""

    @property
    def keys(self) -> dict[str, bool]:
        return dict.fromkeys(self.yes, True) | dict.fromkeys(self.no, False)


CASES = [
    Case(**{name: tuple(value) if isinstance(value, list) else value for name, value in case.items()})
    for case in json.loads(Path(__file__).with_name("cases.json").read_text())
]
