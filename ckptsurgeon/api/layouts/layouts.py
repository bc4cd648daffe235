"""``layouts``: lists the known layouts, and recognises the layout of a checkpoint."""

from __future__ import annotations

from ...analysis.known_layouts import FoundLayout, KnownFamily, KnownLayouts, LayoutRow
from ...checkpoint.checkpoint import Checkpoint
from ...checkpoint.opening import open_checkpoint
from ...errors import PlanError
from ...planning.layouts.changes import UnknownNumberError
from ...planning.layouts.conversion import conversion
from ...planning.layouts.layout import Family, Layout
from ...planning.layouts.nearest import alone, nearest
from ...planning.layouts.recognise import families, recognised
from ...planning.operations.perform import DerivedSource
from ..inputs.argument_types import CheckpointLike, checked
from ..inputs.operations import operate
from ..model_folder.folder import model_folder
from .named_layout import settings_of
from .wrapped import without_wrappers

__all__ = ["layouts"]


@checked
def layouts(source: CheckpointLike | None = None, *, root: str | None = None) -> KnownLayouts:
    """Return the families of networks whose layouts are known, and the layout of a checkpoint, if one is given.

    Each layout has the name that ``convert(…, layout=NAME)`` accepts. The layout of ``source`` is recognised by its
    keys; only its header is read, and the result lists the layouts that it can be converted to. ``root`` is the dotted
    path of its state dict. Raises the errors of ``open_checkpoint``.
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
        network = without_wrappers(operate([checkpoint], ())[0]).operated.checkpoint
        found = {(family.name, layout.name): (family, layout) for family, layout in recognised(network)}
        rows = [_found(network, family, one) for family, one in found.values()]
        near = None if rows or alone(network) else nearest(network)
        text = near.text if near is not None else "" if rows else alone(network)
        return KnownLayouts(known, checkpoint.path, tuple(rows), text)


def _found(checkpoint: Checkpoint, family: Family, source: Layout) -> FoundLayout:
    """Return the layout of a checkpoint, with the other layouts to which all of its tensors can be converted."""
    whole = DerivedSource(dict(checkpoint))
    settings = settings_of(checkpoint, model_folder(checkpoint).config)
    found: list[str] = []
    why = ""
    for name in sorted({layout.name for layout in family.layouts if not layout.only_read} - {source.name}):
        try:
            conversion(family, source, family.named(name), whole, settings, checkpoint.path)
        except UnknownNumberError:  # the user may give the missing number
            pass
        except PlanError as error:
            why = why or error.message
            continue
        found.append(name)
    return FoundLayout(family.name, source.name, tuple(found), "" if found else why)
