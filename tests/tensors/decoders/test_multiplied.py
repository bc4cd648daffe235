"""8-bit floats that are multiplied by their scales: bit for bit what the table of all products has, or left to it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch

from ckptsurgeon.tensors.decoders import _multiplied
from ckptsurgeon.tensors.decoders._multiplied import multiplied
from ckptsurgeon.tensors.decoders._tables import looked_up, products
from ckptsurgeon.tensors.ops.casts import cast, widened
from ckptsurgeon.tensors.ops.regions import Array
from ckptsurgeon.tensors.ops.small_floats import all_finite, from_small

from .test_tables import SHAPES

KINDS = ("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz")
SCALES: dict[str, Callable[[Array], Array]] = {
    "float32": lambda drawn: drawn,
    "bfloat16": lambda drawn: widened(cast(drawn, "float32", "bfloat16")[0], "bfloat16"),
    "powers of two": lambda drawn: np.exp2(np.floor(np.log2(drawn))).astype("<f4"),
    "small": lambda drawn: drawn * np.float32(1e-20),
}


def stored(kind: str, shape: Sequence[int], steps: Sequence[int], seed: int = 0) -> tuple[Array, Array]:
    """Codes of every finite value, and scales."""
    draw = np.random.default_rng(seed)
    every = np.arange(256, dtype="u1")
    codes = draw.choice(every[np.isfinite(from_small(every, kind))], tuple(shape))
    groups = [-(-size // step) for size, step in zip(shape, steps, strict=True)]
    return codes, (draw.random(groups) + 0.01).astype("<f4")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("scales", [*SCALES])
@pytest.mark.parametrize(("shape", "steps"), SHAPES)
def test_products_are_those_of_the_table(
    shape: tuple[int, ...], steps: tuple[int, ...], scales: str, dtype: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_multiplied, "ELEMENTS", 1 << 12)
    codes, scale = stored(kind, shape, steps)
    scale, box = SCALES[scales](scale), tuple((0, size) for size in shape)
    table = products(kind, scale, dtype)
    assert table is not None
    found = multiplied(codes, scale, box, steps, source=kind, dtype=dtype)
    assert found is not None
    assert found.tobytes() == looked_up(codes, table, scale.shape, box, steps).tobytes()


@pytest.mark.parametrize("kind", KINDS)
def test_every_code_times_many_scales_is_rounded_as_torch_rounds(kind: str) -> None:
    every = np.arange(256, dtype="u1")
    codes = np.repeat(every[np.isfinite(from_small(every, kind))][None], 4096, 0)
    scale = SCALES["bfloat16"]((np.random.default_rng(0).random((4096, 1)) / 100 + 1e-4).astype("<f4"))
    box = tuple((0, size) for size in codes.shape)
    found = multiplied(codes, scale, box, (1, codes.shape[1]), source=kind, dtype="bfloat16")
    values = torch.from_numpy(codes).view(getattr(torch, kind)).float() * torch.from_numpy(scale)
    assert found is not None
    assert torch.equal(torch.from_numpy(found.view("<i2")), values.bfloat16().view(torch.int16))


@pytest.mark.parametrize("kind", KINDS)
def test_codes_of_nan_and_infinity_are_left_to_the_table(kind: str) -> None:
    every = np.arange(256, dtype="u1")
    finite = np.isfinite(from_small(every, kind))
    scale, box = np.ones((1, 1), "<f4"), ((0, 1), (0, 256))
    for code in every:
        codes = np.full((1, 256), code)
        assert all_finite(codes, kind) == finite[code], code
        made = multiplied(codes, scale, box, (1, 256), source=kind, dtype="bfloat16")
        assert (made is None) == (not finite[code])


@pytest.mark.parametrize("scale", [2.0**-110, 2.0**111, 0.0])
def test_products_that_may_not_be_normal_are_left_to_the_table(scale: float) -> None:
    codes, _ = stored("float8_e4m3fn", (2, 256), (2, 256))
    scales = np.full((1, 1), scale, "<f4")
    assert multiplied(codes, scales, ((0, 2), (0, 256)), (2, 256), source="float8_e4m3fn", dtype="bfloat16") is None


@pytest.mark.parametrize(("kind", "dtype"), [("float8_e8m0fnu", "bfloat16"), ("float8_e4m3fn", "float16")])
def test_other_dtypes_are_left_to_the_table(kind: str, dtype: str) -> None:
    codes, scale = np.zeros((1, 256), "u1"), np.ones((1, 1), "<f4")
    assert multiplied(codes, scale, ((0, 1), (0, 256)), (1, 256), source=kind, dtype=dtype) is None


def test_a_thread_without_subnormal_numbers_looks_up() -> None:
    """``torch.set_flush_denormal(True)`` would make zeros of the smallest codes."""
    codes, scale = stored("float8_e4m3fn", (2, 256), (2, 256))
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor always computes with subnormal numbers")
    try:
        found = multiplied(codes, scale, ((0, 2), (0, 256)), (2, 256), source="float8_e4m3fn", dtype="bfloat16")
    finally:
        torch.set_flush_denormal(False)
    assert found is None
