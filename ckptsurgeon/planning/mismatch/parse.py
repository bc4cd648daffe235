"""The policies by name, and the arguments of those that take some: ``positions-2d:prefix=1,to=12x20``.

policy    = name [ ":" argument { "," argument } ]      argument = name "=" value
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from ...errors import ConfigError
from ...util.text import escape, listing

__all__ = ["MISMATCH_POLICIES", "Policy", "parse_policy"]

MISMATCH_POLICIES = (
    "error", "init", "slice", "pad", "overlap", "interpolate", "positions-1d", "positions-2d", "patch", "channels",
    "center",
)  # fmt: skip

_NUMBER = ("a whole number, as in 1", re.compile(r"[0-9]{1,6}"))
_GRID = ("a grid of HEIGHTxWIDTH, as in 14x14", re.compile(r"[1-9][0-9]{0,5}x[1-9][0-9]{0,5}"))
_METHOD = ("bicubic or bilinear", re.compile("bicubic|bilinear"))
_TRUTH = ("yes or no", re.compile("yes|no"))
_RESAMPLING = {"method": _METHOD, "antialias": _TRUTH}

_BEGUN = re.compile(r"([a-z0-9-]+)[,;=( ]")

ARGUMENTS: Mapping[str, Mapping[str, tuple[str, re.Pattern[str]]]] = {
    "positions-1d": {"prefix": _NUMBER},
    "positions-2d": {"prefix": _NUMBER, "from": _GRID, "to": _GRID, **_RESAMPLING},
    "patch": _RESAMPLING,
}
"""What each policy may be told: what the value should be, in words and exactly."""


@dataclass(frozen=True)
class Policy:
    """A policy by name, and the arguments it was given, in the order in which they are documented."""

    name: str
    arguments: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        return self.name + (
            ":" + ",".join(f"{name}={value}" for name, value in self.arguments) if self.arguments else ""
        )

    def get(self, name: str) -> str:
        """Return an argument, '' where it was not given."""
        return dict(self.arguments).get(name, "")

    def number(self, name: str) -> int | None:
        """Return an argument that is a number."""
        text = self.get(name)
        return int(text) if text else None

    def grid(self, name: str) -> tuple[int, int] | None:
        """Return an argument that is a grid: (height, width)."""
        height, _, width = self.get(name).partition("x")
        return (int(height), int(width)) if width else None

    def given(self, **arguments: str) -> Policy:
        """Return the policy with these arguments and no others."""
        return Policy(self.name, tuple((name.rstrip("_"), value) for name, value in arguments.items()))


@lru_cache(maxsize=256)
def parse_policy(text: str) -> Policy:
    """Return the policy that ``text`` spells; raises ConfigError that names what is near."""
    name, colon, rest = text.partition(":")
    if name not in MISMATCH_POLICIES:
        begun = _BEGUN.match(name)
        if begun and begun[1] in ARGUMENTS:
            raise ConfigError(
                f"there is no policy {escape(name, 80)!r}.",
                hint=f"Arguments stand behind a colon: {begun[1]}:{escape(text[begun.end() :], 80)}.",
            )
        near = difflib.get_close_matches(name, MISMATCH_POLICIES, n=2)
        hint = f"Did you mean {' or '.join(near)}?" if near else f"Use one of {', '.join(MISMATCH_POLICIES)}."
        raise ConfigError(f"there is no policy {escape(name, 80)!r}.", hint=hint)
    known = ARGUMENTS.get(name, {})
    if colon and not known:
        raise ConfigError(f"the policy {name} takes no arguments.", hint=f"Write {name}.")
    given = [_argument(name, one) for one in rest.split(",")] if colon else []
    twice = [argument for argument, _ in given if [a for a, _ in given].count(argument) > 1]
    if twice:
        raise ConfigError(f"the policy {name} is given {twice[0]} twice.")
    return Policy(name, tuple(sorted(given, key=lambda pair: list(known).index(pair[0]))))


def _argument(policy: str, text: str) -> tuple[str, str]:
    known = ARGUMENTS[policy]
    name, _, value = text.partition("=")
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"Did you mean {near[0]}?" if near else f"It takes {listing(list(known), len(known))}."
        raise ConfigError(f"the policy {policy} has no argument {escape(text, 80)!r}.", hint=hint)
    wanted, pattern = known[name]
    if not pattern.fullmatch(value):
        raise ConfigError(f"{name} of the policy {policy} is {escape(value, 80)!r}, not {wanted}.")
    return name, value
