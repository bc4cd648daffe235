"""Blocks, casts and interpolation, held against torch."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ckptsurgeon.engine.resample.resample import interpolate, interpolation_box
from ckptsurgeon.errors import PlanError
from ckptsurgeon.planning.mismatch.policies import cast_fault
from ckptsurgeon.tensors.ops import casts
from ckptsurgeon.tensors.ops.casts import CastLosses, cast, count_special, raw_dtype
from ckptsurgeon.tensors.ops.regions import blocks, box_shape

from .test_small_floats import SATURATES

shapes = st.lists(st.integers(0, 5), max_size=4).map(tuple)


@given(shapes, st.integers(1, 40))
def test_blocks_cover_a_tensor_once_in_memory_order(shape: tuple[int, ...], limit: int) -> None:
    whole = np.arange(math.prod(shape)).reshape(shape)
    seen = []
    for box in blocks(shape, limit):
        part = whole[tuple(slice(*ends) for ends in box)]
        assert part.shape == box_shape(box)
        assert part.size <= max(limit, 1)
        seen += part.reshape(-1).tolist()
    assert seen == list(range(math.prod(shape)))


def raw(tensor: torch.Tensor) -> Any:
    name = str(tensor.dtype)[6:]
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().view(raw_dtype(name)).reshape(tensor.shape)


def every_16_bits(dtype: torch.dtype) -> torch.Tensor:
    return torch.arange(65536, dtype=torch.int32).to(torch.int16).view(dtype)


def some_floats() -> torch.Tensor:
    generator = np.random.default_rng(0)
    bits = generator.integers(0, 2**32, 100_000, dtype=np.uint32)
    bits[:8] = [0, 0x80000000, 0x7F800000, 0xFF800000, 0x7F7FFFFF, 1, 0x33800000, 0x477FF000]
    return torch.from_numpy(bits.view(np.int32)).view(torch.float32)


SOURCES = {
    "float32": some_floats(),
    "float64": torch.cat([some_floats().double(), torch.randn(1000).double() * 1e-3]),
    "float16": every_16_bits(torch.float16),
    "bfloat16": every_16_bits(torch.bfloat16),
    "int64": torch.randint(-(2**62), 2**62, (999,)),
    "int32": torch.arange(-100, 100, dtype=torch.int32),
    "uint8": torch.arange(256).to(torch.uint8),
    "bool": torch.tensor([True, False]),
    "complex64": torch.randn(99, dtype=torch.complex64),
    "complex128": torch.randn(99, dtype=torch.complex128),
    "float8_e4m3fn": torch.arange(256).to(torch.uint8).view(torch.float8_e4m3fn),
    "float8_e5m2": torch.arange(256).to(torch.uint8).view(torch.float8_e5m2),
}
FLOATS = ["float64", "float32", "float16", "bfloat16", "complex64", "complex128", "float8_e4m3fn", "float8_e5m2"]


CASTS = [(s, d) for s in SOURCES for d in (*FLOATS, "int64", "int32") if not cast_fault(s, d)]


@pytest.mark.parametrize(("source", "destination"), CASTS)
def test_casts_are_torch_s_bit_for_bit_but_for_the_payload_of_nan(source: str, destination: str) -> None:
    tensor = SOURCES[source]
    if (source, destination) == ("int64", "int32"):
        tensor = tensor % 1000
    made, _ = cast(raw(tensor), source, destination)
    wanted = tensor.to(getattr(torch, destination))
    size = wanted.element_size()
    ours = np.ascontiguousarray(made).view("u1").reshape(-1, size)
    theirs = raw(wanted).view("u1").reshape(-1, size)
    different = torch.from_numpy((ours != theirs).any(1))
    values = tensor.float() if "float8" in source else tensor
    if tensor.is_floating_point():
        different &= ~torch.isnan(values)
    if destination == "float8_e4m3fn" and not SATURATES:
        different &= ~(tensor.to(torch.float64).abs() > 464)
    assert not different.any()


@pytest.mark.parametrize("size", [0, 1, 699, 700, 701, 2000])
def test_values_are_rounded_to_bfloat16_a_few_at_a_time(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each part gets its own bits and its own NaN."""
    values = np.random.default_rng(size).standard_normal(size, "<f4")
    values.view("<u4")[::97] = 0x7FFFFFFF  # NaN that rounding alone turns into -0
    whole = cast(values, "float32", "bfloat16")[0]
    monkeypatch.setattr(casts, "CACHED", 700)
    assert np.array_equal(cast(values, "float32", "bfloat16")[0], whole)
    assert np.array_equal(whole == 0x7FC0, np.isnan(values))


