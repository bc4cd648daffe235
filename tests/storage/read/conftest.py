"""No test waits for a server that is to be asked again; connections end with the test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ckptsurgeon.storage.read.http import client as _http

from ...helpers.hub.fixtures import end_fetches


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long would have been waited, in order."""
    found: list[float] = []
    monkeypatch.setattr(_http, "sleep", found.append)
    return found


@pytest.fixture(autouse=True)
def _connections(waits: list[float]) -> Iterator[None]:
    _http.close_connections()
    yield
    end_fetches()
    _http.close_connections()
