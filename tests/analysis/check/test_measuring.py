"""The figures of one pass are those of the values, exactly for counts and extremes, whatever the dtype."""

from __future__ import annotations

import math
import signal
import threading
import tracemalloc
from collections.abc import Callable
from itertools import count, repeat
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import ckptsurgeon as cs
from ckptsurgeon.analysis.check.measuring import one_pass
from ckptsurgeon.analysis.check.measuring.blocks import Block, BlockFigures
from ckptsurgeon.analysis.check.measuring.figures import BLOCK, Figures
from ckptsurgeon.analysis.check.measuring.float_values import (
    LAYOUTS,
    as_floats,
    as_floats_in_any_order,
    extremes,
)
from ckptsurgeon.analysis.check.measuring.one_pass import measure

FLOATS = (torch.bfloat16, torch.float16, torch.float32, torch.float64, torch.float8_e4m3fn, torch.float8_e5m2)
RARE = (torch.float8_e4m3fnuz, torch.float8_e5m2fnuz)


def values(dtype: torch.dtype, number: int) -> torch.Tensor:
    """Random bits: all kinds of numbers, NaN, infinities and denormals among them."""
    draw = torch.Generator().manual_seed(1)
    raw = torch.randint(0, 256, (number * dtype.itemsize,), dtype=torch.uint8, generator=draw)
    return raw.view(dtype)


def denormal(found: torch.Tensor, dtype: torch.dtype) -> int:
    wide = found.double().abs()
    return int(((wide > 0) & (wide < torch.finfo(dtype).smallest_normal)).sum())


@pytest.mark.parametrize("dtype", [*FLOATS, *RARE], ids=str)
@pytest.mark.parametrize("number", [1, 4095, 300_001])
def test_figures_of_random_bits_are_exact(dtype: torch.dtype, number: int, tmp_path: Path) -> None:
    found = values(dtype, number)
    save_file({"x": found}, tmp_path / "x.safetensors")
    with cs.open_checkpoint(tmp_path / "x.safetensors") as checkpoint:
        figures = measure(checkpoint, checkpoint, ())["x"].figures
    assert figures is not None
    wide = found.double()
    finite = wide[wide.isfinite()]
    assert figures.number == finite.numel()
    assert (figures.nan, figures.inf) == (int(wide.isnan().sum()), int(wide.isinf().sum()))
    assert figures.zeros == int((wide == 0).sum())
    assert figures.denormals == denormal(found, dtype)
    if finite.numel():
        assert (figures.low, figures.high) == (float(finite.min()), float(finite.max()))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("sign", [1, -1, 0])
def test_figures_of_finite_values_are_exact(dtype: torch.dtype, sign: int, tmp_path: Path) -> None:
    found = values(dtype, 9000)
    found = found[found.double().isfinite()][:5001]  # an odd number
    if sign:
        found = (found.double().abs() * sign).to(dtype)
    save_file({"x": found}, tmp_path / "x.safetensors")
    with cs.open_checkpoint(tmp_path / "x.safetensors") as checkpoint:
        figures = measure(checkpoint, checkpoint, ())["x"].figures
    assert figures is not None
    assert (figures.number, figures.nan, figures.inf) == (5001, 0, 0)
    assert (figures.low, figures.high) == (float(found.double().min()), float(found.double().max()))
    assert (figures.zeros, figures.denormals) == (int((found.double() == 0).sum()), denormal(found, dtype))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float8_e4m3fn], ids=str)
@pytest.mark.parametrize("number", [1, 64, 65])
def test_values_in_any_order_are_those_in_order(dtype: torch.dtype, number: int) -> None:
    made = torch.randn(number, generator=torch.Generator().manual_seed(3)).to(dtype)
    layout = LAYOUTS[str(dtype).removeprefix("torch.")]
    codes = made.view(torch.uint8).numpy().view(layout.codes)
    ordered = as_floats(codes, np.empty(number, np.uint32), layout)
    assert ordered.tolist() == made.float().tolist()
    assert sorted(as_floats_in_any_order(codes, np.empty(number, np.uint32), layout)) == sorted(ordered)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_moments_of_weights_are_right(dtype: torch.dtype, tmp_path: Path) -> None:
    found = (torch.randn(700, 501, generator=torch.Generator().manual_seed(2)) * 0.3).to(dtype)
    save_file({"x": found}, tmp_path / "x.safetensors")
    with cs.open_checkpoint(tmp_path / "x.safetensors") as checkpoint:
        one = measure(checkpoint, checkpoint, ("x",))["x"]
    assert one.figures is not None
    assert math.isclose(one.figures.std, float(found.double().std(correction=0)), rel_tol=1e-5)
    if dtype in (torch.bfloat16, torch.float16, torch.float32):
        assert one.rows is not None
        assert np.allclose(one.rows.squares, found.double().square().sum(dim=1).numpy(), rtol=1e-5)


