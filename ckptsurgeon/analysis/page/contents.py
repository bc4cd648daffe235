"""The data of a page, as plain data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from itertools import islice
from typing import TYPE_CHECKING, Any

from ...planning.recipe import Recipe
from ...tensors.info import TensorInfo
from ...util.brief import Brief
from ...util.text import natural_key
from ...util.version import __version__
from ..compare.difference import Difference
from ..inspection import Inspection
from .columns import Table, difference_of, figures_of, rows_of_both
from .html import LISTED, brief
from .receipt import receipt_of
from .runs import Run

if TYPE_CHECKING:
    from ..stats import Stats

__all__ = ["Page", "PageContents", "contents_of"]

# The result of ``view``.


@dataclass(frozen=True, repr=False)
class Page(Brief):
    """A page as HTML, and its path if it was written; ``tensors`` counts its rows."""

    html: str = field(repr=False)
    tensors: int
    output: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def nbytes(self) -> int:
        """The size of the page in bytes."""
        return len(self.html.encode("utf-8", "surrogatepass"))

    def to_json(self) -> dict[str, Any]:
        """Return the page's path, size and number of tensors as plain data, without the HTML."""
        return {
            "kind": "ckpt.view",
            "version": 1,
            "output": self.output,
            "tensors": self.tensors,
            "nbytes": self.nbytes,
            "notes": list(self.notes),
        }

    def _repr_html_(self) -> str:
        """Return the page in a frame, for notebooks."""
        return f'<iframe srcdoc="{escape(self.html)}" sandbox="allow-scripts" width="100%" height="640"></iframe>'


@dataclass(frozen=True)
class PageContents:
    """The contents of a page; for two checkpoints, ``second`` and their difference are set too.

    ``histograms`` are counts by key. If there are two checkpoints, histograms and statistics are the second's.
    """

    inspection: Inspection | None
    second: Inspection | None = None
    difference: Difference | None = None
    recipe: Recipe | None = None
    run: Run | None = None
    histograms: Mapping[str, Sequence[int]] = field(default_factory=dict)


def contents_of(shown: PageContents) -> dict[str, Any]:
    """Return the data of a page."""
    about = [one for one in (shown.inspection, shown.second) if one is not None]
    rows = _rows(shown)
    table = Table(rows, _parameters(shown))
    data: dict[str, Any] = {
        "made": f"ckptsurgeon {__version__}",
        "sources": [_source(one) for one in about],
        "run": shown.run.to_json() if shown.run is not None else None,
        "receipt": receipt_of(shown.recipe, rows) if shown.recipe is not None else None,
        "difference": None,
        "figures": None,
    }
    if shown.difference is not None and shown.inspection is not None:
        data["difference"] = difference_of(shown.difference, shown.inspection.tensors, table)
    stats = _stats(about)
    if stats is not None:
        data["figures"] = figures_of(stats, shown.histograms, table.places)
    return {**data, "tensors": table.to_json(_ties(shown))}


def _rows(shown: PageContents) -> dict[str, TensorInfo]:
    """Return the tensors of a page in natural order: ``layers.2`` before ``layers.10``."""
    tensors: dict[str, TensorInfo] = {}
    if shown.inspection is not None:
        tensors |= shown.inspection.tensors
    if shown.second is not None and shown.difference is not None:
        wanted = rows_of_both(shown.difference, tensors, shown.second.tensors)
        tensors = {key: info for key, info in {**tensors, **shown.second.tensors}.items() if key in wanted}
    return {key: tensors[key] for key in sorted(tensors, key=natural_key)}


def _parameters(shown: PageContents) -> Callable[[str, TensorInfo], int]:
    """Return a function that gives the parameters of a tensor: of the second checkpoint, if there are two."""
    last = shown.second or shown.inspection
    return last.codes.parameters if last is not None else lambda key, info: info.parameters


def _ties(shown: PageContents) -> dict[str, str]:
    """Return the ties of the rows: if there are two checkpoints, the second's, and the first's of removed tensors."""
    first, second = shown.inspection, shown.second
    if first is None or second is None:
        return dict(first.ties) if first is not None else {}
    gone = {key: owner for key, owner in first.ties.items() if not {key, owner} & second.tensors.keys()}
    return {**gone, **second.ties}


def _stats(about: Sequence[Inspection]) -> Mapping[str, Stats | None] | None:
    found = [one.stats for one in about if one.stats is not None]
    return {key: stats for one in found for key, stats in one.items()} if found else None


def _source(one: Inspection) -> dict[str, Any]:
    return {
        "path": one.path,
        "format": one.format,
        "root": one.root,
        "other_roots": list(one.passed[:LISTED]),
        "stripped": list(one.stripped),
        "nbytes_files": one.nbytes_files,
        "tensors": len(one.tensors),
        "parameters": one.parameters_at_least,
        "counted": one.parameters is not None,
        "nbytes": one.nbytes,
        "extras": [[brief(extra.key), brief(extra.type), _said(extra.value)] for extra in one.extras[:LISTED]],
        "metadata": [[brief(key), brief(value)] for key, value in islice(one.metadata.items(), LISTED)],
        "more": {"extras": len(one.extras[LISTED:]), "metadata": max(0, len(one.metadata) - LISTED)},
        "notes": [brief(note) for note in one.notes[:LISTED]],
    }


def _said(value: object) -> str | None:
    """Return a plain value as a text, None for None."""
    return None if value is None else brief(value if isinstance(value, str) else str(value))
