"""Resizes absolute position embeddings: a line of positions, or a grid of patches after prefix tokens.

Prefix tokens (a class token, or the two tokens of DeiT) come before the patches; their positions are kept as they are.
This follows timm's ``resample_abs_pos_embed``:
https://github.com/huggingface/pytorch-image-models/blob/main/timm/layers/pos_embed.py
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from math import isqrt

from ...util.text import count, shape_text
from .policy_text import Policy, Shape

__all__ = ["Positions", "positions_of"]

PREFIXES = (0, 1, 2)
"""The numbers of prefix tokens that are tried: 0, 1 (a class token), 2 (DeiT's class and distillation tokens)."""
SHOWN = 4

Grid = tuple[int, ...]


@dataclass(frozen=True)
class Positions:
    """How a table of positions is resampled: its axis, the number of prefix tokens, the old and the new grid.

    A line of positions is a grid of one dimension. ``policy`` is the requested policy with all its arguments.
    """

    axis: int
    prefix: int
    old: Grid
    new: Grid
    policy: Policy


def positions_of(policy: Policy, have: Shape, want: Shape) -> Positions | str:
    """Return the resampling of position embeddings from shape ``have`` to ``want``, or the reason if there is none."""
    if len(have) not in (2, 3) or (len(have) == 3 and (have[0], want[0]) != (1, 1)):
        return f"position embeddings must be (number, width) or (1, number, width), not {shape_text(have)}"
    axis = len(have) - 2
    if have[-1] != want[-1]:
        return f"the width is {have[-1]} in the source and {want[-1]} in the destination"
    if 0 in have or 0 in want:
        return "there is nothing to interpolate in a dimension of 0"
    number, wanted = have[axis], want[axis]
    if policy.name == "positions-1d":
        return _line(policy, axis, number, wanted)
    found = list(_grids(policy, number, wanted))
    if len(found) != 1:
        return _undecided(policy, number, wanted, found)
    prefix, old, new = found[0]
    spelled = policy.given(
        prefix=str(prefix), from_=_grid_text(old), to=_grid_text(new), method=policy.get("method") or "bicubic",
        antialias=policy.get("antialias") or "yes",
    )  # fmt: skip
    return Positions(axis, prefix, old, new, spelled)


def _line(policy: Policy, axis: int, number: int, wanted: int) -> Positions | str:
    prefix = policy.number("prefix") or 0
    if prefix >= min(number, wanted):
        return (
            f"the source has {number} positions and the destination {wanted}, so that one of them has none after the "
            f"{count(prefix, 'prefix token')}"
        )
    return Positions(axis, prefix, (number - prefix,), (wanted - prefix,), policy.given(prefix=str(prefix)))


def _grids(policy: Policy, number: int, wanted: int) -> Iterator[tuple[int, Grid, Grid]]:
    """Yield the possible layouts of a position table whose ``number`` rows become ``wanted`` rows.

    A layout is (number of prefix tokens, old grid, new grid). Layouts that contradict the policy's arguments are left
    out.
    """
    old, new, prefix = policy.grid("from"), policy.grid("to"), policy.number("prefix")
    prefixes = PREFIXES if prefix is None else (prefix,)
    if prefix is None and (old or new):  # the given grid determines the number of prefix tokens
        prefixes = (number - old[0] * old[1] if old else wanted - new[0] * new[1] if new else 0,)
    for one in prefixes:
        there = _grid(number - one, old)
        here = _grid(wanted - one, new)
        if one >= 0 and there and here:
            yield one, there, here


def _grid(number: int, named: Grid | None) -> Grid | None:
    """Return the grid ``named``, or a square grid if it is None; None if the grid does not have ``number`` patches."""
    if named is not None:
        return named if named[0] * named[1] == number else None
    side = isqrt(max(number, 0))
    return (side, side) if side and side * side == number else None


def _undecided(policy: Policy, number: int, wanted: int, found: list[tuple[int, Grid, Grid]]) -> str:
    sizes = f"{number} and {wanted} positions"
    if found:
        could = " or ".join(f"prefix={prefix}" for prefix, _, _ in found)
        return f"{sizes} can be two squares with different numbers of prefix tokens: choose {could}"
    if policy.get("from") or policy.get("to") or policy.get("prefix"):
        return f"{sizes} are not {_request_text(policy)}"
    alike = (p for p in range(3, min(number, wanted)) if _grid(number - p, None) and _grid(wanted - p, None))
    could = " or ".join(f"prefix={prefix}" for prefix in islice(alike, SHOWN))
    reason = f"{sizes} are not two squares, even without 1 or 2 prefix tokens"
    return f"{reason}; {could} would fit, or give the grids with from= and to=" if could else _rectangular(reason)


def _rectangular(reason: str) -> str:
    return f"{reason}; give other grids as in from=12x101,to=12x50"


def _request_text(policy: Policy) -> str:
    """Return the grids and prefix tokens that the arguments ask for: ``12x20 and a square after 1 prefix token``."""
    old, new, prefix = policy.get("from"), policy.get("to"), policy.get("prefix")
    grids = f"{old or 'a square'} and {new or 'a square'}"
    tokens = count(int(prefix), "prefix token") if prefix else "the same number of prefix tokens"
    return f"{grids} after {tokens}"


def _grid_text(grid: Grid) -> str:
    return "x".join(map(str, grid))
