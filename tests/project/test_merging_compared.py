"""The page that judges merge methods: it has every method, and its figures are computed as it says."""

from __future__ import annotations

import re
import statistics
from pathlib import Path

from ckptsurgeon.methods.merge._registry import MergeMethods, merge_methods

from ..bench.merge_quality import REFERENCES, Judged, page, takes_all

ROOT = Path(__file__).resolve().parents[2]


def row(text: str, name: str) -> list[str]:
    """Return the cells of the row of a method."""
    (line,) = [one for one in text.splitlines() if one.strip("| *").startswith(f"{name}")]
    return [one.strip() for one in line.strip("|").split("|")]


def of_seed(shift: float) -> dict[str, Judged]:
    return {
        "base": Judged([0.2, 0.3, 0.1]),
        "single": Judged([1.0, 0.9, 0.8]),
        "all tasks": Judged([1.0, 1.0, 1.0]),
        "good": Judged([0.1, 0.1, 0.1], best=[0.9, 0.8, 0.7 + shift], factor=0.6 if shift else 0.3),
        "near": Judged([0.9, 0.8, 0.69 + shift]),
        "bad": Judged([0.2, 0.3, 0.1 + shift]),
    }


def test_the_page_has_means_of_seeds_and_says_what_cannot_be_told_from_the_best() -> None:
    text = page([of_seed(0.0), of_seed(0.2)], 100, "one core")
    assert row(text, "`bad`")[1:5] == ["20.0", "30.0", "20.0", f"23.3 ± {100 * statistics.stdev([0.6, 0.8]) / 3:.1f}"]
    good = row(text, "`good`")
    assert good[1:4] == ["10.0", "10.0", "10.0"]
    assert good[5:] == [f"83.3 ± {100 * statistics.stdev([2.4, 2.6]) / 3:.1f}", "0.3, 0.6", "90 %"]
    assert row(text, "`bad`")[-1] == "5 %"
    bold = re.findall(r"^\| \*\*`(\w+)`\*\* \|", text, re.M)
    assert bold == ["good", "near"]
    assert "2 seeds" in text
    assert "100 steps" in text


def test_the_page_of_the_docs_has_every_method() -> None:
    text = (ROOT / "docs/merging-compared.md").read_text()
    judged, _, left_out = text.partition("Left out:")
    for one in MergeMethods(merge_methods()).to_json()["methods"]:
        assert takes_all(one) == bool(re.search(rf"^\| (\*\*)?`{one['name']}`", judged, re.M)), one["name"]
        assert takes_all(one) != (f"`{one['name']}`" in left_out), one["name"]
    for shown in REFERENCES.values():
        assert f"| {shown} |" in text
