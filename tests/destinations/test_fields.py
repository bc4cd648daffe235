"""The table of the fields that select a kind of destination agrees with the kinds."""

from __future__ import annotations

from typing import Any, cast

from ckptsurgeon.destinations._load import FIELDS
from ckptsurgeon.util.registry import discover


def test_each_field_leads_to_the_module_that_reads_it() -> None:
    found = cast("dict[str, Any]", discover("ckptsurgeon.destinations", "CONFIG"))
    assert {one.field: name for name, one in found.items()} == FIELDS