@pytest.mark.long
@pytest.mark.parametrize("size", [1, 600, 1 << 20])
def test_sums_of_bfloat16_values_are_rounded_and_nan_stays_nan(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    base = raw(every_16_bits(torch.bfloat16)).reshape(-1, 256)
    change = np.random.default_rng(3).standard_normal(base.shape, "<f4")
    change[::17, ::5] *= np.float32(1e37)
    change[1::17, ::5] *= np.float32(1e-40)
    change[3, 4], change[5, 6] = np.nan, np.inf
    with np.errstate(all="ignore"):
        sums = casts.widened(base, "bfloat16") + change
        monkeypatch.setattr(casts, "CACHED", size)
        made, wanted = casts.bfloat16_sums(base, change), casts.to_bfloat16(sums)
    is_nan = np.isnan(sums)
    assert is_nan.any()
    assert np.isnan(casts.widened(made[is_nan], "bfloat16")).all()
    assert np.array_equal(made[~is_nan], wanted[~is_nan])


def test_what_becomes_infinite_is_counted() -> None:
    values = np.array([1.0, 70000.0, -1e30, np.inf, np.nan], "<f4")
    made, lost = cast(values, "float32", "float16")
    assert lost.infinite == 2
    assert np.isinf(made).tolist() == [False, True, True, True, False]
    assert cast(values, "float32", "float64")[1] == CastLosses()


def test_an_integer_that_does_not_fit_is_refused() -> None:
    with pytest.raises(PlanError, match="300 does not fit int8"):
        cast(np.array([1, 300], "<i8"), "int64", "int8")
    with pytest.raises(PlanError, match="-1 does not fit uint8"):
        cast(np.array([1, -1], "<i8"), "int64", "uint8")


@pytest.mark.parametrize(
    ("source", "destination"),
    [
        ((7,), (11,)),
        ((11,), (4,)),
        ((512, 16), (300, 16)),
        ((1, 7, 5), (1, 11, 5)),
        ((3, 7, 5), (3, 4, 9)),
        ((6, 2), (6, 1)),
    ],
)
@pytest.mark.parametrize("limit", [1, 13, 10_000])
def test_interpolation_is_torch_s_of_exact_positions(
    source: tuple[int, ...], destination: tuple[int, ...], limit: int
) -> None:
    torch.manual_seed(0)
    x = torch.randn(source)
    axes = [i for i in range(len(source)) if source[i] != destination[i]]
    order = [i for i in range(len(source)) if i not in axes] + axes
    flat = x.double().permute(order).reshape(1, -1, *(source[i] for i in axes))
    mode = "linear" if len(axes) == 1 else "bilinear"
    sizes = [destination[i] for i in axes]
    theirs = torch.nn.functional.interpolate(flat, size=sizes, mode=mode, align_corners=False)
    theirs = theirs.reshape([destination[i] for i in order]).permute([order.index(i) for i in range(len(order))])
    ours = np.empty(destination, "f4")
    for box in blocks(destination, limit):
        part = interpolation_box(box, source, destination)
        values = x.numpy()[tuple(slice(*ends) for ends in part)]
        ours[tuple(slice(*ends) for ends in box)] = interpolate(values, part, box, source, destination, dtype="float32")
    assert np.abs(ours - theirs.numpy()).max() < 5e-6


@pytest.mark.parametrize(("dtype", "within"), [("float32", 5e-7), ("float64", 1e-12)])
def test_long_axes_are_interpolated_exactly(dtype: str, within: float) -> None:
    """Positions in float32, as torch has them, put the weights of the 500th row off by 1e-4."""
    torch.manual_seed(0)
    x = torch.randn(513, dtype=torch.float64).to(getattr(torch, dtype))
    exact = torch.nn.functional.interpolate(x.double()[None, None], size=1000, mode="linear", align_corners=False)
    box = ((0, 1000),)
    part = interpolation_box(box, (513,), (1000,))
    ours = interpolate(x.numpy()[slice(*part[0])], part, box, (513,), (1000,), dtype=dtype)
    assert np.abs(ours - exact[0, 0].numpy()).max() < within


@pytest.mark.parametrize(
    ("values", "source", "destination", "lost"),
    [
        ([100000, 1], torch.int64, torch.float16, 1),
        ([65535, 1], torch.uint16, torch.float16, 1),
        ([1e300, 1.0], torch.float64, torch.float32, 1),
        ([1e300 + 0j, 1.0], torch.complex128, torch.complex64, 1),
        ([1e5, 1.0], torch.bfloat16, torch.float16, 1),
        ([60000.0, 1.0], torch.float16, torch.bfloat16, 0),
        ([3.4e38, 1.0], torch.float32, torch.bfloat16, 1),
        ([127, 1], torch.int8, torch.float16, 0),
        ([float("inf"), 1.0], torch.float32, torch.float16, 0),
        ([62000.0, 1.0], torch.float16, torch.float8_e5m2, 1),
    ],
)
def test_new_infinities_are_counted(values: list[Any], source: Any, destination: Any, lost: int) -> None:
    tensor = torch.tensor(values, dtype=source)
    names = [str(dtype).removeprefix("torch.") for dtype in (source, destination)]
    made, number = cast(as_raw(tensor), names[0], names[1])
    assert number.infinite == lost
    assert made.tobytes() == as_raw(tensor.to(destination)).tobytes()


def as_raw(tensor: torch.Tensor) -> Any:
    name = str(tensor.dtype).removeprefix("torch.")
    return tensor.reshape(-1).view(torch.uint8).numpy().view(raw_dtype(name)).reshape(tensor.shape)


def test_double_to_half_is_rounded_as_torch_rounds_it() -> None:
    values = torch.tensor([1.0 + 2**-11 + 2**-30, 2049.0000001], dtype=torch.float64)
    assert cast(values.numpy(), "float64", "float16")[0].tobytes() == values.half().numpy().tobytes()


SPECIAL = {
    torch.float64: (2, 1), torch.float32: (2, 1), torch.float16: (2, 1), torch.bfloat16: (2, 1), torch.complex64: (2, 1),
    torch.complex32: (2, 1), torch.float8_e5m2: (2, 1), torch.float8_e4m3fn: (2, 0), torch.float8_e4m3fnuz: (2, 0),
    torch.float8_e5m2fnuz: (2, 0),
}  # fmt: skip


@pytest.mark.parametrize("dtype", SPECIAL, ids=str)
def test_nan_and_inf_are_counted_in_every_type(dtype: Any) -> None:
    nan, inf = SPECIAL[dtype]
    values = [1.0, float("nan"), -2.0, float("nan"), *([float("inf")] if inf else []), 0.0]
    tensor = torch.tensor(values).to(dtype)
    assert count_special(as_raw(tensor), str(dtype).removeprefix("torch.")) == (nan, inf)


def test_integers_hold_nothing_special() -> None:
    assert count_special(np.array([1, 2], "<i8"), "int64") == (0, 0)
    assert count_special(np.array([0xFF, 1], "u1"), "float8_e8m0fnu") == (1, 0)


def test_an_interpolation_reads_only_what_it_needs() -> None:
    assert interpolation_box(((0, 1),), (100,), (10,)) == ((4, 6),)
    assert interpolation_box(((3, 4), (0, 5)), (10, 5), (20, 5)) == ((1, 3), (0, 5))
