"""Decides whether a policy (slice, pad …) can turn a source's shape into the destination's, and if not, why."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ...tensors.dtypes import DTYPES
from ...util.text import count, shape_text
from .policy_text import MISMATCH_POLICIES, Policy, Shape, parse_policy
from .positions import positions_of

__all__ = ["PolicyFit", "cast_fault", "channels_fault", "fit", "fitting_policies", "is_reshape"]

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
    if not policy.arguments:
        return ""
    parts, dim = policy.parts
    if parts < 1:
        return f"the number of parts is {parts}, and must be at least 1"
    if dim >= len(source):
        return f"there is no dimension {dim}"
    odd = next((shape[dim] for shape in (source, destination) if shape[dim] % parts), None)
    return f"dimension {dim} has a size of {odd}, which does not divide into {parts} parts" if odd is not None else ""


def interpolate_fault(source: Shape, destination: Shape) -> str:
    """Return the reason why two shapes with the same number of dimensions cannot be interpolated, '' if they can."""
    differing = sum(s != d for s, d in zip(source, destination, strict=True))
    if 0 in source or 0 in destination:
        return "there is nothing to interpolate in a dimension of 0"
    if not 1 <= differing <= INTERPOLATED_DIMENSIONS:
        return f"{count(differing, 'dimension')} differ, and only one or two can be interpolated"
    return ""


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
