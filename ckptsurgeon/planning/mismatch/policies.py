"""The policies for tensors whose shape differs from the destination's, and the reasons why a policy does not fit."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from ...errors import ConfigError
from ...tensors.dtypes import DTYPES
from ...util.text import count, escape, listing, shape_text

__all__ = [
    "MISMATCH_POLICIES",
    "PATCH",
    "Policy",
    "Shape",
    "cast_fault",
    "center_fault",
    "channels_fault",
    "interpolate_fault",
    "is_reshape",
    "moving_fault",
    "parse_policy",
    "parts_fault",
    "parts_of",
    "patch_fault",
    "spelled_patch",
]

# Casts that are refused.


def cast_fault(source: str, destination: str) -> str:
    """Return the reason why a cast between two dtypes is refused, '' if it is allowed.

    A cast is refused if values would silently lose their fraction, sign or phase.
    """
    have, want = DTYPES[source], DTYPES[destination]
    if source == destination:
        return ""
    if "quantized" in (have.kind, want.kind) or "bits" in (have.kind, want.kind):
        return "quantised values have no meaning in another dtype"
    if have.is_packed or want.is_packed:
        return "packed values can only be copied"
    if have.kind == "complex" and want.kind != "complex":
        return "a complex number does not fit a real one"
    if have.kind == "float" and want.kind not in ("float", "complex"):
        return "a fraction does not fit an integer"
    if want.kind == "bool":
        return "a number does not fit a boolean"
    if destination == "float8_e8m0fnu":  # a scale: torch casts -3.0 to 4.0
        return f"{destination} holds only powers of two, without a sign"
    return ""


# The policies that move values or interpolate them: slice, pad, overlap, interpolate.

INTERPOLATED_DIMENSIONS = 2
"""The most dimensions that are interpolated: linear along one, bilinear along two; weights need no more."""

Shape = Sequence[int]


def is_reshape(source: Shape, destination: Shape) -> bool:
    """Return whether one shape is (1,) and the other is () (a scalar); these fit each other."""
    return sorted([tuple(source), tuple(destination)]) == [(), (1,)]


def moving_fault(policy: str, source: Shape, destination: Shape) -> str:
    """Return why the policy slice, pad or overlap cannot turn the source's shape into the destination's; '' if it can.

    Both shapes have the same number of dimensions.
    """
    pairs = list(enumerate(zip(source, destination, strict=True)))
    smaller = [d for d, (s, w) in pairs if s < w]
    larger = [d for d, (s, w) in pairs if s > w]
    if policy == "slice" and smaller:
        return f"the source is smaller in dimension {smaller[0]}"
    if policy == "pad" and larger:
        return f"the source is larger in dimension {larger[0]}"
    return ""


def parts_fault(policy: Policy, source: Shape, destination: Shape) -> str:
    """Return why the policy pad cannot pad each part of a tensor (``parts=``); '' if it can, or without parts."""
    parts, dim = _parts(policy)
    if not policy.arguments:
        return ""
    if parts < 1:
        return f"the number of parts is {parts}, and must be at least 1"
    if dim >= len(source):
        return f"there is no dimension {dim}"
    odd = next((shape[dim] for shape in (source, destination) if shape[dim] % parts), None)
    return f"dimension {dim} has a size of {odd}, which does not divide into {parts} parts" if odd is not None else ""


def parts_of(policy: str) -> tuple[int, int]:
    """Return (number of parts into which a policy such as ``pad:parts=2`` divides a tensor, the dimension)."""
    return _parts(parse_policy(policy)) if policy.startswith("pad:") else (1, 0)


def _parts(policy: Policy) -> tuple[int, int]:
    parts, dim = policy.number("parts"), policy.number("dim")
    return 1 if parts is None else parts, dim or 0


def interpolate_fault(source: Shape, destination: Shape) -> str:
    """Return the reason why two shapes with the same number of dimensions cannot be interpolated, '' if they can."""
    differing = sum(s != d for s, d in zip(source, destination, strict=True))
    if 0 in source or 0 in destination:
        return "there is nothing to interpolate in a dimension of 0"
    if not 1 <= differing <= INTERPOLATED_DIMENSIONS:
        return f"{count(differing, 'dimension')} differ, and only one or two can be interpolated"
    return ""


# The policies by name, and the arguments that some of them have: ``positions-2d:prefix=1,to=12x20``.
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
                f"there is no policy {escape(name, 80)!r}.",
                hint=f"Write a colon before the arguments: {begun[1]}:{escape(text[begun.end() :].rstrip(')'), 80)}.",
            )
        near = difflib.get_close_matches(name, MISMATCH_POLICIES, n=2)
        hint = f"Did you mean {' or '.join(near)}?" if near else f"Use one of {', '.join(MISMATCH_POLICIES)}."
        raise ConfigError(f"there is no policy {escape(name, 80)!r}.", hint=hint)
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


# Kernels of convolutions: other patch sizes, other input channels, larger kernels.

PATCH = 128
"""The largest side of a patch: the time for the pseudo-inverse grows with its cube."""
INPUTS = (1, 2, 3)
"""The numbers of input channels that can be summed into one: grey or mono, stereo, colour."""
REPEATED = (1, 3)
"""The numbers of input channels that can be repeated to make more channels."""


def patch_fault(have: Shape, want: Shape) -> str:
    """Return the reason why a patch embedding cannot be resized, '' if it can."""
    if len(have) != 4:
        return f"a patch embedding must be (out, in, height, width), not {shape_text(have)}"
    if tuple(have[:2]) != tuple(want[:2]):
        return "the channels differ, not only the patch size"
    if 0 in have or 0 in want:
        return "there is nothing to resample in a dimension of 0"
    if max(*have[2:], *want[2:]) > PATCH:
        return f"a side of a patch must not be longer than {PATCH} pixels"
    return ""


def spelled_patch(policy: Policy) -> Policy:
    """Return the policy ``patch`` with all its arguments; arguments that were not given get their defaults."""
    return policy.given(method=policy.get("method") or "bicubic", antialias=policy.get("antialias") or "yes")


def channels_fault(have: Shape, want: Shape) -> str:
    """Return the reason why the input channels of a convolution cannot be adapted, '' if they can."""
    fault = _kernel_fault(have)
    if fault:
        return fault
    if have[0] != want[0] or tuple(have[2:]) != tuple(want[2:]):
        return "another dimension than the input channels (dimension 1) differs"
    if want[1] < 1 or have[1] not in (INPUTS if want[1] == 1 else REPEATED):
        possible = "1, 2 or 3" if want[1] == 1 else "1 or 3"
        return f"the source must have {possible} input channels; {have[1]} cannot become {want[1]}"
    return ""


def center_fault(have: Shape, want: Shape) -> str:
    """Return the reason why a kernel cannot be placed in the centre of a larger one; '' if it can."""
    fault = _kernel_fault(have)
    if fault:
        return fault
    if tuple(have[:2]) != tuple(want[:2]):
        return "the channels differ, not only the kernel size"
    for dim, (small, large) in enumerate(zip(have[2:], want[2:], strict=True), 2):
        if small > large:
            return f"the source is larger in dimension {dim}"
        if (large - small) % 2:
            return f"a size of {small} cannot be centred in {large} in dimension {dim}: they differ by an odd number"
    return ""


def _kernel_fault(have: Shape) -> str:
    if 3 <= len(have) <= 5:
        return ""
    return f"a kernel must be (out, in, …) with 3 to 5 dimensions, not {len(have)}"
