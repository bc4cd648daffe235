"""Which policy fits which shapes, and which casts are refused."""

from __future__ import annotations

import pytest

from ckptsurgeon.planning.mismatch.policies import cast_fault, channels_fault, fit, fitting_policies, is_reshape


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
    assert fitting_policies(source, destination, "float32", "a.weight") == fits
    for policy in ("slice", "pad", "overlap", "interpolate"):
        assert (fit(policy, source, destination, "float32").op == policy) == (policy in fits)
    assert not fit("error", source, destination, "float32").op


@pytest.mark.parametrize(
    ("key", "source", "destination", "offered"),
    [
        ("layers.0.k_proj.weight", (16, 8), (64, 8), False),
        ("embed_tokens.weight", (16, 8), (64, 8), False),
        ("post_norm.weight", (16, 8), (64, 8), False),
        ("typed.weight", (16, 8), (64, 8), False),
        ("pos_embed", (16, 8), (64, 8), True),
        ("vision.position_embedding.weight", (17, 8), (65, 8), True),
        ("visual.positional_embedding", (16, 8), (64, 8), True),
        ("abs_pos", (16, 8), (64, 8), True),
        ("encoder.wpe.weight", (16, 8), (64, 8), True),
        ("encoder.pe", (16, 8), (64, 8), True),
        ("table", (1, 16, 8), (1, 64, 8), True),
        ("table", (3, 16, 8), (3, 64, 8), False),
    ],
)
def test_positions_2d_is_offered_where_a_name_or_a_shape_speaks_for_it(
    key: str, source: tuple[int, ...], destination: tuple[int, ...], offered: bool
) -> None:
    assert ("positions-2d" in fitting_policies(source, destination, "float32", key)) == offered


@pytest.mark.parametrize(
    ("policy", "source", "destination"),
    [("patch", (8, 3, 4, 4), (8, 3, 6, 6)), ("channels", (8, 3, 4, 4), (8, 1, 4, 4)), ("center", (8, 3, 3), (8, 3, 5))],
)
def test_policies_of_kernels_are_offered_for_kernels_alone(
    policy: str, source: tuple[int, ...], destination: tuple[int, ...]
) -> None:
    assert policy in fitting_policies(source, destination, "float32", "conv.weight")
    assert policy not in fitting_policies((8, 4), (8, 6), "float32", "patch_embed.weight")


@pytest.mark.parametrize(("wanted", "possible"), [(1, "1, 2 or 3"), (4, "1 or 3")])
def test_the_numbers_of_channels_that_fit_are_said(wanted: int, possible: str) -> None:
    said = channels_fault((4, 5, 3, 3), (4, wanted, 3, 3))
    assert said == f"the source must have {possible} input channels; 5 cannot become {wanted}"
    assert not channels_fault((4, 2, 3, 3), (4, 1, 3, 3))


def test_integers_are_not_interpolated_and_packed_values_not_cut() -> None:
    assert "interpolate" not in fitting_policies((4,), (5,), "int64", "a")
    assert "interpolate" not in fitting_policies((4,), (5,), "complex64", "a")
    assert fitting_policies((4,), (5,), "float4_e2m1fn_x2", "a") == ["init"]


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
        ("int64", "bool", "boolean"),
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
