"""The documentation's tables of cases are those of the cases that there are."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from ..helpers.depth import FULL, TURN
from .clauses import SECTIONS
from .table import ALL, of_items, of_page, of_section, table


@pytest.mark.long  # it collects the cases anew, but in make test-all, which has them
def test_the_documentation_s_tables_are_those_of_the_cases(pytestconfig: pytest.Config) -> None:
    """The tables count the cases of make test-all. If this process has collected those, no other has to."""
    if FULL and not TURN and [*pytestconfig.args] == pytestconfig.getini("testpaths"):
        numbers = of_items(pytestconfig.stash[ALL])
        for section in SECTIONS:
            assert of_page(section) == table(section, of_section(section, numbers), {}), "run python -m tests.promises"
        return
    end = subprocess.run(
        [sys.executable, "-m", "tests.promises", "--check"],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert end.returncode == 0, end.stderr
