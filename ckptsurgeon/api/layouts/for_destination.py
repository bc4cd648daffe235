"""Finds the change of layout that a source of a transplant needs, by comparing its keys with the destination's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ...checkpoint.checkpoint import Checkpoint
from ...planning.keys.renaming import rename
from ...planning.keys.rules import parse_rule
from ...planning.layouts.conversion import LayoutConversion, conversion
from ...planning.layouts.layout import Family, Layout
from ...planning.layouts.recognise import recognised
from ...planning.operations.operation import parse_operations
from ...planning.operations.perform import perform
from ...planning.target import KnownLayout
from ...tensors.info import TensorInfo
from .layout_named import changed_layout, said_of
from .named_layout import AUTO, KEEP, TRANSFORMERS
from .settings import settings_of

__all__ = ["layout_for", "layouts_between"]


def layout_for(
    name: str,
    checkpoint: Checkpoint,
    wanted: Mapping[str, TensorInfo],
    config: Callable[[], Mapping[str, Any]],
    heads: str = "",
    *,
    reads_older: bool = False,
) -> KnownLayout | None:
    """Return the operations and new names that give a source the layout ``name``; None if nothing is to be changed.

    ``name`` "auto" is the layout of the destination, whose tensors are ``wanted``, if both are of one family and their
    layouts differ. ``config`` returns the fields of the configuration, ``heads`` is the value of ``--heads``. If
    ``reads_older`` is true, the destination itself converts what files in the layout of transformers have, so nothing
    is done for them. Raises the errors of ``changed_layout``.
    """
    if name == KEEP:
        return None
    if name != AUTO:
        return _known(changed_layout(name, checkpoint, settings_of(checkpoint, config(), heads)), checkpoint)
    found = layouts_between(checkpoint, wanted, reads_older=reads_older)
    if found is None:
        return None
    family, here, there = found
    settings = settings_of(checkpoint, config(), heads)
    return _known(conversion(family, here, [there], checkpoint, settings, checkpoint.path, is_part=True), checkpoint)


def layouts_between(
    source: Mapping[str, TensorInfo], wanted: Mapping[str, TensorInfo], *, reads_older: bool = False
) -> tuple[Family, Layout, Layout] | None:
    """Return the family of two networks, and their layouts if these differ; None if it is not known or they do not.

    ``reads_older`` is as in ``layout_for``.
    """
    there = recognised(wanted)
    both = [
        (family, here, target)
        for family, here in (recognised(source) if there else ())
        for other, target in there
        if other is family and target.name != here.name and not (reads_older and here.name == TRANSFORMERS)
    ]
    return both[0] if len(both) == 1 else None


def _known(found: LayoutConversion, checkpoint: Checkpoint) -> KnownLayout | None:
    if found.source is found.target:
        return None
    change = found.change
    keys = list(perform([checkpoint], parse_operations([*change.operations]))[0].tensors)
    renaming = rename(keys, [parse_rule(rule) for rule in change.rules])
    names = {key: new[0] for key, new in renaming.names.items() if new[0] != key}
    return KnownLayout(change.operations, names, f"layout {found.source.name}", notes=(said_of(found), *found.notes))
