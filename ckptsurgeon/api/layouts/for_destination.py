"""Finds the change of layout that a source of a transplant needs, by comparing its keys with the destination's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from ...checkpoint.checkpoint import Checkpoint
from ...planning.keys.renaming import rename
from ...planning.keys.rules import parse_rule
from ...planning.layouts.conversion import LayoutConversion, conversion
from ...planning.layouts.layout import Family, Layout, Numbers
from ...planning.layouts.recognise import recognised
from ...planning.target import KnownLayout
from ...tensors.info import TensorInfo
from ..inputs.operations import OperatedCheckpoint
from .changed_layout import changed_layout, said_of
from .named_layout import AUTO, KEEP, TRANSFORMERS
from .settings import settings_of

__all__ = ["layout_for", "layouts_between"]


def layout_for(
    name: str,
    source: OperatedCheckpoint,
    wanted: Mapping[str, TensorInfo],
    config: Callable[[], Mapping[str, Any]],
    theirs: Callable[[], Mapping[str, Any]],
    heads: str = "",
    *,
    reads_older: bool = False,
) -> KnownLayout | None:
    """Return the operations and new names that give a source the layout ``name``; None if no change is needed.

    ``wanted`` are the tensors of the destination. If ``name`` is "auto", the source gets the layout of the destination,
    if both are networks of one known family. ``config`` is a function that returns the fields of the source's
    configuration, and ``theirs`` returns those of the destination's. ``heads`` is the value of ``--heads``. If
    ``reads_older`` is true, the destination's ``from_pretrained`` itself converts older layouts of transformers, so
    ckpt does not convert them. Raises the errors of ``changed_layout``.
    """
    if name == KEEP:
        return None
    checkpoint = source.checkpoint
    if name != AUTO:
        return _known(changed_layout(name, source, settings_of(checkpoint, config(), heads)))
    found = layouts_between(checkpoint, wanted, reads_older=reads_older)
    if found is None:
        return None
    family, here, there = found
    settings, notes = _with_numbers(settings_of(checkpoint, config(), heads), theirs(), family, checkpoint)
    made = conversion(family, here, [there], source.derived, settings, checkpoint.path, is_part=True)
    return _known(replace(made, notes=(*made.notes, *(notes if made.change.operations else ()))))


def _with_numbers(
    ours: Mapping[str, Any], theirs: Mapping[str, Any], family: Family, checkpoint: Checkpoint
) -> tuple[Mapping[str, Any], list[str]]:
    """Return the fields of the source's configuration (``ours``) with numbers of heads, and notes.

    If ``ours`` has no numbers of heads, they are taken from ``theirs``, the fields of the destination's configuration.
    """
    stated, there = family.numbers(checkpoint, ours), family.numbers({}, theirs)
    if there and not stated:
        return {**theirs, **ours}, [
            f"the source does not state its numbers of heads, so those of the destination are used: {_said(there)}"
        ]
    if there and stated != there:
        return ours, [f"the source has other numbers of heads ({_said(stated)}) than the destination ({_said(there)})"]
    return ours, []


def _said(numbers: Numbers) -> str:
    return "/".join(map(str, dict.fromkeys(numbers.values())))


def layouts_between(
    source: Mapping[str, TensorInfo], wanted: Mapping[str, TensorInfo], *, reads_older: bool = False
) -> tuple[Family, Layout, Layout] | None:
    """Return (family, layout of ``source``, layout of ``wanted``); None if the layouts are equal or not known.

    ``reads_older`` is as in ``layout_for``.
    """
    if _shapes(source) == _shapes(wanted):
        return None  # both have the same layouts
    there = recognised(wanted)
    both = [
        (family, here, target)
        for family, here in (recognised(source) if there else ())
        for other, target in there
        if other is family and target.name != here.name and not (reads_older and _is_older(here, target))
    ]
    return both[0] if len(both) == 1 else None


def _shapes(tensors: Mapping[str, TensorInfo]) -> dict[str, tuple[int, ...]]:
    return {key: info.shape for key, info in tensors.items()}


def _is_older(here: Layout, target: Layout) -> bool:
    """Return whether transformers itself converts the first layout to the second when it loads a checkpoint."""
    return here.name == TRANSFORMERS and target.library.startswith(TRANSFORMERS)


def _known(found: LayoutConversion) -> KnownLayout | None:
    if found.source is found.target:
        return None
    change = found.change
    renaming = rename([*found.derived.tensors], [parse_rule(rule) for rule in change.rules])
    names = {key: new[0] for key, new in renaming.names.items() if new[0] != key}
    notes = (said_of(found), *found.notes)
    return KnownLayout(change.operations, names, f"layout {found.source.name}", notes=notes, derived=found.derived)
