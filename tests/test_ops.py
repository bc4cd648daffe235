"""Blocks, casts and interpolation, held against torch."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ckptsurgeon.errors import PlanError
from ckptsurgeon.ops import blocks, box_shape, cast, interpolate, interpolation_box, raw_dtype
from ckptsurgeon.policies import cast_fault

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
    if tensor.is_floating_point():
        different &= ~torch.isnan(tensor.float() if "float8" in source else tensor)
    assert not different.any()


def test_what_becomes_infinite_is_counted() -> None:
    values = np.array([1.0, 70000.0, -1e30, np.inf, np.nan], "<f4")
    made, lost = cast(values, "float32", "float16")
    assert lost == 2
    assert np.isinf(made).tolist() == [False, True, True, True, False]
    assert cast(values, "float32", "float64")[1] == 0


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
        ours[tuple(slice(*ends) for ends in box)] = interpolate(values, part, box, source, destination, "float32")
    assert np.abs(ours - theirs.numpy()).max() < 5e-6


@pytest.mark.parametrize(("dtype", "within"), [("float32", 5e-7), ("float64", 1e-12)])
def test_long_axes_are_interpolated_exactly(dtype: str, within: float) -> None:
    """Positions in float32, as torch has them, put the weights of the 500th row off by 1e-4."""
    torch.manual_seed(0)
    x = torch.randn(513, dtype=torch.float64).to(getattr(torch, dtype))
    exact = torch.nn.functional.interpolate(x.double()[None, None], size=1000, mode="linear", align_corners=False)
    box = ((0, 1000),)
    part = interpolation_box(box, (513,), (1000,))
    ours = interpolate(x.numpy()[slice(*part[0])], part, box, (513,), (1000,), dtype)
    assert np.abs(ours - exact[0, 0].numpy()).max() < within
