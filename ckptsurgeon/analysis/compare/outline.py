"""What a comparison by headers needs of a checkpoint, as data small enough to come from another process."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ...checkpoint.checkpoint import Checkpoint
from ...tensors.info import TensorInfo

__all__ = ["Outline", "outline_from_plain", "outline_of"]


@dataclass(frozen=True)
class Outline:
    """A checkpoint's path, its tensors by key, and what is to be said of it.

    ``coded`` are the keys of codes, and of each the method and the name of the quantised tensor; ``quantisation`` are
    the settings of that.
    """

    path: str
    tensors: Mapping[str, TensorInfo]
    notes: tuple[str, ...]
    coded: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    quantisation: Mapping[str, Any] = field(default_factory=dict)

    def to_plain(self) -> Any:
        """Return plain data of which ``outline_from_plain`` makes it again, without where tensors lie."""
        tensors = [(key, info.dtype, info.shape) for key, info in self.tensors.items()]
        return self.path, tensors, self.notes, dict(self.coded), dict(self.quantisation)

    def only(self, keys: Collection[str]) -> Outline:
        """Return the outline of those tensors alone that are among ``keys``."""
        return replace(self, tensors={key: info for key, info in self.tensors.items() if key in keys})


def outline_of(checkpoint: Checkpoint) -> Outline:
    """Return the outline of an open checkpoint."""
    stripped = [f"stripped {', '.join(checkpoint.stripped)} from the keys of {checkpoint.path}"]
    notes = (*checkpoint.notes, *(stripped if checkpoint.stripped else []))
    codes = checkpoint.codes
    said = checkpoint.quantisation if codes else {}
    coded = {one.codes: (one.method, one.name) for one in codes.tensors if one.codes} if said else {}
    return Outline(checkpoint.path, dict(checkpoint.items()), notes, coded, said)


def outline_from_plain(data: Any) -> Outline:
    """Return the outline that plain data spells."""
    path, tensors, notes, coded, said = data
    found = {key: TensorInfo(dtype, shape) for key, dtype, shape in tensors}
    return Outline(path, found, tuple(notes), {key: (method, name) for key, (method, name) in coded.items()}, said)
