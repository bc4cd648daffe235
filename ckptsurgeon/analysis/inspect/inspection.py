"""What ``inspect`` finds: every tensor of a checkpoint and what lies beside them, as plain data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from ...checkpoint.checkpoint import Checkpoint
from ...checkpoint.extras import Extra
from ...planning.keys.choosing import chosen_keys
from ...tensors.composition import leaves
from ...tensors.encodings._codes import NO_CODES, Codes
from ...tensors.info import TensorInfo, alias_groups
from ...util.notebook import InNotebooks
from ...util.text import count, escape, human_bytes
from .adapter import AdapterSettings
from .summary import StatsSummary, summary_of

if TYPE_CHECKING:
    from .stats import Stats

__all__ = ["Inspection", "inspection_of"]


@dataclass(frozen=True, repr=False)
class Inspection(InNotebooks):
    """A checkpoint as its headers describe it.

    ``nbytes_files`` is the size of its files in bytes; ``codes`` has the tensors that are stored quantised; ``adapter``
    is what the configuration beside it says, where it is one of PEFT's adapters.
    """

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
    codes: Codes = NO_CODES
    adapter: AdapterSettings | None = None

    def __repr__(self) -> str:
        number, size = count(len(self.tensors), "tensor"), human_bytes(self.nbytes_files)
        return f"<Inspection {escape(self.path)}: {self.format}, {number}, {size}>"

    @property
    def parameters(self) -> int | None:
        """Elements of distinct floating tensors, tied ones once; of quantised ones what their codes stand for.

        None if headers do not tell what the codes of some encoding stand for.
        """
        return self.parameters_at_least if all(map(self.codes.is_counted, self.tensors)) else None

    @property
    def parameters_at_least(self) -> int:
        """The parameters, or a number that there are at least, if headers do not tell more."""
        return sum(self.codes.parameters(key, info) for key, info in self.tensors.items() if key not in self.ties)

    @property
    def nbytes(self) -> int:
        """Bytes of distinct tensors, tied ones once."""
        return sum(info.nbytes for key, info in self.tensors.items() if key not in self.ties)

    @property
    def summary(self) -> StatsSummary | None:
        """What the statistics of all tensors come to, tied ones once; None if there are none."""
        if self.stats is None:
            return None
        return summary_of({key: stats for key, stats in self.stats.items() if key not in self.ties}, self.tensors)

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
            "quantised": [
                {
                    "key": one.name,
                    "method": one.method,
                    "parameters": one.parameters,
                    "parameters_at_least": one.at_least,
                    "shape": list(one.shape) if one.shape is not None else None,
                    "parts": list(one.keys),
                }
                for one in self.codes.tensors
            ],
            "summary": asdict(self.summary) if self.summary is not None else None,
            "totals": {
                "tensors": len(self.tensors),
                "parameters": self.parameters,
                "parameters_at_least": self.parameters_at_least,
                "nbytes": self.nbytes,
            },
            "other_roots": list(self.passed),
            "adapter": self.adapter.to_json() if self.adapter is not None else None,
            "metadata": dict(self.metadata),
            "notes": list(self.notes),
        }

    def _stats_json(self, key: str) -> dict[str, Any]:
        if self.stats is None:
            return {}
        stats = self.stats[key]
        return {"stats": asdict(stats) if stats is not None else None}


def inspection_of(
    checkpoint: Checkpoint,
    include: Iterable[str] | None = (),
    exclude: Iterable[str] | None = (),
    *,
    stats: bool = False,
) -> Inspection:
    """Describe an open checkpoint; with ``stats`` read every value of the tensors described, but for codes.

    Raises PatternError for a pattern that matches none of its keys.
    """
    chosen = chosen_keys(list(checkpoint), include, exclude)
    tensors = {key: checkpoint[key] for key in chosen.keys}
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
        notes=(*checkpoint.notes, *chosen.notes),
        nbytes_files=sum(file.size for file in checkpoint.files),
        made_by_us=checkpoint.recipe is not None,
        stats=_stats(checkpoint, tensors) if stats else None,
        codes=checkpoint.codes.only(tensors),
    )


def _stats(checkpoint: Checkpoint, tensors: Mapping[str, TensorInfo]) -> dict[str, Stats | None]:
    from ...engine.prefetch import fetch_keys
    from .stats import stats_of

    numbers = [key for key, info in tensors.items() if checkpoint.codes.has_numbers(key, info)]
    fetch_keys(checkpoint, numbers)
    found = {key: stats_of(checkpoint, tensors[key]) for key in numbers}
    return {key: found.get(key) for key in tensors}
