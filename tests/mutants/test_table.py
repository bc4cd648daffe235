"""The changes of the table can be made: each text stands once in the package."""

from __future__ import annotations

import pytest

from .__main__ import ROOT, place_of
from .table import MUTANTS, Mutant


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.promise)
def test_every_change_is_of_one_place(mutant: Mutant) -> None:
    assert place_of(mutant, ROOT).read_text().count(mutant.before) == 1
    assert all((ROOT / "tests" / name).exists() for name in mutant.tests.split())
