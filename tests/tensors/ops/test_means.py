"""Means, sums and products, held against exact rational arithmetic."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from ckptsurgeon.errors import PlanError
from ckptsurgeon.tensors.ops.casts import cast, raw_dtype
from ckptsurgeon.tensors.ops.means import added, average, largest, rounded, scaled

# bits of precision, exponent of the smallest normal, largest finite value
FORMS = {
    "float32": (24, -126, (2 - Fraction(1, 2**23)) * 2**127),
    "bfloat16": (8, -126, (2 - Fraction(1, 2**7)) * 2**127),
    "float16": (11, -14, Fraction(65504)),
    "float8_e5m2": (3, -14, Fraction(57344)),
    "float8_e4m3fn": (4, -6, Fraction(448)),
}


def nearest(value: Fraction, dtype: str) -> Fraction | None:
    """The value of the dtype that is nearest, ties to even; None beyond the largest."""
    precision, smallest, most = FORMS[dtype]
    if not value:
        return value
    exponent = math.frexp(float(abs(value)))[1] - 1  # of a float64, so exact
    unit = Fraction(2) ** (max(exponent, smallest) - precision + 1)
    found = round(value / unit) * unit
    return found if abs(found) <= most else None


def near_ties(dtype: str, number: int) -> Any:
    """Values of every exponent that lie on, or by one bit of a float64 off, what is between two of the dtype."""
    generator = np.random.default_rng(0)
    precision, smallest, most = FORMS[dtype]
    exponents = generator.integers(smallest - precision - 2, math.frexp(float(most))[1] + 1, number)
    ties = np.round(np.ldexp(generator.random(number) + 1, generator.integers(1, precision + 1, number)))
    values = ties * np.ldexp(1.0, exponents - np.frexp(ties)[1])
    values *= 1 + generator.integers(-3, 4, number) * np.ldexp(1.0, -generator.integers(20, 53, number))
    return np.where(generator.random(number) < 0.5, values, -values)


def as_doubles(values: Any, dtype: str) -> Any:
    return cast(values, dtype, "float64")[0]


def holds(computed: Any, dtype: str, exact: list[Fraction]) -> None:
    for made, value in zip(as_doubles(computed, dtype).tolist(), exact, strict=True):
        wanted = nearest(value, dtype)
        assert not math.isfinite(made) if wanted is None else Fraction(made) == wanted, (value, made)


@pytest.mark.long
@pytest.mark.parametrize("dtype", FORMS)
def test_what_was_computed_is_rounded_once(dtype: str) -> None:
    values = np.concatenate([near_ties(dtype, 20_000), np.random.default_rng(1).standard_normal(2000)])
    made, _ = rounded(values, "float64", dtype)
    # torch saturates nothing, but rounds what is just beyond the largest e4m3fn to it or to NaN as it likes
    keep = np.abs(values) < float(FORMS[dtype][2]) if dtype == "float8_e4m3fn" else np.full(values.shape, True)
    holds(made[keep], dtype, [Fraction(value) for value in values[keep].tolist()])


def test_a_tie_in_float32_is_none_in_float64() -> None:
    value = np.array([1 + 2.0**-8 + 2.0**-40, 1 + 2.0**-8 - 2.0**-40, 1 + 2.0**-8, 1 + 3 * 2.0**-8])
    assert as_doubles(rounded(value, "float64", "bfloat16")[0], "bfloat16").tolist() == [1.0078125, 1, 1, 1.015625]
    factor = float(value[0])
    assert as_doubles(scaled(np.array([0x3F80], "<u2"), "bfloat16", factor), "bfloat16").tolist() == [1.0078125]
    value = np.array([1 + 2.0**-11 + 2.0**-40, 2.0**-25 * (1 + 2.0**-40), 65520 - 2.0**-30])
    assert as_doubles(rounded(value, "float64", "float16")[0], "float16").tolist() == [1 + 2.0**-10, 2.0**-24, 65504]


@pytest.mark.parametrize("share", [0, 1 << 60])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_all_values_are_rounded_as_the_few_that_may_be_ties(
    dtype: str, share: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = np.array([*near_ties(dtype, 2000), math.inf, -math.inf, math.nan, 0.0, -0.0, 1e300, -1e-300])
    with np.errstate(all="ignore"):
        wanted = rounded(values, "float64", dtype)
        monkeypatch.setattr("ckptsurgeon.tensors.ops.means.SHARE", share)
        found = rounded(values, "float64", dtype)
    assert found[0].tobytes() == wanted[0].tobytes()
    assert found[1] == wanted[1]


def test_complex_values_are_rounded_part_by_part() -> None:
    values = np.array([[complex(1 + 2.0**-11 + 2.0**-40, -(1 + 2.0**-11)), complex(1e9, 2)]])
    made, lost = rounded(values, "complex128", "complex32")
    first, second = made.view("<f2").reshape(2, 2).tolist()
    assert (made.shape, lost.infinite, first) == ((1, 2), 1, [1 + 2.0**-10, -1])
    assert second == [math.inf, 2]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float8_e5m2"])
def test_what_becomes_infinite_is_counted_and_what_was_stays(dtype: str) -> None:
    values = np.array([1e300, -1e39, math.inf, -math.inf, math.nan, -0.0, 1e-320, 1.0])
    made, lost = rounded(values, "float64", dtype)
    found = as_doubles(made, dtype)
    assert lost.infinite == 2
    assert found[:4].tolist() == [math.inf, -math.inf, math.inf, -math.inf]
    assert math.isnan(found[4])
    assert [*found[5:]] == [0, 0, 1]
    assert math.copysign(1, found[5]) == -1
    assert rounded(np.array(2.5), "float64", dtype)[0].shape == ()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("weights", [(), (0.1, 0.3, 0.6)])
def test_an_average_is_float64_s_rounded_once(dtype: str, weights: tuple[float, ...]) -> None:
    generator = np.random.default_rng(2)
    parts = [cast(generator.standard_normal(5000), "float64", dtype)[0] for _ in range(3)]
    doubles = [as_doubles(part, dtype) for part in parts]
    total = sum(w * d for w, d in zip(weights or (1.0,) * 3, doubles, strict=True))
    exact = [Fraction(value) for value in (total if weights else total / 3).tolist()]
    holds(rounded(*average(((part, dtype) for part in parts), weights), dtype)[0], dtype, exact)


@pytest.mark.parametrize("merge", [largest, lambda parts: average(parts, ())])
def test_each_part_is_let_go_before_the_next_but_one(merge: Callable[[Any], Any]) -> None:
    import weakref

    held: list[weakref.ref[Any]] = []

    def parts() -> Any:
        for i in range(9):
            assert sum(ref() is not None for ref in held) <= 2
            values = np.full(4, i, "<i8")
            held.append(weakref.ref(values))
            yield values, "int64"

    merge(parts())


def test_the_largest_of_two_widths_is_as_wide_as_the_wider() -> None:
    values, dtype = largest(iter([(np.array([1, 2], "<i4"), "int32"), (np.array([2**40, 1], "<i8"), "int64")]))
    assert (values.tolist(), dtype) == ([2**40, 2], "int64")
    assert values.dtype == raw_dtype(dtype)


def test_what_is_below_zero_is_refused_where_there_is_no_sign() -> None:
    with pytest.raises(PlanError, match="no negative numbers"):
        scaled(np.array([0x80], "u1"), "float8_e8m0fnu", -1.0)
    assert scaled(np.array([0x80], "u1"), "float8_e8m0fnu", 2.0).tolist() == [0x81]


def every_value(dtype: str) -> Any:
    """All bits of a 16-bit type; of float32, values of every exponent with random bits."""
    if raw_dtype(dtype).itemsize == 2:
        return np.arange(1 << 16, dtype="<u2").view(raw_dtype(dtype))
    generator = np.random.default_rng(0)
    bits = (np.arange(1 << 16, dtype="<u4") << 16) | generator.integers(0, 1 << 16, 1 << 16, dtype="<u4")
    return bits.view("<f4")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("factor", [0.5, -0.25, 2.0, 2.0**-16, 2.0**15, 2.0**-20, 2.0**70, 3.0, 1 / 3, 0.1, 0.0])
def test_products_have_the_bits_of_those_in_double_precision(dtype: str, factor: float) -> None:
    """In float32, too, where that is exact: every value of a 16-bit type whose product is finite."""
    values = every_value(dtype)
    with np.errstate(all="ignore"):
        wide = as_doubles(values, dtype)
        wanted, _ = rounded(wide * factor, "float64", dtype)
        fits = np.isfinite(as_doubles(wanted, dtype))
    made = scaled(values[fits], dtype, factor)  # without a warning of NumPy
    assert np.array_equal(made.view("u1"), wanted[fits].view("u1"))
    over = np.isfinite(wide) & ~fits
    if over.any():
        with pytest.raises(PlanError, match=f"^{over.sum()} values? times"):
            scaled(values, dtype, factor)


def test_products_and_sums_of_many_elements_are_those_of_each() -> None:
    values = np.random.default_rng(0).standard_normal((3, 1 << 17)).astype("<f4")
    assert np.array_equal(scaled(values, "float32", 0.3), (values.astype("<f8") * 0.3).astype("<f4"))
    total = added([values, values * 2, values[::-1]], "float32")
    parts = (values.astype("<f8"), (values * 2).astype("<f8"), values[::-1].astype("<f8"))
    assert np.array_equal(total, sum(parts).astype("<f4"))
