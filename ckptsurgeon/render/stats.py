"""Shows statistics of tensors: one line each, with aligned numbers."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING

from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.text import Text

from ..analysis.inspection import Inspection
from ..analysis.stats_summary import StatsSummary
from ..tensors.dtypes import DTYPES
from ..tensors.info import TensorInfo
from ..util.text import count, escape, human_count, listing
from .columns import hanging

if TYPE_CHECKING:
    from ..analysis.stats import Stats  # imports numpy

__all__ = ["stats_view"]

GAP = 2
ALWAYS = 5
"""The number of columns that are always shown, from mean to zeros.

Nan and inf are shown only if there are such values.
"""
TITLES = ("mean", "std", "min", "max", "zeros", "nan", "inf")


def stats_view(inspection: Inspection) -> Group:
    """Return the statistics of each tensor on one line, or the reason why it has none, and then a summary."""
    table = _Table({escape(_name(inspection, key), 1000): _cells(inspection, key) for key in inspection.stats or {}})
    summary = inspection.summary
    if summary is None:
        return Group(table)
    extremes = _extremes(inspection)
    between = [Text(f"  values: {extremes}")] if extremes else []
    return Group(table, *between, _summary(summary, inspection.damaged))


def _extremes(inspection: Inspection) -> str:
    """Return the smallest and the largest finite value of all tensors: ``-0.43 to 1.2``; '' if there are none."""
    found = [one for key in inspection.stats or {} if (one := _stats_of(inspection, key)) is not None]
    lows, highs = [one.min for one in found if one.min is not None], [one.max for one in found if one.max is not None]
    return f"{min(lows):.4g} to {max(highs):.4g}" if lows and highs else ""


def _stats_of(inspection: Inspection, key: str) -> Stats | None:
    """Return the statistics of a tensor; for the codes of a quantised weight, the statistics of the decoded values.

    Returns None if the codes were not decoded.
    """
    coded = inspection.codes.by_key.get(key)
    if coded is not None and key == coded.codes:
        return inspection.decoded.get(coded.name)
    return (inspection.stats or {})[key]


def _name(inspection: Inspection, key: str) -> str:
    """Return the name of a row: the name of the weight if ``key`` has decoded codes, else ``key``."""
    coded = inspection.codes.by_key.get(key)
    return coded.name if coded is not None and key == coded.codes and coded.name in inspection.decoded else key


def _summary(found: StatsSummary, damaged: Collection[str]) -> Text:
    """Return the totals; ``damaged`` are the names of weights that cannot be decoded because of their values."""
    decoded = f" and {count(found.decoded, 'decoded weight')}" if found.decoded else ""
    words = [f"{count(found.measured, 'tensor')}{decoded} of {human_count(found.elements)} elements"]
    words += [f"{found.nan} NaN", f"{found.inf} Inf", f"{human_count(found.zeros)} zeros"]
    words += [f"{found.not_measured} not measured"] if found.not_measured else []
    names = [name for name in found.unsound if name not in damaged]
    where = f"  in {listing(names)}" if names else ""
    where += f"  not decoded: {listing([*damaged])}" if damaged else ""
    return Text(f"  {', '.join(words)}{where}", style="bold red" if found.unsound else "bold")


def _cells(inspection: Inspection, key: str) -> list[str] | str:
    """Return the numbers of a tensor, or the reason why it has none."""
    stats, coded = _stats_of(inspection, key), inspection.codes.by_key.get(key)
    if stats is None and coded is not None:
        why = inspection.undecoded[coded.name] if coded.name in inspection.damaged and key == coded.codes else ""
        return f"quantised: {escape(coded.method)}{f', not decoded: {why}' if why else ''}"
    if stats is None:
        return _why_not(inspection.tensors[key])
    numbers = [f"{value:.4g}" if value is not None else "-" for value in (stats.mean, stats.std, stats.min, stats.max)]
    return [*numbers, *map(str, (stats.zeros, stats.nan, stats.inf))]


def _why_not(info: TensorInfo) -> str:
    if info.opaque:
        return escape(info.opaque)
    dtype = DTYPES[info.dtype]
    is_packed = dtype.values > 1 or dtype.bits % 8
    return f"{info.dtype}: {'several values in one byte' if is_packed else 'its values are not plain numbers'}"


class _Table:
    """Keys and numbers on one line if they fit, otherwise each key on a separate line."""

    def __init__(self, rows: Mapping[str, list[str] | str]) -> None:
        self._rows = rows
        numbers = [cells for cells in rows.values() if not isinstance(cells, str)]
        shown = [i for i in range(len(TITLES)) if i < ALWAYS or any(cells[i] != "0" for cells in numbers)]
        self._shown = shown
        self._widths = [max([len(TITLES[i]), *(len(cells[i]) for cells in numbers)]) for i in shown]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        longest = max((Text(key).cell_len for key in self._rows), default=0)
        needed = sum(self._widths) + GAP * len(self._widths)
        beside = 2 + longest + needed <= options.max_width
        start = 2 + longest if beside else 4
        yield self._aligned(Text(" " * start), [TITLES[i] for i in self._shown], dim=True)
        for key, cells in self._rows.items():
            line = Text(f"  {key}", no_wrap=True, overflow="ignore")
            if not beside:
                yield line
                line = Text(" " * start)
            else:
                line.pad_right(start - line.cell_len)
            yield from self._row(line, cells, options.max_width)

    def _row(self, line: Text, cells: list[str] | str, width: int) -> Iterator[Text]:
        if not isinstance(cells, str):
            yield self._aligned(line, [cells[i] for i in self._shown])
            return
        start = line.cell_len + GAP
        first, *more = hanging(Text(cells, "dim"), max(width, start + 24), first=start, rest=start)
        line.append_text(first[start - GAP :])
        yield line
        yield from more

    def _aligned(self, line: Text, cells: list[str], *, dim: bool = False) -> Text:
        for i, cell, width in zip(self._shown, cells, self._widths, strict=True):
            red = i >= ALWAYS and cell not in ("0", TITLES[i])
            line.append(" " * (GAP + width - len(cell)))
            line.append(cell, style="red" if red else "dim" if dim else "")
        return line
