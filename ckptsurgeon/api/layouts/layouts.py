"""``layouts``: lists the layouts that are known, and says which of them a checkpoint has."""

from __future__ import annotations

from ...analysis.known_layouts import KnownFamily, KnownLayouts, LayoutRow
from ...checkpoint.opening import open_checkpoint
from ...planning.layouts.recognise import families, recognised
from ..inputs.argument_types import CheckpointLike, checked

__all__ = ["layouts"]


@checked
def layouts(source: CheckpointLike | None = None, *, root: str | None = None) -> KnownLayouts:
    """Return the families of networks whose layouts are known, and the layout of a checkpoint, if one is given.

    Each layout has the name that ``convert(…, layout=NAME)`` accepts. The layout of ``source`` is recognised by its
    keys; only its header is read. ``root`` is the dotted path of its state dict. Raises what ``open_checkpoint``
    raises.
    """
    known = tuple(
        KnownFamily(
            family.name,
            tuple({one.name: LayoutRow(one.name, one.library, one.tested) for one in family.layouts}.values()),
        )
        for family in families()
    )
    if source is None:
        return KnownLayouts(known)
    with open_checkpoint(source, root) as checkpoint:
        found = tuple(dict.fromkeys((family.name, layout.name) for family, layout in recognised(checkpoint)))
        return KnownLayouts(known, checkpoint.path, found)
