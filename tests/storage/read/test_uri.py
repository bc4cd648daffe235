"""The table of schemes agrees with the modules that read them."""

from __future__ import annotations

from typing import Any, cast

from ckptsurgeon.storage.read.uri import MODULES
from ckptsurgeon.util.registry import discover


def test_each_scheme_of_a_module_leads_to_it() -> None:
    found = cast("dict[str, Any]", discover("ckptsurgeon.storage.read", "SOURCE"))
    assert {scheme: name for name, one in found.items() for scheme in one.schemes if scheme != "*"} == MODULES
