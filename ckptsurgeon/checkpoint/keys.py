"""The keys of a state dict: which of its entries are tensors, and how many and how long their names may be."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from ..errors import FormatError, UnsafeError
from ..formats.base import limits
from ..formats.base.bounds import most_segments
from ..tensors.info import TensorInfo
from ..util.text import count, escape
from .roots import Root

__all__ = ["check_keys", "tensors_of"]


def tensors_of(root: Root) -> Mapping[str, TensorInfo]:
    """Return the entries of a dict that are tensors under a name, in its order."""
    if root.tensors == len(root.entries) and set(map(type, root.entries)) <= {str}:
        return root.entries  # the usual case
    return {key: info for key, info in root.entries.items() if isinstance(key, str) and isinstance(info, TensorInfo)}


def check_keys(path: str, keys: Collection[str]) -> None:
    """Refuse keys in a number or of a length that no model has: what shows or compares keys may rely on it."""
    if len(keys) > limits.TENSORS:
        raise UnsafeError(f"{escape(path)} has {len(keys)} tensors; at most {limits.TENSORS} are read.", rule="tensors")
    usual = max(map(len, keys), default=0) < limits.KEY_SEGMENTS  # then there are fewer dots in each, too
    if usual and "".join(keys).count(".") + len(keys) <= most_segments(len(keys)):
        return
    segments, most = 0, most_segments(len(keys))
    for key in keys:
        dots = key.count(".")
        segments += dots + 1
        if segments > most:
            raise UnsafeError(f"{escape(path)} has keys of over {most} segments in all.", rule="segments")
        if len(key) > limits.KEY_CHARACTERS or dots >= limits.KEY_SEGMENTS:
            raise FormatError(
                f"{escape(path)} has a key of {count(len(key), 'character')} and "
                f"{count(dots + 1, 'segment')}, {escape(key, 40)}; at most {limits.KEY_CHARACTERS} "
                f"and {limits.KEY_SEGMENTS} are read.",
                rule="key length",
            )