LARGE = (4097, 1024)
"""A shape of over 4 MiB in any dtype of 8 bits or more."""


def measured(found: torch.Tensor, folder: Path) -> Figures:
    save_file({"x": found}, folder / "x.safetensors")
    with cs.open_checkpoint(folder / "x.safetensors") as checkpoint:
        figures = measure(checkpoint, checkpoint, ())["x"].figures
    assert figures is not None
    return figures


@pytest.mark.long
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_counts_of_a_large_tensor_are_exact_and_its_moments_nearly(dtype: torch.dtype, tmp_path: Path) -> None:
    found = (torch.randn(LARGE, generator=torch.Generator().manual_seed(2)) * 0.3 + 0.05).to(dtype)
    flat = found.reshape(-1)
    flat[77::9001], flat[-1] = 0.0, -0.0
    if dtype != torch.float8_e4m3fn:
        flat[1_000_003] = torch.finfo(dtype).smallest_normal / 2
    figures, wide = measured(found, tmp_path), found.double()
    assert (figures.low, figures.high) == (float(wide.min()), float(wide.max()))
    zeros, denormals = int((wide == 0).sum()), denormal(found, dtype)
    if dtype in (torch.float16, torch.float8_e4m3fn, torch.float8_e5m2):  # negative zeros and denormals are estimated
        assert math.isclose(figures.zeros, zeros, rel_tol=0.1)
        assert abs(figures.denormals - denormals) <= 1000 + 0.1 * denormals
    else:
        assert (figures.zeros, figures.denormals) == (zeros, denormals)
    assert figures.number == found.numel()
    assert math.isclose(figures.std, float(wide.std(correction=0)), rel_tol=0.02)
    assert math.isclose(figures.total / figures.number, float(wide.mean()), abs_tol=0.005)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2], ids=str)
@pytest.mark.parametrize("place", [0, 2_000_003])
def test_a_single_negative_zero_of_8_bit_floats_is_seen(dtype: torch.dtype, place: int, tmp_path: Path) -> None:
    found = torch.ones(LARGE).to(dtype)
    assert measured(found, tmp_path).negative_zeros == 0
    found.view(torch.uint8).reshape(-1)[place] = 0x80
    figures = measured(found, tmp_path)
    assert figures.negative_zeros >= 1
    assert figures.zeros >= 1


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_positive_zeros_of_a_large_tensor_are_all_counted(dtype: torch.dtype, tmp_path: Path) -> None:
    found = torch.ones(LARGE).to(dtype)
    found.reshape(-1)[1_000_001:1_002_000] = 0.0
    assert measured(found, tmp_path).zeros == 1999


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_a_single_nan_of_a_large_tensor_is_counted(dtype: torch.dtype, tmp_path: Path) -> None:
    found = torch.ones(LARGE).to(dtype)
    found.reshape(-1)[3_000_017] = math.nan
    assert measured(found, tmp_path).nan == 1


@pytest.mark.costly
@pytest.mark.parametrize("place", range(0, 1 << 18, 19_001))
def test_one_large_value_counts_in_the_deviation_wherever_it_is(place: int, tmp_path: Path) -> None:
    found = torch.randn(LARGE, generator=torch.Generator().manual_seed(2)).to(torch.bfloat16)
    found.reshape(-1)[place] = 1e6
    assert math.isclose(measured(found, tmp_path).std, float(found.double().std(correction=0)), rel_tol=0.01)


