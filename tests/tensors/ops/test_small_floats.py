"""8-bit floats are read and rounded as torch does, every one of them."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch

from ckptsurgeon.tensors.ops.casts import cast
from ckptsurgeon.tensors.ops.small_floats import SMALL_FLOATS, from_small, to_small

TYPES = sorted(name for name in SMALL_FLOATS if hasattr(torch, name))
"""Those that the torch at hand has: 2.6 has no float8_e8m0fnu."""
SATURATES = bool(torch.tensor(1000.0).to(torch.float8_e4m3fn).float() == 448)
"""Whether torch makes the largest float8_e4m3fn of what is beyond it, as the package does; older ones make NaN."""


def theirs(values: np.ndarray, dtype: str) -> np.ndarray:
    return torch.from_numpy(values).to(getattr(torch, dtype)).view(torch.uint8).numpy()


def comparable(values: np.ndarray, dtype: str) -> np.ndarray:
    """The values of which this torch makes what the newest makes."""
    return values if SATURATES or dtype != "float8_e4m3fn" else values[~(np.abs(values) > 464)]


@pytest.mark.parametrize("dtype", TYPES)
def test_all_256_values_are_torch_s(dtype: str) -> None:
    codes = np.arange(256, dtype="u1")
    expected = torch.from_numpy(codes).view(getattr(torch, dtype)).to(torch.float32).numpy()
    assert np.array_equal(from_small(codes, dtype).view("u4"), expected.view("u4"))


@pytest.mark.parametrize("dtype", TYPES)
def test_every_float16_is_rounded_as_torch_rounds_it(dtype: str) -> None:
    halves = comparable(np.arange(1 << 16, dtype="<u2").view("<f2"), dtype)
    found, _ = cast(halves, "float16", dtype)
    assert np.array_equal(found, theirs(halves, dtype))


@pytest.mark.parametrize("dtype", TYPES)
def test_floats_beyond_and_between_are_rounded_as_torch_rounds_them(dtype: str) -> None:
    bits = np.random.default_rng(0).integers(0, 1 << 32, 1 << 18, dtype="u4")
    values = from_small(np.arange(256, dtype="u1"), dtype)
    finite = np.sort(values[np.isfinite(values)]).astype("f8")
    middles = ((finite[1:] + finite[:-1]) / 2).astype("f4")
    near = np.concatenate([middles, np.nextafter(middles, np.float32(0)), np.nextafter(middles, np.float32(1e38))])
    floats = comparable(np.concatenate([bits.view("<f4"), near]), dtype)
    assert np.array_equal(to_small(floats, dtype), theirs(floats, dtype))


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("other", ["float64", "float32", "bfloat16", "float16", *TYPES])
def test_casts_between_them_are_torch_s(dtype: str, other: str) -> None:
    codes = np.arange(256, dtype="u1")
    tensor = torch.from_numpy(codes).view(getattr(torch, dtype)).to(getattr(torch, other))
    found, lost = cast(codes, dtype, other)
    before = torch.from_numpy(codes).view(getattr(torch, dtype)).float()
    size = tensor.element_size()
    same = (found.view("u1").reshape(-1, size) == tensor.view(torch.uint8).numpy().reshape(-1, size)).all(1)
    is_number = ~before.isnan().numpy()
    assert same[is_number if SATURATES or other != "float8_e4m3fn" else is_number & (before.abs() <= 464).numpy()].all()
    assert tensor.float().isnan()[before.isnan()].all()
    spoiled = before.abs() > 464 if other == "float8_e4m3fn" else before.isfinite() & ~tensor.float().isfinite()
    assert lost.infinite == int(spoiled.sum())


def test_no_torch_is_imported_to_cast_them() -> None:
    code = (
        "import sys, numpy; from ckptsurgeon.tensors.ops.casts import cast; "
        "cast(numpy.zeros(9, 'u1'), 'float8_e5m2', 'float32'); cast(numpy.zeros(9, 'f4'), 'float32', 'float8_e4m3fn'); "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
