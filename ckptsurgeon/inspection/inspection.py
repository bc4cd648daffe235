"""What ``inspect`` finds: every tensor of a checkpoint and what lies beside them, as plain data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from ..checkpoint import Checkpoint, Extra
from ..composition import leaves
from ..keys import KeyMatcher, KeyPattern, unmatched
from ..notebook import InNotebooks
from ..tensors import TensorInfo, alias_groups

if TYPE_CHECKING:
    from .stats import Stats

__all__ = ["Inspection", "inspection_of"]


@dataclass(frozen=True)
class Inspection(InNotebooks):
    """A checkpoint as its headers describe it. ``nbytes_files`` is the size of its files in bytes."""

    path: str
    format: str
    root: str
    passed: tuple[str, ...]
    stripped: tuple[str, ...]
    tensors: Mapping[str, TensorInfo]
    ties: Mapping[str, str]
    extras: tuple[Extra, ...]
    metadata: Mapping[str, str]
    notes: tuple[str, ...]
    nbytes_files: int
    made_by_us: bool
    stats: Mapping[str, Stats | None] | None = None

    @property
    def parameters(self) -> int:
        """Elements of distinct floating tensors, tied ones once."""
        return sum(info.parameters for key, info in self.tensors.items() if key not in self.ties)

    @property
    def nbytes(self) -> int:
        """Bytes of distinct tensors, tied ones once."""
        return sum(info.nbytes for key, info in self.tensors.items() if key not in self.ties)

    def to_json(self) -> dict[str, Any]:
        """Return the inspection as plain data."""
        return {
            "kind": "ckpt.inspect",
            "version": 1,
            "path": self.path,
            "format": self.format,
            "root": self.root,
            "stripped": list(self.stripped),
            "tensors": [
                {
                    "key": key,
                    "dtype": info.dtype,
                    "shape": list(info.shape),
                    "nbytes": info.nbytes,
                    "file": ", ".join(dict.fromkeys(one.storage.file for one in leaves(info) if one.storage)),
                    "tied_to": self.ties.get(key),
                    "opaque": info.opaque or None,
                    **self._stats_json(key),
                }
                for key, info in self.tensors.items()
            ],
            "extras": [{"key": extra.key, "type": extra.type, "value": extra.value} for extra in self.extras],
            "totals": {"tensors": len(self.tensors), "parameters": self.parameters, "nbytes": self.nbytes},
            "other_roots": list(self.passed),
            "metadata": dict(self.metadata),
            "notes": list(self.notes),
        }

    def _stats_json(self, key: str) -> dict[str, Any]:
        if self.stats is None:
            return {}
        stats = self.stats[key]
        return {"stats": asdict(stats) if stats is not None else None}


def inspection_of(checkpoint: Checkpoint, include: Iterable[str] | None = (), *, stats: bool = False) -> Inspection:
    """Describe an open checkpoint; with ``stats`` read every value of the tensors described.

    Raises PatternError for a pattern that matches none of its keys.
    """
    keys = list(checkpoint)
    patterns = [KeyPattern(text) for text in ([include] if isinstance(include, str) else include or ())]
    if patterns:
        hits = KeyMatcher(patterns).hits(keys)
        for pattern, hit in zip(patterns, hits, strict=True):
            if not hit:
                raise unmatched(f"--include {pattern.text}", pattern, keys, "source")
        wanted = {key for hit in hits for key in hit}
        keys = [key for key in keys if key in wanted]
    tensors = {key: checkpoint[key] for key in keys}
    return Inspection(
        path=checkpoint.path,
        format=checkpoint.format,
        root=checkpoint.root,
        passed=checkpoint.passed,
        stripped=checkpoint.stripped,
        tensors=tensors,
        ties=alias_groups(tensors),
        extras=checkpoint.extras,
        metadata=checkpoint.metadata,
        notes=checkpoint.notes,
        nbytes_files=sum(file.size for file in checkpoint.files),
        made_by_us=checkpoint.recipe is not None,
        stats=_stats(checkpoint, tensors) if stats else None,
    )


def _stats(checkpoint: Checkpoint, tensors: Mapping[str, TensorInfo]) -> dict[str, Stats | None]:
    from ..engine import fetch_keys
    from .stats import stats_of

    fetch_keys(checkpoint, tensors)
    return {key: stats_of(checkpoint, info) for key, info in tensors.items()}
