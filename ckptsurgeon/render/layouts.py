"""Shows the layouts that are known, and the layout of a checkpoint."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.text import Text

from ..analysis.known_layouts import KnownFamily, KnownLayouts
from ..util.text import escape, listing
from .columns import Columns

__all__ = ["layouts_view"]


def layouts_view(found: KnownLayouts, *, every: bool = False) -> RenderableType:
    """Return a table of families and layouts.

    For a checkpoint, return its layout and the layouts to which it can be converted. If ``every`` is true, each layout
    has a row, with the code that it was compared with.
    """
    if not found.checkpoint and every:
        width = max((len(row.name) for family in found.families for row in family.layouts), default=0)
        return Group(*(part for family in found.families for part in _whole(family, width)))
    if not found.checkpoint:
        return Columns([[one.name, ", ".join(row.name for row in one.layouts)] for one in found.families])
    if not found.found:
        if found.nearest:
            return Text(f"{escape(found.checkpoint)}: the layout is not known; {found.nearest}")
        known = listing([family.name for family in found.families], len(found.families), where="")
        return Text(f"{escape(found.checkpoint)}: the layout is not known; known families: {known}")
    lines = []
    for one in found.found:
        lines.append(Text(f"{escape(found.checkpoint)}: layout {one.layout} of {one.family}"))
        lines += [Text(f"  ckpt convert {escape(found.checkpoint)} --layout {name} -o OUT") for name in one.targets]
        if not one.targets:
            lines.append(Text(f"  no other layout: {one.why}" if one.why else "  it has no other layout"))
    return Group(*lines)


def _whole(family: KnownFamily, width: int) -> Iterator[RenderableType]:
    """Yield the name of a family, and a table of its layouts, whose names are padded to ``width`` characters."""
    yield Text(f"  {family.name}", style="bold")
    yield Columns(
        [[row.name.ljust(width), f"{row.library}; compared with {row.tested}"] for row in family.layouts], indent=4
    )
