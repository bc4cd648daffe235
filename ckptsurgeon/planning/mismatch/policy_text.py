"""The names of the policies for tensors whose shape differs from the destination's, and how their text is read."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from ...errors import ConfigError
from ...util.text import escape, listing

__all__ = ["MISMATCH_POLICIES", "Policy", "Shape", "parse_policy", "parts_of"]

Shape = Sequence[int]

# A policy may have arguments: ``positions-2d:prefix=1,to=12x20``.
#
# policy    = name [ ":" argument { "," argument } ]      argument = name "=" value

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
"""Matches a policy's name that is followed by another separator than a colon, as in ``pad,parts=2``."""

ARGUMENTS: Mapping[str, Mapping[str, tuple[str, re.Pattern[str]]]] = {
    "pad": {"parts": _NUMBER, "dim": _NUMBER},
    "positions-1d": {"prefix": _NUMBER},
    "positions-2d": {"prefix": _NUMBER, "from": _GRID, "to": _GRID, **_RESAMPLING},
    "patch": _RESAMPLING,
}
"""The arguments of each policy by name: a description of the value, and a regular expression that it must match."""


@dataclass(frozen=True)
class Policy:
    """A policy by name, and its arguments, in the order of the documentation."""

    name: str
    arguments: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        return self.name + (
            ":" + ",".join(f"{name}={value}" for name, value in self.arguments) if self.arguments else ""
        )

    def get(self, name: str) -> str:
        """Return an argument, '' if it was not given."""
        return dict(self.arguments).get(name, "")

    def number(self, name: str) -> int | None:
        """Return an argument that is a number, None if it was not given."""
        text = self.get(name)
        return int(text) if text else None

    @property
    def parts(self) -> tuple[int, int]:
        """(Number of parts into which ``pad:parts=2,dim=1`` divides a tensor, the dimension); by default (1, 0)."""
        parts, dim = self.number("parts"), self.number("dim")
        return 1 if parts is None else parts, dim or 0

    def grid(self, name: str) -> tuple[int, int] | None:
        """Return an argument that is a grid, as (height, width); None if it was not given."""
        height, _, width = self.get(name).partition("x")
        return (int(height), int(width)) if width else None

    def given(self, **arguments: str) -> Policy:
        """Return a policy of the same name with only these arguments; ``from_`` means the argument ``from``."""
        return Policy(self.name, tuple((name.rstrip("_"), value) for name, value in arguments.items()))


@lru_cache(maxsize=256)
def parse_policy(text: str) -> Policy:
    """Return the policy in a text such as ``pad`` or ``positions-2d:prefix=1``; raises ConfigError for other texts."""
    name, colon, rest = text.partition(":")
    if name not in MISMATCH_POLICIES:
        begun = _BEGUN.match(name)
        if begun and begun[1] in ARGUMENTS:
            raise ConfigError(
                f"{escape(name, 80)!r} is not a policy.",
                hint=f"Write a colon before the arguments: {begun[1]}:{escape(text[begun.end() :].rstrip(')'), 80)}.",
            )
        near = difflib.get_close_matches(name, MISMATCH_POLICIES, n=2)
        hint = f"Did you mean {' or '.join(near)}?" if near else f"Use one of {', '.join(MISMATCH_POLICIES)}."
        raise ConfigError(f"{escape(name, 80)!r} is not a policy.", hint=hint)
    known = ARGUMENTS.get(name, {})
    if colon and not known:
        raise ConfigError(f"the policy {name} has no arguments.", hint=f"Write {name}.")
    given = [_argument(name, one) for one in rest.split(",")] if colon else []
    twice = [argument for argument, _ in given if [a for a, _ in given].count(argument) > 1]
    if twice:
        raise ConfigError(f"the policy {name} has the argument {twice[0]} twice.", hint="Give it once.")
    return Policy(name, tuple(sorted(given, key=lambda pair: list(known).index(pair[0]))))


def _argument(policy: str, text: str) -> tuple[str, str]:
    known = ARGUMENTS[policy]
    name, _, value = text.partition("=")
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"Did you mean {near[0]}?" if near else f"Its arguments are {listing(list(known), len(known))}."
        raise ConfigError(f"the policy {policy} has no argument {escape(text, 80)!r}.", hint=hint)
    wanted, pattern = known[name]
    if not pattern.fullmatch(value):
        raise ConfigError(f"the argument {name} of the policy {policy} is {escape(value, 80)!r}, not {wanted}.")
    return name, value


def parts_of(policy: str) -> tuple[int, int]:
    """Return (number of parts into which a policy such as ``pad:parts=2`` divides a tensor, the dimension)."""
    return parse_policy(policy).parts if policy.startswith("pad:") else (1, 0)
