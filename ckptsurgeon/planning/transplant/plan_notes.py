"""Notes on the plan of a transplant: unused tensors although others are missing, and matrices that look transposed.

``few_copied`` is for transplants that fill little of the destination and leave most of the sources unused.
``part_left`` is for a part of the destination that the sources have under another name.
``other_modules`` is for modules in layers, such as an MLP with experts in the source and one without experts in the
destination.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from ...util.text import count, escape, listing
from ..keys.transposed import is_transposed, square_siblings, transposed_note
from ..plan.files import SourceView, TensorOrigin
from ..plan.step import Step
from .by_place import ShapeChange
from .options import Options

__all__ = ["few_copied", "other_modules", "part_left", "transposed_notes"]

_MODULE = re.compile(r"(?:.*?\.)??\d+\.[A-Za-z_]\w*(?:\.\d+\.[A-Za-z_]\w*)?(?=\.)")
"""Matches the beginning of a key up to a module in a layer: ``layers.0.mlp`` or ``block.0.layer.1.DenseReluDense``."""


def few_copied(
    views: Sequence[SourceView], steps: Sequence[Step], unexpected: Sequence[TensorOrigin], options: Options
) -> Iterator[str]:
    """Yield the note if most tensors of the destination are in no source and most tensors of the sources are not used.

    Both conditions must be met. The second one is not met if an encoder is put into a model with a decoder: all tensors
    of the encoder are used. The first one is not met if only the output heads differ: the other tensors of the source
    fill most of the destination. There is also no note if an option leaves out a part of a source.
    """
    if _is_asked(views, options):
        return
    own = [step for step in steps if not step.tied_to]
    missing = _missing(own)
    if 2 * len(missing) <= len(own) or 2 * len(unexpected) <= sum(len(view.tensors) for view in views):
        return
    yield _said_of_few(views, own, missing, unexpected)


def part_left(
    views: Sequence[SourceView], steps: Sequence[Step], unexpected: Sequence[TensorOrigin], options: Options
) -> Iterator[str]:
    """Yield the note if a tenth of the destination is in no source, but unused tensors have exactly these shapes.

    A part of the source then probably has another name. If options leave out a part, no note is yielded.
    """
    own = [step for step in steps if not step.tied_to]
    missing = _missing(own)
    wanted, there = Counter(step.shape for step in missing), Counter(origin.info.shape for origin in unexpected)
    if 10 * len(missing) > len(own) and wanted <= there and not _is_asked(views, options):
        yield _said_of_few(views, own, missing, unexpected)


def _said_of_few(
    views: Sequence[SourceView], own: Sequence[Step], missing: Sequence[Step], unexpected: Sequence[TensorOrigin]
) -> str:
    name = escape(views[0].source.name) if len(views) == 1 else "the sources"
    hint = "; ckpt match proposes names" if _are_alike(missing, unexpected) else ""
    return (
        f"only {len(own) - len(missing)} of {count(len(own), 'tensor')} of the destination come from {name}, of which "
        f"{count(len(unexpected), 'tensor')} {'is' if len(unexpected) == 1 else 'are'} not used{hint}"
    )


def other_modules(
    views: Sequence[SourceView], steps: Sequence[Step], unused: Iterable[str], options: Options
) -> Iterator[str]:
    """Yield a note if modules of layers lack tensors, and the sources have unused tensors in the same modules.

    ``unused`` are the names of the unused tensors, after renaming. As for ``few_copied``, there is no note if options
    leave out a part.
    """
    if _is_asked(views, options):
        return
    there = {module for name in unused if (module := _module(name))}
    missing = [step for step in _missing(steps) if not step.tied_to and _module(step.key) in there]
    if missing:
        modules = listing(list(dict.fromkeys(_module(step.key) for step in missing)), 3, where="")
        one = len(missing) == 1
        kept = "keeps its values" if one else "keep their values"
        do = kept if missing[0].kind == "kept" else "is initialised" if one else "are initialised"
        has = "although the source has other tensors in the same modules, which are not used"
        yield f"{count(len(missing), 'tensor')} of the destination {do}, {has}: {modules}"


def _module(key: str) -> str:
    """Return the name of the module that has a tensor, such as ``layers.3.mlp``; '' for a tensor outside of layers."""
    match = _MODULE.match(key)
    return match[0] if match is not None else ""


def _is_asked(views: Sequence[SourceView], options: Options) -> bool:
    asked = options.include or options.exclude or options.reinit or options.drop_last
    return bool(asked) or any(view.src or view.dst or view.prefixes for view in views)


def _missing(steps: Iterable[Step]) -> list[Step]:
    return [step for step in steps if step.reason == "missing" and step.kind in ("initialised", "kept")]


def _are_alike(missing: Sequence[Step], unexpected: Sequence[TensorOrigin]) -> bool:
    """Return whether most missing tensors have the shape of an unused tensor, as it is or transposed."""
    wanted = Counter(tuple(sorted(step.shape)) for step in missing)
    there = Counter(tuple(sorted(origin.info.shape)) for origin in unexpected)
    return 2 * (wanted & there).total() >= len(missing)


def transposed_notes(changes: Iterable[ShapeChange], steps: Iterable[Step], option: str) -> Iterator[str]:
    """Yield a note if ``changes`` has tensors whose old and new shapes are each other's transpose.

    ``steps`` are the steps of all tensors; square matrices that they copy may be transposed, too. ``option`` is the
    option with which tensors are transposed.
    """
    turned = [one for one in changes if is_transposed(one.have, one.want)]
    if turned:
        copied = {step.source_key: step.source_shape for step in steps if step.op == "copy"}
        flat = [one.source_key for one in turned if len(one.have) == 2]
        square = square_siblings(flat, copied)
        yield transposed_note([one.source_key for one in turned], square, option, len(turned[0].have))
