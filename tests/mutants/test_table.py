"""The changes of the table can be made: each text stands once in the package."""

from __future__ import annotations

from functools import cache

import pytest

from .__main__ import ROOT
from .table import MUTANTS, Mutant


@cache
def package() -> str:
    """Return the text of all modules: to read them for each change takes twenty times as long."""
    return "".join(path.read_text() for path in ROOT.glob("ckptsurgeon/**/*.py"))


@pytest.mark.costly
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.promise)
def test_every_change_is_of_one_place(mutant: Mutant) -> None:
    assert package().count(mutant.before) == 1
    assert all((ROOT / "tests" / name).exists() for name in mutant.tests.split())
