"""``--include`` and ``--exclude`` of what only looks: the keys that are left, and what there is to say."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from .hints import matched
from .pattern import KeyPattern

__all__ = ["Chosen", "chosen_keys"]

Given = Iterable[str] | None


@dataclass(frozen=True)
class Chosen:
    """The keys that patterns leave, in their order, and notes on patterns that may have been meant otherwise."""

    keys: tuple[str, ...]
    notes: tuple[str, ...] = ()


def chosen_keys(keys: Sequence[str], include: Given = (), exclude: Given = (), *, whose: str = "source") -> Chosen:
    """Return the keys that ``include`` matches, all if there is none, and ``exclude`` does not.

    Raises PatternError for a pattern that matches none; ``whose`` says in its message whose keys they are.
    """
    notes: list[str] = []
    wanted = _matched("--include", include, keys, notes, whose)
    unwanted = _matched("--exclude", exclude, keys, notes, whose)
    if wanted is None and unwanted is None:
        return Chosen(tuple(keys))
    left = (key for key in keys if (wanted is None or key in wanted) and key not in (unwanted or ()))
    return Chosen(tuple(left), tuple(notes))


def _matched(option: str, given: Given, keys: Sequence[str], notes: list[str], whose: str) -> set[str] | None:
    texts = [given] if isinstance(given, str) else list(given or ())
    flags = [(f"{option} {text}", KeyPattern.given(text, f"{option} ")) for text in texts]
    hits, more = matched(flags, keys, whose)
    notes += more
    return {key for hit in hits for key in hit} if texts else None
