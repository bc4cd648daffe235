"""Notes for the user: texts that know their kind."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator
from functools import wraps
from typing import Any, ParamSpec, TypeVar, overload

from .note_kind import NoteKind
from .text import escape

__all__ = [
    "Note", "as_notes", "is_serious", "notes_about", "notes_of", "notes_on_some", "reworded", "serious_places",
    "with_prefix", "with_serious", "without_prefix",
]  # fmt: skip

P = ParamSpec("P")
Text = TypeVar("Text", bound=str)


class Note(str):
    """A text for the user that knows its kind.

    It is equal to its text, so that it can be compared, listed and written as JSON or YAML like any other text. It can
    be pickled with protocol 2 or later: protocols 0 and 1 do not call ``__new__`` with the kind.
    """

    __slots__ = ("kind",)
    kind: NoteKind

    def __new__(cls, kind: NoteKind, text: str) -> Note:
        """Return a note with this text."""
        made = super().__new__(cls, text)
        made.kind = kind
        return made

    def __getnewargs__(self) -> tuple[Any, ...]:
        """Return the arguments of ``__new__``, for copies of the note and for other processes."""
        return self.kind, str(self)

    def reworded(self, text: str) -> Note:
        """Return a note of the same kind with another text."""
        return Note(self.kind, text)


def as_notes(kind: NoteKind, texts: Iterable[str]) -> Iterator[Note]:
    """Yield each text as a note of this kind; a text that is a note already keeps its kind."""
    return (one if isinstance(one, Note) else Note(kind, one) for one in texts)


class notes_of:  # noqa: N801
    """Makes a decorator: each text that the function yields or returns becomes a note of this kind.

    A text that is a note already keeps its kind.
    """

    def __init__(self, kind: NoteKind) -> None:
        self._kind = kind

    @overload
    def __call__(self, function: Callable[P, Iterator[str]]) -> Callable[P, Iterator[Note]]: ...

    @overload
    def __call__(self, function: Callable[P, list[str]]) -> Callable[P, list[Note]]: ...

    @overload
    def __call__(self, function: Callable[P, tuple[str, ...]]) -> Callable[P, tuple[Note, ...]]: ...

    def __call__(self, function: Callable[P, Any]) -> Callable[P, Any]:
        """Return a function that does the same, but yields or returns notes."""

        @wraps(function)
        def noting(*args: P.args, **kwargs: P.kwargs) -> Any:
            texts = function(*args, **kwargs)
            notes = as_notes(self._kind, texts)
            return type(texts)(notes) if isinstance(texts, list | tuple) else notes

        return noting


def is_serious(note: str) -> bool:
    """Return whether ``ckpt check`` reports a note as a failure; a plain text is not serious."""
    return isinstance(note, Note) and note.kind.is_serious


def serious_places(notes: Iterable[str]) -> list[int]:
    """Return the positions of the serious notes in ``notes``, counted from 0."""
    return [place for place, note in enumerate(notes) if is_serious(note)]


def with_serious(texts: Iterable[str], places: Iterable[int]) -> Iterator[str]:
    """Yield the texts; a text at one of ``places``, the result of ``serious_places``, becomes a serious note again."""
    serious = frozenset(places)
    return (Note(NoteKind.SERIOUS, one) if place in serious else one for place, one in enumerate(texts))


def reworded(note: Text, text: str) -> Text:
    """Return a note with another text; if it has a kind, its kind stays the same."""
    return note.reworded(text) if isinstance(note, Note) else text  # type: ignore[return-value]


def with_prefix(prefix: str, note: Text) -> Text:
    """Return a note with ``prefix``, such as ``name: ``, in front of its text; its kind stays the same."""
    return reworded(note, f"{prefix}{note}")


def without_prefix(prefix: str, note: Text) -> Text:
    """Return a note without ``prefix`` in front of its text; its kind stays the same."""
    return reworded(note, note.removeprefix(prefix))


def notes_about(name: str, notes: Iterable[Text]) -> list[Text]:
    """Return the notes, each with the escaped ``name`` and a colon in front, unless the note contains the name."""
    shown = escape(name)
    named = re.compile(rf"(?<![\w./-]){re.escape(shown)}(?![\w.-])")
    return [note if named.search(note) else with_prefix(f"{shown}: ", note) for note in notes]


_CUT = re.compile(r", and \d[\d,]* more\b.*")
"""Matches the end of a list of names that is cut."""


def notes_on_some(notes: Iterable[Text], left_out: Collection[str]) -> Iterator[Text]:
    """Yield the notes of a checkpoint that apply if its tensors ``left_out`` are not looked at.

    A note that ends with a list of names is left out if all of these tensors are. If only some are, or if the list is
    cut, the note says that it counts tensors that are left out, too.
    """
    gone = set(map(escape, left_out))
    for note in notes:
        _, colon, end = note.rpartition(": ")
        names = _CUT.sub("", end).split(", ")
        if not colon or gone.isdisjoint(names):
            yield note
        elif _CUT.search(end) or not gone.issuperset(names):
            yield reworded(note, f"{note} (this counts tensors that are left out, too)")
