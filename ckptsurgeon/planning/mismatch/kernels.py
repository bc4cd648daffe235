"""Kernels of convolutions: another patch size, other input channels, a larger kernel around a smaller one."""

from __future__ import annotations

from ...util.text import count, shape_text
from .parse import Policy
from .shapes import Shape

__all__ = ["PATCH", "center_fault", "channels_fault", "patch_fault", "spelled_patch"]

PATCH = 128
"""The largest side of a patch: the pseudo-inverse takes the cube of it."""
INPUTS = (1, 2, 3)
"""Channels of an input that can be summed into one: grey, stereo, colour."""
REPEATED = (1, 3)
"""Channels of an input that can be repeated."""


def patch_fault(have: Shape, want: Shape) -> str:
    """Return why a patch embedding cannot be resized, '' where it can."""
    if len(have) != 4:
        return f"it is for kernels of (out, in, height, width), not {shape_text(have)}"
    if tuple(have[:2]) != tuple(want[:2]):
        return "the channels differ, not the patch alone"
    if 0 in have or 0 in want:
        return "there is nothing to resample in a dimension of 0"
    if max(*have[2:], *want[2:]) > PATCH:
        return f"it is for patches of at most {PATCH} pixels a side"
    return ""


def spelled_patch(policy: Policy) -> Policy:
    """Return a patch policy with every argument."""
    return policy.given(method=policy.get("method") or "bicubic", antialias=policy.get("antialias") or "yes")


def channels_fault(have: Shape, want: Shape) -> str:
    """Return why the input channels of a convolution cannot be adapted, '' where they can."""
    fault = _kernel_fault(have)
    if fault:
        return fault
    if have[0] != want[0] or tuple(have[2:]) != tuple(want[2:]):
        return "more differs than the input channels, which are dimension 1"
    if want[1] < 1 or have[1] not in (INPUTS if want[1] == 1 else REPEATED):
        return f"it is for an input of 1 or 3 channels, not for {have[1]} to {want[1]}"
    return ""


def center_fault(have: Shape, want: Shape) -> str:
    """Return why a kernel has no middle in a larger one, '' where it has."""
    fault = _kernel_fault(have)
    if fault:
        return fault
    if tuple(have[:2]) != tuple(want[:2]):
        return "the channels differ, not the kernel alone"
    for dim, (small, large) in enumerate(zip(have[2:], want[2:], strict=True), 2):
        if small > large:
            return f"the source is larger in dimension {dim}"
        if (large - small) % 2:
            return f"{small} has no middle place in {large}, in dimension {dim}: they differ by an odd number"
    return ""


def _kernel_fault(have: Shape) -> str:
    if 3 <= len(have) <= 5:
        return ""
    return f"it is for kernels of (out, in, …), not of {count(len(have), 'dimension')}"
