"""Everything that a page shows, as plain data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..comparison import Difference
from ..inspection import Inspection
from ..recipe import Recipe
from ..tensors import TensorInfo
from ..text import natural_key
from ..version import __version__
from .differences import difference_of, rows_of_both
from .figures import figures_of
from .receipt import receipt_of
from .runs import Run
from .table import Table

if TYPE_CHECKING:
    from ..inspection.stats import Stats

__all__ = ["Shown", "contents_of"]

LONGEST = 2000
"""Characters of a text beside the tensors; a tokeniser in the metadata can have millions."""


@dataclass(frozen=True)
class Shown:
    """What is known of what a page is about; of two checkpoints ``second`` and how they differ are there too.

    ``histograms`` are counts by key, of the second where there are two, as are statistics.
    """

    inspection: Inspection | None
    second: Inspection | None = None
    difference: Difference | None = None
    recipe: Recipe | None = None
    run: Run | None = None
    histograms: Mapping[str, Sequence[int]] = field(default_factory=dict)


def contents_of(shown: Shown) -> dict[str, Any]:
    """Return the data of a page."""
    about = [one for one in (shown.inspection, shown.second) if one is not None]
    table = Table(_rows(shown))
    data: dict[str, Any] = {
        "made": f"ckptsurgeon {__version__}",
        "sources": [_source(one) for one in about],
        "run": shown.run.to_json() if shown.run is not None else None,
        "receipt": receipt_of(shown.recipe, table.places) if shown.recipe is not None else None,
        "difference": None,
        "figures": None,
    }
    if shown.difference is not None and shown.inspection is not None:
        data["difference"] = difference_of(shown.difference, shown.inspection.tensors, table)
    stats = _stats(about)
    if stats is not None:
        data["figures"] = figures_of(stats, shown.histograms, table.places)
    ties = {key: owner for one in about for key, owner in one.ties.items()}
    return {**data, "tensors": table.to_json(ties)}


def _rows(shown: Shown) -> dict[str, TensorInfo]:
    """Return the tensors of a page in natural order: ``layers.2`` before ``layers.10``."""
    tensors: dict[str, TensorInfo] = {}
    if shown.inspection is not None:
        tensors |= shown.inspection.tensors
    if shown.second is not None and shown.difference is not None:
        wanted = rows_of_both(shown.difference, tensors, shown.second.tensors)
        tensors = {key: info for key, info in {**tensors, **shown.second.tensors}.items() if key in wanted}
    return {key: tensors[key] for key in sorted(tensors, key=natural_key)}


def _stats(about: Sequence[Inspection]) -> Mapping[str, Stats | None] | None:
    found = [one.stats for one in about if one.stats is not None]
    return {key: stats for one in found for key, stats in one.items()} if found else None


def _source(one: Inspection) -> dict[str, Any]:
    return {
        "path": one.path,
        "format": one.format,
        "root": one.root,
        "other_roots": list(one.passed),
        "stripped": list(one.stripped),
        "nbytes_files": one.nbytes_files,
        "tensors": len(one.tensors),
        "parameters": one.parameters,
        "nbytes": one.nbytes,
        "extras": [[extra.key, extra.type, _brief(extra.value)] for extra in one.extras],
        "metadata": [[key, _brief(value)] for key, value in one.metadata.items()],
        "notes": list(one.notes),
    }


def _brief(value: Any) -> Any:
    """Return a value as a page shows it: a text, cut where it is long; None for none."""
    text = None if value is None else value if isinstance(value, str) else str(value)
    return text if text is None or len(text) <= LONGEST else f"{text[:LONGEST]}… ({len(text)} characters)"
