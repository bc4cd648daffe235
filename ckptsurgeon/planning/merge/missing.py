"""What some models of a merge lack, where nothing says what becomes of it. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ...errors import PlanError
from ...util.text import count, escape, listing
from ..transplant.select import SourceView
from .options import Place

__all__ = ["Missing"]

_WRAPPERS = re.compile(r"^(?:(?:module|_orig_mod)\.)+|(?<=\.)_orig_mod\.")
"""What ``--unwrap`` strips from keys."""

UNWRAP = "Say --unwrap: the keys differ by what training wrapped around them."
ALIKE = "Merge models of one kind, or say --on-missing base, skip or any."


class Missing:
    """Keeps what is missing until all of it is known."""

    def __init__(self, views: Sequence[SourceView]) -> None:
        self._views = views
        self._keys: dict[int, list[str]] = {}

    def add(self, place: Place, key: str) -> None:
        """Keep that a model lacks a tensor, which the output has under ``key``."""
        self._keys.setdefault(place.source, []).append(key)

    def check(self) -> None:
        """Raise PlanError for what is missing: all of it at once."""
        if not self._keys:
            return
        (first, keys), *others = self._keys.items()
        said = [f"{self._name(first)} lacks {listing(keys)}"]
        said += [f"{self._name(source)} lacks {count(len(k), 'tensor')}" for source, k in others]
        raise PlanError(
            f"{'; '.join(said)}.",
            hint=UNWRAP if self._are_wrapped() else ALIKE,
            details=[f"{self._views[source].source.name}: {key}" for source, k in self._keys.items() for key in k],
        )

    def _name(self, source: int) -> str:
        return escape(self._views[source].source.name)

    def _are_wrapped(self) -> bool:
        """Whether the models have all that they lack under keys that are wrapped otherwise."""
        bare = {source: {_WRAPPERS.sub("", key) for key in self._views[source].tensors} for source in self._keys}
        return all(_WRAPPERS.sub("", key) in bare[source] for source, keys in self._keys.items() for key in keys)
