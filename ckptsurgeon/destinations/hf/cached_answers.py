"""Stores facts about a network or its configuration in the user's cache, so that the network is built only once."""

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
    """Return a fact from the user's cache; if the cache lacks it, return the result of ``find()`` and store it.

    ``asked`` is the key in the cache: all data on which the fact depends. If it is empty, the cache is not used.
    ``plain`` converts the fact to JSON data for the cache, or to None if it must not be stored. ``read`` converts JSON
    data back to the fact; for data of another form, it must raise LookupError, TypeError, ValueError or AttributeError.
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
