"""Makes the error on tensors that some model of a merge lacks, although no option allows it."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

from ...errors import PlanError
from ...util.text import count, escape, listing
from ..keys.wrappers import without_wrappers
from ..llama_cpp.names import layout_hint
from ..plan.files import SourceView
from .pieces import SourceKey

__all__ = ["UNWRAP", "layouts_hint", "missing_error", "named_keys"]

UNWRAP = "Use --unwrap: the keys differ only in the wrappers that training added."
_FACTOR = re.compile(r"\.lora_(?:A|B|embedding_A|embedding_B|down|up)(?:\.|$)")
"""Matches the name of a low-rank factor of an adapter in a key."""


def missing_error(
    views: Sequence[SourceView], missing: Iterable[tuple[SourceKey, str]], policies: Sequence[str]
) -> PlanError:
    """Return the error that lists all missing tensors: the model that lacks each, and its key in the output.

    ``policies`` are the values of --on-missing that would settle this: "skip", and perhaps "base" and "any".
    """
    lacking: dict[int, list[str]] = {}
    for place, key in missing:
        lacking.setdefault(place.source, []).append(key)
    names = {source: escape(views[source].source.name) for source in lacking}
    (first, keys), *others = lacking.items()
    lacks = [f"{names[first]} lacks {listing(keys)}"]
    lacks += [f"{names[source]} lacks {count(len(k), 'tensor')}" for source, k in others]
    return PlanError(
        f"{'; '.join(lacks)}.",
        hint=_hint(views, lacking, policies),
        details=[f"{views[source].source.name}: {key}" for source, k in lacking.items() for key in k],
    )


def _hint(views: Sequence[SourceView], lacking: Mapping[int, Sequence[str]], policies: Sequence[str]) -> str:
    """Return a hint: what the user can do about tensors that some model lacks."""
    if _are_wrapped(views, lacking):
        return UNWRAP
    *others, last = policies
    said = f"{', '.join(others)} or {last}" if others else last
    alike = f"Merge models of the same architecture, or use --on-missing {said}."
    return layout_hint(named_keys(views)) or _of_adapters(views) or layouts_hint(views) or alike


def layouts_hint(views: Iterable[SourceView]) -> str:
    """Return a hint if models store one kind of network in different layouts, such as that of diffusers; '' if not."""
    from ..layouts.differing import differing_layouts_hint  # this imports all layouts, which most merges do not need

    return differing_layouts_hint((view.source.in_commands, view.tensors) for view in views)


def _of_adapters(views: Sequence[SourceView]) -> str:
    """Return a hint if some of the sources are adapters and others are models; '' if not."""
    adapters = [view.source.name for view in views if view.tensors and all(map(_FACTOR.search, view.tensors))]
    if not 0 < len(adapters) < len(views):
        return ""
    name = escape(adapters[0])
    return f"{name} is an adapter. First add each adapter to its base: ckpt lora merge BASE {name} -o FULL/."


def _are_wrapped(views: Sequence[SourceView], lacking: Mapping[int, Sequence[str]]) -> bool:
    """Return whether all missing keys would be found if wrappers such as ``module.`` were removed from all keys."""
    bare = {source: set(map(without_wrappers, views[source].tensors)) for source in lacking}
    return all(without_wrappers(key) in bare[source] for source, keys in lacking.items() for key in keys)


def named_keys(views: Iterable[SourceView]) -> Iterator[tuple[str, Collection[str]]]:
    """Return an iterator with a pair for each model: its path, and the keys of its tensors."""
    return ((view.source.in_commands, view.tensors.keys()) for view in views)
