"""Recognises the layouts of the sources of a transplant, and converts the sources to the destination's layout."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from ...checkpoint.checkpoint import Checkpoint
from ...errors import PlanError
from ...planning.keys.renaming import rename
from ...planning.keys.rules import parse_rule
from ...planning.layouts.layout import Family, Layout, Numbers
from ...planning.layouts.recognise import recognised as known_networks
from ...planning.operations.conversions import CONVERSIONS, Conversion
from ...planning.operations.perform import DerivedSource
from ...planning.plan.files import renamed_by_spec
from ...planning.plan.plan import Plan
from ...planning.target import KnownLayout, Recognise, TargetSpec
from ...storage.read.spec import SourceSpec
from ...tensors.info import TensorInfo
from ...util.text import count, grouped
from ..inputs.operations import OperatedCheckpoint, operate
from ..layouts.changed_layout import changed_layout, said_of
from ..layouts.named_layout import AUTO, KEEP, TRANSFORMERS, settings_of
from ..layouts.wrapped import Unwrapped, without_wrappers
from ..model_folder.folder import ModelFolder, model_folder, model_folder_at

if TYPE_CHECKING:
    from ...planning.layouts.conversion import LayoutConversion

__all__ = ["KnownSource", "check_converted", "layouts_between", "recognised"]

# Sources after the user's operations, and then after the operations for their recognised layout.

LOST = "{names} must be converted from the older layout of the source, but {why}"


@dataclass(frozen=True)
class KnownSource:
    """A source after all operations on its tensors, and the layout (such as older names) that was recognised in it.

    The layout says how the source's tensors are renamed and converted to become the destination's tensors.
    """

    operated: OperatedCheckpoint
    recognised: KnownLayout = field(default_factory=KnownLayout)


def recognised(
    raw: Sequence[Checkpoint],
    rows: Sequence[Mapping[str, Any]],
    specs: Sequence[SourceSpec],
    target: TargetSpec,
    layout: str,
    heads: str,
) -> list[KnownSource]:
    """Return the sources ``raw`` after the operations ``rows``, each with the layout that is then recognised in it.

    ``specs`` says, for each source, from which module the tensors are read and into which module they go. ``layout`` is
    the layout to which they are converted ("auto" means the destination's layout), and ``heads`` is the value of
    ``--heads``.
    """
    operated = operate(raw, rows) if rows else [OperatedCheckpoint(one, one, DerivedSource(dict(one))) for one in raw]
    return [
        _recognised(checkpoint, one, spec, target, layout, heads)
        for checkpoint, one, spec in zip(raw, operated, specs, strict=True)
    ]


def _recognised(
    raw: Checkpoint, one: OperatedCheckpoint, spec: SourceSpec, target: TargetSpec, layout: str, heads: str
) -> KnownSource:
    found = _layout_for(
        layout, one, target.tensors, lambda: model_folder(raw).config, lambda: _config_of(target), heads,
        reads_older=target.recognise is not None,
    )  # fmt: skip
    recognise = target.recognise or _bundled(target.tensors)
    if found is None and recognise is None:
        return KnownSource(one)
    if found is None:
        assert recognise is not None
        found = recognise(one.checkpoint)
    one = one.further(found.operations, found.derived)
    return KnownSource(one, _under(found, one.checkpoint, spec, target) if spec.src or spec.dst else found)


def _config_of(target: TargetSpec) -> Mapping[str, Any]:
    """Return the fields of a destination's config.json; {} if it has none."""
    beside = model_folder_at(target.keeps).config if os.path.isdir(target.keeps) else {}
    return ModelFolder("", target.companions).config or beside


def _layout_for(
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
    if name == KEEP or (name == AUTO and _have_same_inputs(source.checkpoint, wanted)):
        return None
    plain = without_wrappers(source)
    source, checkpoint = plain.operated, plain.operated.checkpoint
    if name != AUTO:
        return _known(changed_layout(name, source, settings_of(checkpoint, config(), heads)), plain)
    found = layouts_between(checkpoint, wanted, reads_older=reads_older)
    if found is None:
        return None
    family, here, there = found
    settings, notes = _with_numbers(settings_of(checkpoint, config(), heads), theirs(), family, checkpoint)
    from ...planning.layouts.conversion import conversion

    made = conversion(family, here, [there], source.derived, settings, checkpoint.path, is_part=True)
    return _known(replace(made, notes=(*made.notes, *(notes if made.change.operations else ()))), plain)


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

    ``reads_older`` is as in ``_layout_for``.
    """
    if _have_same_inputs(source, wanted):
        return None
    there = known_networks(wanted)
    both = [
        (family, here, target)
        for family, here in (known_networks(source) if there else ())
        for other, target in there
        if other.is_for(family) and target.name != here.name and not (reads_older and _is_older(here, target))
    ]
    return both[0] if len(both) == 1 else None


def _have_same_inputs(source: Mapping[str, TensorInfo], wanted: Mapping[str, TensorInfo]) -> bool:
    """Return whether two networks have the same keys, and tensors that differ at most in their first dimension.

    The first dimension is the number of outputs: classes, or rows of an embedding. Layouts with the same keys differ in
    the sizes of inputs; if only numbers of outputs differ, the source is another model in the same layout.
    """
    return source.keys() == wanted.keys() and all(
        info.shape[1:] == wanted[key].shape[1:] for key, info in source.items()
    )


def _is_older(here: Layout, target: Layout) -> bool:
    """Return whether transformers itself converts the first layout to the second when it loads a checkpoint."""
    return here.name == TRANSFORMERS and target.library.startswith(TRANSFORMERS)


def _known(found: LayoutConversion, plain: Unwrapped) -> KnownLayout | None:
    if found.source is found.target:
        return None
    change = found.change
    renaming = rename([*found.derived.tensors], [parse_rule(rule) for rule in change.rules])
    names = {key: new[0] for key, new in renaming.names.items() if new[0] != key}
    notes = (said_of(found), *plain.notes, *found.notes)
    return KnownLayout(
        (*plain.rows, *change.operations), names, f"layout {found.source.name}", notes=notes, derived=found.derived
    )


def _bundled(destination: Collection[str]) -> Recognise | None:
    """Return a function that finds the conversion of a source to the destination's layout.

    The result is None if no conversion makes the destination's keys.
    """
    fitting = [one for one in CONVERSIONS.values() if all(key in destination for key in one.gives)]
    return partial(_converted, fitting) if fitting else None


def _converted(conversions: Sequence[Conversion], source: Mapping[str, TensorInfo]) -> KnownLayout:
    for one in conversions:
        if one.converts(source):
            number = count(len(one.rows), "operation")
            note = f"the source is {one.description} ({number}, the same as --ruleset {one.name})"
            return KnownLayout(operations=one.rows, notes=(note,))
    return KnownLayout()


def _under(found: KnownLayout, source: Checkpoint, spec: SourceSpec, target: TargetSpec) -> KnownLayout:
    """Return the part of a recognised layout for the destination's module ``spec.dst``.

    The source is loaded into this module.
    """
    names = {
        key: name
        for key, name in found.names.items()
        if key in source and _within(name, spec.dst) and renamed_by_spec(key, spec.src, spec.dst) not in target.tensors
    }
    unknown = {key: why for key, why in found.unknown.items() if _within(key, spec.dst)}
    notes = found.notes if names or found.operations else ()
    return KnownLayout(found.operations, names, found.by, unknown, notes)


def _within(key: str, module: str) -> bool:
    return bool(module) and key.startswith(f"{module}.")


def check_converted(plan: Plan, sources: Sequence[KnownSource]) -> None:
    """Raise PlanError if tensors would be initialised although a source has their values in an unsupported layout."""
    unknown: Mapping[str, str] = {key: why for one in sources for key, why in one.recognised.unknown.items()}
    lost = [step.key for step in plan.steps if step.reason == "missing" and step.key in unknown]
    if lost:
        raise PlanError(
            f"{grouped([(key, unknown[key]) for key in lost], LOST)}.",
            hint="Convert the source with transformers (from_pretrained, save_pretrained), or initialise these "
            "tensors with --reinit.",
            details=lost,
        )
