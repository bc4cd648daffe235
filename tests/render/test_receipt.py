"""What is said of an output that was written."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console

from ckptsurgeon.planning.plan.receipt import FactorFit, Receipt
from ckptsurgeon.render.verification import counts_line, receipt_view


def receipt(nbytes: int, elapsed_s: float, *notes: str) -> Receipt:
    return Receipt("out.pth", {"copied": 3, "initialised": 0}, (), 0, nbytes, elapsed_s, "", notes)


def printed(view: object, width: int = 80) -> list[str]:
    text = io.StringIO()
    Console(file=text, width=width, highlight=False).print(view)
    return text.getvalue().splitlines()


@pytest.mark.parametrize(
    ("nbytes", "elapsed_s", "says"),
    [
        (1_500, 1.0, "1.5 kB  1.0 s"),
        (500_000_000, 0.9, "500.0 MB  0.9 s"),
        (9_999_999, 2.0, "10.0 MB  2.0 s"),
        (10_000_000, 1.0, "10.0 MB  1.0 s  10.0 MB/s"),
        (3_000_000_000, 2.0, "3.0 GB  2.0 s  1.5 GB/s"),
    ],
)
def test_a_rate_is_said_only_where_it_means_something(nbytes: int, elapsed_s: float, says: str) -> None:
    assert printed(receipt_view(receipt(nbytes, elapsed_s))) == [f"  wrote out.pth  {says}"]


def test_the_size_is_that_of_the_whole_output_if_the_run_went_on() -> None:
    lines = printed(receipt_view(replace(receipt(28_400, 1.0), nbytes_kept=31_471_600)))
    assert lines == ["  wrote out.pth  31.5 MB (28.4 kB of it in this run)  1.0 s"]


def test_notes_are_left_to_the_command_and_the_next_command_is_last() -> None:
    lines = printed(receipt_view(receipt(1, 0.0, "words " * 20), next_steps=["ckpt verify out.pth"]), 60)
    assert lines == ["  wrote out.pth  1 B  0.0 s", "  next: ckpt verify out.pth"]


def test_classes_that_nothing_is_in_are_left_out() -> None:
    assert counts_line(receipt(1, 0.0)).plain == "  3 copied"


@pytest.mark.parametrize(("error", "says"), [(0.0, "0 %"), (0.0004, "<0.1 %"), (0.123, "12.3 %"), (0.9996, ">99.9 %")])
def test_what_factors_lack_is_never_said_to_be_all_or_nothing(error: float, says: str) -> None:
    fits = (FactorFit("body.weight", (8, 4), 2, error), FactorFit("head.weight", (8, 4), 2, 1e-9))
    table = printed(receipt_view(replace(receipt(1, 0.0), fits=fits)))
    assert next(line for line in table if "body" in line).endswith(f"  {says}")


def test_one_line_replaces_a_table_of_factors_that_lack_nothing() -> None:
    made = replace(receipt(1, 0.0), fits=tuple(FactorFit(name, (8, 4), 4, 0.0) for name in "ab"))
    assert printed(receipt_view(made))[0] == "  the ranks are large enough: nothing is lost by the rank"
    assert [line.split()[-2:] for line in printed(receipt_view(made, every=True))[1:3]] == [["0", "%"]] * 2
