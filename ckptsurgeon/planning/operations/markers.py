"""Leaves out ``scaled_fp8`` of files of ComfyUI, which says that the weights have scales, once they are decoded."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from ...tensors.info import TensorInfo
from ...util.text import listing

__all__ = ["MARKER", "SCALE", "is_marker", "marker_notes", "without_markers"]

MARKER = "scaled_fp8"
"""The name of a tensor; if a file has this tensor, ComfyUI uses the scales in the file."""
SCALE = ".scale_weight"
"""The ending of the keys of these scales."""


def is_marker(key: str) -> bool:
    """Return whether a tensor is such a marker."""
    return key.rpartition(".")[2] == MARKER


def without_markers(before: Collection[str], after: Mapping[str, TensorInfo]) -> dict[str, TensorInfo]:
    """Return the tensors ``after`` without the markers of weights that were all decoded.

    ``before`` are the keys before the decoding. A marker ``a.b.scaled_fp8`` is for the scales whose keys begin with
    ``a.b.``.
    """
    return {key: info for key, info in after.items() if not is_marker(key) or not _is_idle(key, before, after)}


def _is_idle(marker: str, before: Iterable[str], after: Iterable[str]) -> bool:
    """Return whether the scales of a marker are in ``before``, but no longer in ``after``."""
    prefix = marker.removesuffix(MARKER)
    had, has = (any(k.startswith(prefix) and f".{k}".endswith(SCALE) for k in keys) for keys in (before, after))
    return had and not has


def marker_notes(before: Iterable[str], after: Collection[str]) -> list[str]:
    """Return a note on the markers that ``after`` lacks; ``before`` are the keys before the decoding."""
    left = [key for key in before if is_marker(key) and key not in after]
    return [f"left out: {listing(left)}, which tells ComfyUI that weights have scales"] if left else []
