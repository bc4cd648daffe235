"""Tells the report of each case which promise it is of."""

from __future__ import annotations

from collections.abc import Callable

import pytest


@pytest.fixture(autouse=True)
def _promise(request: pytest.FixtureRequest, record_property: Callable[[str, object], None]) -> None:
    mark = request.node.get_closest_marker("clause")
    if mark is not None:
        record_property("clause", mark.args[0])
