"""How far two tensors are apart: exact for integers, for any magnitude, and never the same where bytes differ."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import ckptsurgeon as cs
from ckptsurgeon.analysis.compare import tensor_difference
from ckptsurgeon.analysis.compare.results import Difference, Numbers


def compared(first: Any, second: Any, **options: Any) -> Difference:
    """The difference between two checkpoints of one tensor each."""
    save_file({"w": first}, "a.safetensors")
    save_file({"w": second}, "b.safetensors")
    return cs.diff("a.safetensors", "b.safetensors", values=True, **options)


def numbers_of(first: Any, second: Any) -> Numbers:
    """What is said of two tensors of one dtype whose bytes differ."""
    (pair,) = compared(first, second).changed
    assert pair.numbers is not None
    return pair.numbers


def int64(*values: int) -> torch.Tensor:
    return torch.tensor(values)


def uint64(*values: int) -> torch.Tensor:
    return torch.from_numpy(np.array(values, "u8"))


def floats(bits: int) -> torch.Tensor:
    return torch.from_numpy(np.array([bits], "<u4").view("<f4"))


# Integers.


@pytest.mark.parametrize(
    ("first", "second", "largest"),
    [
        (int64(2**53), int64(2**53 + 1), 1.0),
        (int64(2**63 - 1), int64(2**63 - 2), 1.0),
        (int64(-(2**63)), int64(2**63 - 1), 2.0**64),
        (int64(-(2**63)), int64(0), 2.0**63),
        (uint64(2**64 - 1), uint64(2**64 - 2), 1.0),
        (uint64(0), uint64(2**64 - 1), 2.0**64),
        (torch.tensor([-128], dtype=torch.int8), torch.tensor([127], dtype=torch.int8), 255.0),
        (torch.tensor([False]), torch.tensor([True]), 1.0),
    ],
)
def test_integers_are_compared_as_integers(first: torch.Tensor, second: torch.Tensor, largest: float) -> None:
    for one, other in ((first, second), (second, first)):
        assert compared(one, other).differs
        numbers = numbers_of(one, other)
        assert (numbers.differing, numbers.max_abs) == (1, largest)


@pytest.mark.parametrize(("atol", "close"), [(0.5, False), (1.0, True)])
def test_a_tolerance_holds_for_large_integers(atol: float, close: bool) -> None:
    assert len(compared(int64(2**53), int64(2**53 + 1), atol=atol).close) == close


def test_integers_of_two_types_are_compared_as_integers() -> None:
    for second, largest in (
        (uint64(2**53 + 1), 1.0),
        (torch.tensor([5], dtype=torch.int8), 2.0**53 - 5),
        (uint64(2**64 - 1), 2.0**64 - 2.0**53),
    ):
        (pair,) = compared(int64(2**53), second).retyped
        assert pair.numbers is not None
        assert (pair.numbers.differing, pair.numbers.max_abs) == (1, largest)


# The same values in other bits.


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (torch.tensor([0.0]), torch.tensor([-0.0])),
        (torch.tensor([0.0]).half(), torch.tensor([-0.0]).half()),
        (floats(0x7FC00000), floats(0x7FC00001)),
        (floats(0x7FC00000), floats(0xFFC00000)),
        (torch.tensor([1], dtype=torch.uint8).view(torch.bool), torch.tensor([2], dtype=torch.uint8).view(torch.bool)),
    ],
)
def test_equal_values_in_other_bits_are_never_the_same(first: torch.Tensor, second: torch.Tensor, ckpt: Any) -> None:
    found = compared(first, second)
    assert (found.differs, found.identical, found.same) == (True, 0, ())
    assert [pair.numbers and pair.numbers.differing for pair in found.changed] == [0]
    done = ckpt("diff", "a.safetensors", "b.safetensors", "--values")
    assert done.code == 1
    assert "equal values, but different bits" in done.out
    assert len(compared(first, second, atol=1e-9).close) == 1


# Magnitudes and infinities.


@pytest.mark.parametrize("scale", [1e200, 1e-200, 1e300, 1e-300, 5e-324])
def test_figures_are_right_at_any_magnitude(scale: float) -> None:
    first = torch.tensor([scale, 0.0], dtype=torch.float64)
    numbers = numbers_of(first, torch.tensor([2 * scale, 2 * scale], dtype=torch.float64))
    assert numbers.max_abs == 2 * scale
    assert numbers.relative == pytest.approx(math.sqrt(5))
    assert numbers.cosine == pytest.approx(math.sqrt(0.5))


def test_blocks_of_other_magnitudes_are_summed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensor_difference, "ELEMENTS", 1)
    first = torch.tensor([1e-250, 3e200, 1.0, 4e200], dtype=torch.float64)
    numbers = numbers_of(first, torch.tensor([1e-250, 3e200, 1.0, 9e200], dtype=torch.float64))
    assert numbers.relative == pytest.approx(1)
    assert numbers.cosine == pytest.approx(45 / math.sqrt(25 * 90))


def test_a_figure_beyond_float64_is_none_and_json_stays_valid(ckpt: Any) -> None:
    top = 1.7e308
    numbers = numbers_of(torch.tensor([top], dtype=torch.float64), torch.tensor([-top], dtype=torch.float64))
    assert (numbers.differing, numbers.max_abs, numbers.relative) == (1, None, None)
    numbers = numbers_of(torch.tensor([5e-324], dtype=torch.float64), torch.tensor([top], dtype=torch.float64))
    assert (numbers.relative, numbers.cosine) == (None, pytest.approx(1))
    done = ckpt("diff", "a.safetensors", "b.safetensors", "--values", "--json")
    assert done.code == 1
    assert json.loads(done.out)["changed"][0]["differing"] == 1


def test_complex_values_whose_magnitude_is_beyond_float64_are_none() -> None:
    for name, imaginary in (("a.pth", 1.7e308), ("b.pth", 1.6e308)):
        torch.save({"w": torch.tensor([complex(1.7e308, imaginary)], dtype=torch.complex128)}, name)
    (pair,) = cs.diff("a.pth", "b.pth", values=True).changed
    assert pair.numbers is not None
    assert (pair.numbers.max_abs, pair.numbers.relative) == (pytest.approx(1e307), None)


@pytest.mark.parametrize(
    ("first", "second", "nan", "inf", "said"),
    [
        ([1.0, 2.0], [1.0, math.inf], 0, 1, "1 Inf in the second only"),
        ([1.0, math.inf], [1.0, -math.inf], 0, 1, "1 Inf in both, but different"),
        ([1.0, math.inf, 2.0], [1.0, math.inf, math.inf], 0, 1, "1 Inf in the second only"),
        ([1.0, math.inf], [1.0, math.nan], 1, 0, "1 NaN in the second only"),
        ([1.0, math.nan], [1.0, math.inf], 1, 0, "1 NaN in the first only"),
    ],
)
def test_an_infinity_that_one_lacks_is_counted(
    first: list[float], second: list[float], nan: int, inf: int, said: str, ckpt: Any
) -> None:
    numbers = numbers_of(torch.tensor(first), torch.tensor(second))
    assert (numbers.differing, numbers.nan, numbers.inf) == (1, nan, inf)
    out = ckpt("diff", "a.safetensors", "b.safetensors", "--values").out
    assert said in out
    assert "max" not in out
    assert compared(torch.tensor(first), torch.tensor(second), rtol=9.0, atol=9.0).differs


def test_what_became_infinite_comes_first(ckpt: Any) -> None:
    first = {f"{name}.w": torch.ones(2) for name in ("a", "b", "c")}
    save_file(first, "a.safetensors")
    save_file(first | {"a.w": torch.zeros(2), "c.w": torch.tensor([1.0, math.inf])}, "b.safetensors")
    lines = ckpt("diff", "a.safetensors", "b.safetensors", "--values").out.splitlines()
    assert ["c.w" in lines[0], "a.w" in lines[1]] == [True, True]


# Types that have no figures.


def packed(path: str, dtype: str, shape: list[int], data: bytes) -> None:
    """A safetensors file of one tensor of a type that torch may not know."""
    header = json.dumps({"w": {"dtype": dtype, "shape": shape, "data_offsets": [0, len(data)]}}).encode()
    Path(path).write_bytes(len(header).to_bytes(8, "little") + header + data)


@pytest.mark.parametrize(("dtype", "nbytes"), [("F6_E2M3", 6), ("F6_E3M2", 6), ("F4", 4)])
def test_packed_values_that_differ_are_changed_without_figures(dtype: str, nbytes: int, ckpt: Any) -> None:
    packed("a.safetensors", dtype, [8], bytes(nbytes))
    packed("b.safetensors", dtype, [8], bytes(nbytes - 1) + b"\1")
    (pair,) = cs.diff("a.safetensors", "b.safetensors", values=True).changed
    assert pair.numbers is None
    done = ckpt("diff", "a.safetensors", "b.safetensors", "--values")
    assert (done.code, "not measured" in done.out) == (1, True)
    assert cs.diff("a.safetensors", "b.safetensors", values=True, atol=9.0).changed
    packed("b.safetensors", dtype, [8], bytes(nbytes))
    assert not cs.diff("a.safetensors", "b.safetensors", values=True).differs


@pytest.mark.parametrize("other", ["F6_E3M2", "F4"])
def test_a_packed_type_that_became_another_is_retyped_without_figures(other: str) -> None:
    packed("a.safetensors", "F6_E2M3", [8], bytes(6))
    packed("b.safetensors", other, [8] if other != "F4" else [16], bytes(6 if other != "F4" else 8))
    (pair,) = cs.diff("a.safetensors", "b.safetensors", values=True).retyped
    assert pair.numbers is None


def test_packed_values_are_found_under_another_name() -> None:
    packed("a.safetensors", "F6_E2M3", [8], bytes(range(6)))
    raw = Path("a.safetensors").read_bytes()
    Path("b.safetensors").write_bytes(raw.replace(b'"w"', b'"v"'))
    assert cs.diff("a.safetensors", "b.safetensors", renames=True).renamed == {"w": "v"}
