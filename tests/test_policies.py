"""Which policy fits which shapes, and which casts are refused."""

from __future__ import annotations

import pytest

from ckptsurgeon.policies import cast_fault, fit, fitting_policies, is_reshape


@pytest.mark.parametrize(
    ("source", "destination", "fits"),
    [
        ((5, 8), (7, 8), ["init", "pad", "overlap", "interpolate"]),
        ((7, 8), (5, 8), ["init", "slice", "overlap", "interpolate"]),
        ((7, 4), (5, 8), ["init", "overlap", "interpolate"]),
        ((2, 2, 2), (3, 3, 3), ["init", "pad", "overlap"]),
        ((5,), (5, 1), ["init"]),
        ((0, 4), (3, 4), ["init", "pad", "overlap"]),
        ((4,), (0,), ["init", "slice", "overlap"]),
    ],
)
def test_the_policies_that_fit(source: tuple[int, ...], destination: tuple[int, ...], fits: list[str]) -> None:
    assert fitting_policies(source, destination, "float32") == fits
    for policy in ("slice", "pad", "overlap", "interpolate"):
        assert (fit(policy, source, destination, "float32").op == policy) == (policy in fits)
    assert not fit("error", source, destination, "float32").op


def test_integers_are_not_interpolated_and_packed_values_not_cut() -> None:
    assert "interpolate" not in fitting_policies((4,), (5,), "int64")
    assert "interpolate" not in fitting_policies((4,), (5,), "complex64")
    assert fitting_policies((4,), (5,), "float4_e2m1fn_x2") == ["init"]


def test_a_number_and_a_list_of_one_fit_each_other() -> None:
    assert is_reshape((1,), ())
    assert is_reshape((), (1,))
    assert not is_reshape((1,), (1, 1))
    assert not is_reshape((), ())


@pytest.mark.parametrize(
    ("source", "destination", "refused"),
    [
        ("float32", "float16", ""),
        ("float16", "float64", ""),
        ("bfloat16", "complex64", ""),
        ("int64", "float16", ""),
        ("int64", "int8", ""),
        ("bool", "float32", ""),
        ("float32", "int64", "fraction"),
        ("float32", "bool", "fraction"),
        ("complex64", "float64", "complex"),
        ("int64", "bool", "truth"),
        ("quint8", "float32", "quantised"),
        ("float4_e2m1fn_x2", "float32", "packed"),
        ("float32", "float8_e8m0fnu", "without a sign"),
        ("bool", "float8_e8m0fnu", "without a sign"),
        ("float8_e8m0fnu", "float8_e8m0fnu", ""),
        ("float8_e8m0fnu", "float32", ""),
    ],
)
def test_casts_that_would_lose_what_a_value_is_are_refused(source: str, destination: str, refused: str) -> None:
    fault = cast_fault(source, destination)
    assert refused in fault
    assert bool(fault) == bool(refused)


def test_a_number_is_no_truth_value_of_whatever_sign() -> None:
    assert cast_fault("uint8", "bool")
    assert cast_fault("int8", "bool")
    assert not cast_fault("bool", "uint8")
