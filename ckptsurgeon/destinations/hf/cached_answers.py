"""Stores facts about the modules of a network in the user's cache, so that it is built only once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, TypeVar

from ...storage.cached_documents import cached_document, document_key, keep_document

__all__ = ["cached_answer"]

Answer = TypeVar("Answer")


def cached_answer(
    asked: Mapping[str, Any],
    find: Callable[[], Answer],
    plain: Callable[[Answer], Any],
    read: Callable[[Any], Answer],
) -> Answer:
    """Return the answer to ``asked`` from the cache; if the cache does not have it, return and store that of ``find``.

    ``asked`` has all on which the answer depends; nothing is stored if it is empty. ``plain`` returns an answer as JSON
    data, or None if it must not be stored, and ``read`` the answer again; for an entry in another form it raises
    LookupError, TypeError, ValueError or AttributeError.
    """
    key = document_key(dict(asked)) if asked else ""
    known = cached_document(key)
    if known is not None:
        with suppress(LookupError, TypeError, ValueError, AttributeError):
            return read(known)
    found = find()
    made = plain(found)
    if made is not None:
        keep_document(key, made)
    return found
