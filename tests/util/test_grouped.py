"""What is said of several things is said once, with all their names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import ckptsurgeon as cs
from ckptsurgeon.planning.plan.receipt import Failure
from ckptsurgeon.util.text import grouped, together

Run = Callable[..., Any]


def test_names_are_joined_as_people_do() -> None:
    assert [together("abcdefgh"[:number]) for number in (0, 1, 2, 3, 5, 6, 8)] == [
        "", "a", "a and b", "a, b and c", "a, b, c, d and e", "a, b, c, d, e and 1 more", "a, b, c, d, e and 3 more",
    ]  # fmt: skip
    assert together(["\x1b[31m"]) == r"\x1b[31m"


def test_equal_reasons_are_said_once_in_the_order_in_which_they_come() -> None:
    assert grouped([("a", "x"), ("b", "y"), ("c", "x"), ("d", "x")]) == "a, c and d (x); b (y)"
    assert grouped([("a", "{y}"), ("b", "z")], "{names} {are} {why}") == "a is {y}; b is z"
    assert grouped([("{a}", "x"), ("b", "x")], "{names} {are} {why}") == "{a} and b are x"
    assert grouped([]) == ""


def test_what_is_not_listed_is_counted_and_found() -> None:
    assert grouped([(f"k{i}", "x") for i in range(7)]) == "k0, k1, k2, k3, k4 and 2 more (x) (--json lists all)"
    many = grouped([(f"k{i}", f"x{i % 6}") for i in range(8)], where="")
    assert many == "k0 and k6 (x0); k1 and k7 (x1); k2 (x2); k3 (x3); k4 (x4); and 1 more"


def test_entries_that_are_not_carried_for_one_reason_share_it() -> None:
    beside = {name: torch.ones(1) for name in ("ema", "optim", "swa")}
    torch.save(
        {"model": {"w": torch.ones(2)}, "step": 3, "odd": {1}, **{k: {"t": v} for k, v in beside.items()}}, "a.pth"
    )
    plan = cs.filter("a.pth", root="model", keep_extras=True)
    assert "not copied to the output: odd (it contains a set); ema, optim and swa (it contains tensors)" in plan.notes


def test_casts_that_lose_are_one_sentence() -> None:
    torch.save({f"s{i}": torch.ones(2, dtype=torch.complex64) for i in range(3)}, "a.pth")
    rows = "".join(f"    s{i}: {{shape: [2], dtype: float32, init: zeros}}\n" for i in range(3))
    Path("dst.yaml").write_text(f"model:\n  tensors:\n{rows}")
    with pytest.raises(cs.PlanError) as error:
        cs.transplant("a.pth", "dst.yaml")
    assert error.value.message.startswith("dtype mismatch: s0, s1 and s2 are complex64 in a.pth, float32 in the dest")
    assert len(error.value.details) == 3
    assert error.value.details[1].startswith("s1 is complex64 in a.pth, ")


def test_shapes_that_differ_alike_in_a_merge_are_one_sentence() -> None:
    for name, size in (("a.pth", 2), ("b.pth", 3)):
        torch.save({"x": torch.ones(size), "y": torch.ones(size), "z": torch.ones(1, size)}, name)
    with pytest.raises(cs.PlanError) as error:
        cs.merge(["a.pth", "b.pth"], method="linear", weights=[1, 1])
    assert error.value.message == (
        "tensors differ between the models: x and y are float32 (2) in a.pth, float32 (3) in b.pth; "
        "z is float32 (1, 2) in a.pth, float32 (1, 3) in b.pth."
    )
    assert error.value.details[0] == "x is float32 (2) in a.pth, float32 (3) in b.pth"


def test_assertions_that_fail_alike_are_one_sentence() -> None:
    torch.save({f"k{i}.w": torch.ones(1) for i in range(3)}, "a.pth")
    Path("r.yaml").write_text("verb: convert\nsource: a.pth\noutput: b.pth\nassert: {count: 4, '**': cast}\n")
    with pytest.raises(cs.PlanError) as error:
        cs.apply("r.yaml")
    assert (
        "has assertions that fail: count is 3, not 4; k0.w, k1.w and k2.w are copied, not cast." in error.value.message
    )
    assert error.value.details == (
        "count is 3, not 4", "k0.w is copied, not cast", "k1.w is copied, not cast", "k2.w is copied, not cast",
    )  # fmt: skip


def test_a_diff_shows_what_was_not_compared_by_reason(ckpt: Run) -> None:
    for name, by in (("a.pth", 1), ("b.pth", 2)):
        torch.save({key: by * torch.eye(3).to_sparse() for key in ("s", "t", "layers.0.u", "layers.1.u")}, name)
    done = ckpt("diff", "a.pth", "b.pth", "--values")
    (line,) = [one for one in done.out.splitlines() if one.lstrip().startswith("not compared")]
    assert "s, t and layers.{0,1}.u" in line
    assert done.out.count("sparse") == 1
    assert ckpt("diff", "a.pth", "b.pth", "--values", "-v").out.count("sparse") == 4


def test_failures_of_an_output_are_grouped_in_the_error_too() -> None:
    failed = tuple(Failure(key, "its bytes differ") for key in "abc")
    with pytest.raises(cs.VerifyError) as error:
        cs.Verification("o.pth", 3, 0, 0, failed=failed).raise_if_failed()
    assert error.value.message == "o.pth is not as expected: a, b and c: its bytes differ."
    assert error.value.details == ("a: its bytes differ", "b: its bytes differ", "c: its bytes differ")
