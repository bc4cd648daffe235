"""Holds each source that a test opens against the table of formats' marks: what it rules out would not read the source."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ckptsurgeon.formats import _open
from ckptsurgeon.formats.base import format_table
from ckptsurgeon.formats.base.header import Format
from ckptsurgeon.storage.read.base import Source

__all__ = ["asked_of_all", "held_marks"]


def asked_of_all(source: Source, head: bytes) -> list[Format]:
    """Return the formats that would be asked without the table."""
    every = format_table.formats()
    return [one for one in every if head.startswith(one.magic)] or [one for one in every if not one.magic]


@pytest.fixture
def held_marks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail a test that opens a source which a format recognises, but the table says that it does not."""
    chosen = format_table.formats_for

    def held(source: Source, head: bytes = b"") -> Iterator[Format]:
        found = [*chosen(source, head)]
        every = asked_of_all(source, head)
        assert found == [one for one in every if one in found]  # in the same order
        assert not [one.name for one in every if one not in found and one.sniff(source, head)]
        return iter(found)

    monkeypatch.setattr(_open, "formats_for", held)
