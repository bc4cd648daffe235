"""Decides whether a policy makes a source's shape fit the destination's shape, and if not, why."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ...tensors.dtypes import DTYPES
from ...util.text import count
from .policies import (
    MISMATCH_POLICIES,
    Policy,
    Shape,
    center_fault,
    channels_fault,
    interpolate_fault,
    moving_fault,
    parse_policy,
    parts_fault,
    patch_fault,
    spelled_patch,
)
from .positions import positions_of

__all__ = ["PolicyFit", "fit", "fitting_policies"]

COMPUTED = ("interpolate", "positions-1d", "positions-2d", "patch", "channels")
"""The policies that compute each new value from several old ones; they accept real floating-point numbers only."""

POWERS = "float8_e8m0fnu"
"""A dtype of scales: powers of two without a sign, between which nothing can be interpolated."""


_POSITIONS = re.compile(r"(?<![a-z])(abs_?)?(pos(?!t)|w?pe(?![a-z]))")
"""Matches the names of position embeddings: pos_embed, positional_embedding, wpe, pe; but not post_norm."""


@dataclass(frozen=True)
class PolicyFit:
    """How a policy makes a source's shape fit the destination's: the operation, and the policy with all its arguments.

    If the policy does not make it fit, ``op`` is empty and ``why`` is the reason.
    """

    op: str = ""
    policy: str = ""
    why: str = ""


def fit(policy: str, source: Shape, destination: Shape, dtype: str) -> PolicyFit:
    """Return how ``policy`` makes the shape ``source`` fit ``destination``, or the reason why it does not.

    Raises ConfigError for an unknown policy.
    """
    asked = parse_policy(policy)
    if asked.name in ("error", "init"):
        return (
            PolicyFit(op="init", policy=policy)
            if asked.name == "init"
            else PolicyFit(why="the policy error always stops with an error")
        )
    spelled = _spelled(asked, source, destination, dtype)
    return PolicyFit(why=spelled) if isinstance(spelled, str) else PolicyFit(op=asked.name, policy=str(spelled))


def _spelled(policy: Policy, have: Shape, want: Shape, dtype: str) -> Policy | str:
    """Return the policy with all its arguments; if it cannot turn ``have`` into ``want``, return why, as a string."""
    name = policy.name
    if len(have) != len(want):
        return f"the source has {count(len(have), 'dimension')}, the destination {len(want)}"
    if DTYPES[dtype].is_packed:
        return f"{dtype} packs several numbers in a byte"
    if name in COMPUTED and (DTYPES[dtype].kind != "float" or dtype == POWERS):
        return f"it computes with real floating-point numbers, and the source is {dtype}"
    if name.startswith("positions"):
        found = positions_of(policy, have, want)
        return found if isinstance(found, str) else found.policy
    if name == "patch":
        return patch_fault(have, want) or spelled_patch(policy)
    if name == "interpolate":
        return interpolate_fault(have, want) or policy
    faults = {"channels": channels_fault, "center": center_fault}
    fault = faults[name](have, want) if name in faults else moving_fault(name, have, want)
    return fault or (parts_fault(policy, have, want) if name == "pad" else "") or policy


def fitting_policies(source: Shape, destination: Shape, dtype: str, key: str) -> list[str]:
    """Return the policies that would make the shape of a tensor called ``key`` fit, the simplest first.

    ``positions-1d`` is never suggested: it fits every table, and without prefix tokens it does the same as
    ``interpolate``. ``positions-2d`` is only suggested for tensors with the name or shape of position embeddings: many
    other tables have a square number of rows too.
    """
    left_out = {"positions-1d"} if _may_be_positions(source, key) else {"positions-1d", "positions-2d"}
    suggested = [policy for policy in MISMATCH_POLICIES[1:] if policy not in left_out]
    return [policy for policy in suggested if fit(policy, source, destination, dtype).op]


def _may_be_positions(shape: Shape, key: str) -> bool:
    """Return whether a tensor may be position embeddings, by its name or by its shape (1, number, width)."""
    return _POSITIONS.search(key.lower()) is not None or (len(shape) == 3 and shape[0] == 1)
