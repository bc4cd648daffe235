"""Words for people: a share is never rounded to all or to nothing."""

from __future__ import annotations

import re

import pytest

from ckptsurgeon.util.text import percent

from ..project.test_architecture import ROOT


@pytest.mark.parametrize(
    ("share", "digits", "says"),
    [
        (0, 0, "0 %"), (0.0, 1, "0 %"), (1, 0, "100 %"), (1.0, 1, "100 %"), (0.424, 0, "42 %"), (0.4242, 1, "42.4 %"),
        (0.994, 0, "99 %"), (0.996, 0, ">99 %"), (1 - 1e-12, 0, ">99 %"), (0.9996, 1, ">99.9 %"), (0.9994, 1, "99.9 %"),
        (0.004, 0, "<1 %"), (1e-12, 0, "<1 %"), (0.0004, 1, "<0.1 %"), (0.006, 0, "1 %"), (1.004, 0, "100 %"),
        (3.5, 0, "350 %"), (float("nan"), 1, "nan %"), (float("inf"), 0, "inf %"),
    ],
)  # fmt: skip
def test_only_all_is_100_percent_and_only_nothing_is_0(share: float, digits: int, says: str) -> None:
    assert percent(share, digits) == says


def test_nothing_formats_a_share_but_that_one_function() -> None:
    own = re.compile(r"\{[^{}]*:[^{}]*%\}|100(?:\.0)? \* ")
    found = {str(path): own.findall(path.read_text()) for path in ROOT.rglob("*.py") if path.name != "text.py"}
    assert not {path: said for path, said in found.items() if said}
