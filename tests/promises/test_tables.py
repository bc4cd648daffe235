"""The documentation's tables of cases are those of the cases that there are."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def test_the_documentation_s_tables_are_those_of_the_cases() -> None:
    # In a process of its own: the tables count the cases of make test-all, whatever is run here.
    end = subprocess.run(
        [sys.executable, "-m", "tests.promises", "--check"],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert end.returncode == 0, end.stderr