@pytest.mark.parametrize("columns", [1 << power for power in range(10, 21, 2)])
def test_a_sample_has_its_part_of_each_column(columns: int, tmp_path: Path) -> None:
    found = torch.full((max(16 << 20, 16 * columns) // columns, columns), 0.01, dtype=torch.bfloat16)
    found[:, columns // 2 : columns // 2 + columns // 4] = 0.25  # not so large that all values are added
    assert math.isclose(measured(found, tmp_path).std, float(found.float().std(correction=0)), rel_tol=0.1)


def test_rows_with_equal_sums_and_other_bytes_are_not_alike(tmp_path: Path) -> None:
    one_hot = torch.eye(64)
    one_hot[[5, 9]] = one_hot[3].clone()
    one_hot[[20, 21]] = 0
    save_file({"y": torch.ones(3), "x": one_hot}, tmp_path / "x.safetensors")
    with cs.open_checkpoint(tmp_path / "x.safetensors") as checkpoint:
        rows = measure(checkpoint, checkpoint, ("x",))["x"].rows
    assert rows is not None
    assert np.flatnonzero(rows.alike).tolist() == [3, 5, 9]


def test_ties_strides_and_files_of_torch_are_measured_too(tmp_path: Path) -> None:
    whole = torch.arange(12.0).reshape(3, 4)
    torch.save({"a": whole, "b": whole, "t": whole.t(), "part": whole[:, 1:]}, tmp_path / "x.pth")
    with cs.open_checkpoint(tmp_path / "x.pth") as checkpoint:
        found = measure(checkpoint, checkpoint, ())
    assert found["a"] is found["b"]
    assert [one.figures.high for one in found.values() if one.figures] == [11.0] * 4
    assert found["part"].figures is not None
    assert found["part"].figures.number == 9


def test_equal_bytes_have_a_digest_and_others_none(tmp_path: Path) -> None:
    save_file({"a": torch.ones(9), "b": torch.ones(9), "c": torch.zeros(9)}, tmp_path / "x.safetensors")
    with cs.open_checkpoint(tmp_path / "x.safetensors") as checkpoint:
        found = measure(checkpoint, checkpoint, ())
    assert found["a"].digest == found["b"].digest != ""
    assert not found["c"].digest


def test_the_number_of_threads_does_not_change_the_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_file({f"{i}": values(torch.bfloat16, 300_000 + i) for i in range(4)}, tmp_path / "x.safetensors")
    found = []
    for threads in (1, 4):
        monkeypatch.setattr(one_pass, "THREADS", threads)
        with cs.open_checkpoint(tmp_path / "x.safetensors") as checkpoint:
            found.append(measure(checkpoint, checkpoint, ()))
    assert found[0] == found[1]


def test_a_large_tensor_takes_no_more_memory_than_some_blocks(tmp_path: Path) -> None:
    save_file({"x": torch.zeros(64 * BLOCK // 2, dtype=torch.bfloat16)}, tmp_path / "x.safetensors")
    with cs.open_checkpoint(tmp_path / "x.safetensors") as checkpoint:
        measure(checkpoint, checkpoint, ())
        tracemalloc.start()
        measure(checkpoint, checkpoint, ())
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < 40 * BLOCK  # five arrays for each of four threads, and not the 64 blocks of the file


def test_an_error_of_what_is_done_meanwhile_stops_the_threads(tmp_path: Path) -> None:
    save_file({"x": torch.ones(9)}, tmp_path / "x.safetensors")

    def fail() -> None:
        raise cs.ConfigError("no.")

    with cs.open_checkpoint(tmp_path / "x.safetensors") as checkpoint, pytest.raises(cs.ConfigError):
        measure(checkpoint, checkpoint, (), meanwhile=fail)
    assert not [one for one in threading.enumerate() if one.name == "measure"]


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_extremes_are_the_values_of_every_code(dtype: torch.dtype) -> None:
    layout = LAYOUTS[str(dtype).removeprefix("torch.")]
    some = values(dtype, 999)
    some = some[some.double().isfinite()]
    for one in (*some[:99], torch.tensor(-0.0).to(dtype)):
        codes = one.reshape(1).view(torch.uint8).numpy().view(layout.codes)
        _, _, ends, is_negative_zero = extremes(codes, layout)
        assert ends == (one.double().item(), one.double().item())
        assert is_negative_zero == (one == 0 and bool(one.signbit() if dtype.itemsize > 1 else codes[0] == 0x80))


MANY = 300_000
"""Blocks that take seconds to measure, even if nothing is read."""


def measure_many(measured_block: Callable[..., BlockFigures], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_file({"x": torch.zeros(1)}, folder / "x.safetensors")
    monkeypatch.setattr(one_pass, "blocks_of", lambda key, info, **_: repeat(Block(key, info), MANY))
    monkeypatch.setattr(one_pass, "measured_block", measured_block)
    try:
        with cs.open_checkpoint(folder / "x.safetensors") as checkpoint:
            measure(checkpoint, checkpoint, ())
    finally:  # Ctrl-C may come while a thread starts, which is then not waited for
        for thread in [one for one in threading.enumerate() if one.name == "measure"]:
            thread.join(10)


def test_all_threads_stop_at_ctrl_c(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = count()

    def measured(*_: object) -> BlockFigures:
        if next(calls) == 0:
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        return BlockFigures(None, 0, 0)

    with pytest.raises(KeyboardInterrupt):
        measure_many(measured, tmp_path, monkeypatch)
    assert next(calls) < MANY


def test_all_threads_stop_when_one_cannot_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = count()

    def measured(*_: object) -> BlockFigures:
        if next(calls) == 0:
            raise cs.SourceError("the file ends before.")
        return BlockFigures(None, 0, 0)

    monkeypatch.setattr(one_pass, "THREADS", 2)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1})
    with pytest.raises(cs.SourceError):
        measure_many(measured, tmp_path, monkeypatch)
    assert next(calls) < MANY


def test_progress_ends_with_all_bytes(tmp_path: Path) -> None:
    save_file({"x": torch.zeros(BLOCK)}, tmp_path / "x.safetensors")
    seen = []
    with cs.open_checkpoint(tmp_path / "x.safetensors") as checkpoint:
        measure(checkpoint, checkpoint, (), lambda done, whole: seen.append((done, whole)))
    assert seen[-1] == (4 * BLOCK, 4 * BLOCK)
