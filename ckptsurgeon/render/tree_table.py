"""Shows the tree of a state dict as rows with aligned numbers."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest

from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from ..tensors.dtypes import DTYPES
from ..util.text import escape, human_bytes, human_count, shape_text
from .columns import hanging
from .tree import Branch

__all__ = ["TreeRow", "TreeTable", "fitting"]

ROWS = 36
"""The largest number of rows of the tree; deeper levels are folded."""
DEEPEST = 64
NARROW = 16
"""The smallest width of the column of dtypes and encodings; the largest is three tenths of the whole width."""
NAME = 400
"""The largest number of characters of a name that are shown."""


@dataclass(frozen=True)
class TreeRow:
    """One line of the tree: a module or a tensor.

    ``shapes`` and ``dtypes`` are printed after its name; the line is for ``times`` equal modules.
    """

    level: int
    branch: Branch
    shapes: list[str]
    dtypes: str
    times: int


def fitting(tree: Branch, depth: int | None) -> tuple[list[TreeRow], int]:
    """Return the rows of a tree down to ``depth`` levels, and the number of modules whose contents are not shown.

    If ``depth`` is None, there are as many levels as fit into ``ROWS`` rows.
    """
    if depth is not None:
        return list(_rows(tree, 0, depth)), _folded(tree, depth)
    chosen = 1
    for level in range(2, DEEPEST):
        if len(list(_rows(tree, 0, level))) > ROWS:
            break
        chosen = level
        if not _folded(tree, level):
            break
    return list(_rows(tree, 0, chosen)), _folded(tree, chosen)


def _folded(node: Branch, depth: int) -> int:
    """Return the number of modules, ``depth`` levels below ``node``, whose contents are not shown."""
    modules = [child for child in node.children.values() if child.info is None]
    if depth == 1:
        return sum(not child.is_leaf_module for child in modules)
    return sum(_folded(child, depth - 1) for child in modules if not child.is_leaf_module)


def _rows(
    node: Branch, level: int, depth: int, *, shown: frozenset[str] = frozenset(), times: int = 1
) -> Iterator[TreeRow]:
    """Yield the rows of a module's contents, down to ``depth`` levels.

    If the module represents ``times`` equal modules, the numbers are totals of all of them. Dtypes are printed only if
    they differ from ``shown``, the dtypes of the module. A tensor and its parts, such as its scales, share one row.
    """
    tensors = {child.name for child in node.children.values() if child.info is not None}
    for child in node.children.values():
        dtypes = _joined(child.dtypes) if child.dtypes != shown else ""
        small = child.is_leaf_module and (len(child.children) <= 3 or child.name in tensors)
        leaves = [child] if child.info is not None else list(child.children.values()) if small else []
        yield TreeRow(level, child, [_leaf(leaf, named=small) for leaf in leaves], dtypes, times)
        if not leaves and depth > 1:
            yield from _rows(child, level + 1, depth - 1, shown=child.dtypes, times=times * child.times)


def _joined(names: Collection[str]) -> str:
    """Return the sorted names of dtypes and encodings as one text; "; " separates them if one is of an encoding."""
    is_plain = all(one in DTYPES and DTYPES[one].kind != "quantized" for one in names)
    return (" " if is_plain else "; ").join(sorted(names))


def _leaf(leaf: Branch, *, named: bool) -> str:
    """Return the text of a tensor: its shape, after its name if ``named`` is True."""
    assert leaf.info is not None
    words = [escape(leaf.name, NAME)] if named else []
    words += [shape_text(leaf.info.meant_shape), *([f"[{leaf.info.opaque}]"] if leaf.info.opaque else [])]
    return " ".join(words)


class TreeTable:
    """A table of rows with numbers aligned at the right, for any width; long rows continue on further lines."""

    def __init__(self, rows: Sequence[TreeRow]) -> None:
        self._rows = rows

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        numbers = [_numbers(row) for row in self._rows]
        widths = [max((len(pair[i]) for pair in numbers), default=0) for i in (0, 1)]
        most = max((len(row.dtypes) for row in self._rows), default=0)
        dtypes = min(most, max(NARROW, options.max_width * 3 // 10))
        room = max(24, options.max_width - sum(widths) - 4 - (dtypes + 2 if dtypes else 0))
        longest = max((_length(row) for row in self._rows), default=0)
        room = min(room, longest)
        for row, (parameters, nbytes) in zip(self._rows, numbers, strict=True):
            first, *more = _wrapped(row, room)
            first.pad_right(room - first.cell_len)
            first.append(f"  {parameters:>{widths[0]}}")
            first.append(f"  {nbytes:>{widths[1]}}", style="dim")
            yield from _beside([first, *more], row.dtypes, room + sum(widths) + 6, dtypes)


def _beside(lines: Sequence[Text], dtypes: str, start: int, width: int) -> Iterator[Text]:
    """Yield ``lines`` with ``dtypes`` on their right, in a column of ``width`` cells that begins at ``start``."""
    kinds = hanging(Text(dtypes, "dim"), width, first=0, rest=0) if dtypes else []
    for line, kind in zip_longest(lines, kinds):
        made = Text() if line is None else line
        if kind is not None:
            made.pad_right(start - made.cell_len)
            made.append_text(kind)
        made.rstrip()
        yield made


def _numbers(row: TreeRow) -> tuple[str, str]:
    branch = row.branch
    if branch.info is not None and branch.info.numel and not branch.nbytes:
        return "tied", ""
    parameters = branch.parameters * row.times
    counted = f"{'≥' if branch.more else ''}{human_count(parameters)}" if parameters else "-"
    return counted, human_bytes(branch.nbytes * row.times)


def _words(row: TreeRow) -> list[Text]:
    name = Text(escape(row.branch.name, NAME), style="bold" if row.level == 0 else "")
    words = [name]
    if row.branch.times > 1:
        words.append(Text(f"x {row.branch.times}", style="green"))
    return [*words, *(Text(shape, style="cyan") for shape in row.shapes)]


def _length(row: TreeRow) -> int:
    return 2 * (row.level + 1) + sum(word.cell_len + 2 for word in _words(row)) - 2


def _wrapped(row: TreeRow, room: int) -> list[Text]:
    """Return a row's words, wrapped to lines of at most ``room`` cells."""
    indent = 2 * (row.level + 1)
    lines = [Text(" " * indent)]
    for word in _words(row):
        gap = 2 if lines[-1].cell_len > indent else 0
        if lines[-1].cell_len + gap + word.cell_len > room and lines[-1].cell_len > indent:
            indent, gap = min(2 * (row.level + 1) + 4, room // 2), 0
            lines.append(Text(" " * indent))
        lines[-1].append(" " * gap)
        first, *more = hanging(word, room, first=indent, rest=indent + 2)
        lines[-1].append_text(first[indent:])
        lines.extend(more)
    return lines
