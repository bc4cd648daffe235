"""The memory for decoding a quantised tensor and for rounding one to codes: some pieces, whatever its size."""

import tracemalloc
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import ckptsurgeon as cs
from ckptsurgeon.engine.compute import compute, computed_codes

MIB = 1 << 20


def peak(plan: cs.Plan, output: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(compute, "THREADS", 1)  # two are at their peaks together or not
    cs.apply(plan, output)  # makes the tables that stay in memory
    tracemalloc.start()
    cs.apply(plan, output, force=True)
    found = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return found


@pytest.mark.costly
@pytest.mark.parametrize("scheme", ["fp8-block", "int8", "nvfp4"])
def test_rounding_to_codes_takes_six_mebibytes(scheme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_file({"layer.up_proj.weight": torch.randn(2048, 2048)}, tmp_path / "plain.safetensors")
    plan = cs.convert(tmp_path / "plain.safetensors", quantize=scheme, include=["**"])
    assert peak(plan, tmp_path / "out.safetensors", monkeypatch) < 6 * MIB


@pytest.mark.long
def test_decoding_packed_integers_takes_six_mebibytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = torch.randint(-(2**31), 2**31, (256, 2048)).to(torch.int32)
    parts = {"qweight": words, "qzeros": words[:16, :256].contiguous(), "scales": torch.rand(16, 2048).half()}
    save_file({f"layer.{name}": one for name, one in parts.items()}, tmp_path / "gptq.safetensors")
    plan = cs.convert(tmp_path / "gptq.safetensors", dequantize=True)
    assert peak(plan, tmp_path / "out.safetensors", monkeypatch) < 6 * MIB


def test_an_average_that_keeps_its_blocks_of_long_rows_takes_fourteen_mebibytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row of blocks has 2 million elements: only some of its columns are in memory as float32."""
    for name in "ab":
        save_file({"layer.up_proj.weight": torch.randn(200, 16400).bfloat16()}, tmp_path / f"{name}.safetensors")
        plan = cs.convert(tmp_path / f"{name}.safetensors", quantize="fp8-block", include=["**"])
        cs.apply(plan, tmp_path / name)
    plan = cs.average([tmp_path / "a", tmp_path / "b"])
    assert peak(plan, tmp_path / "out", monkeypatch) < 14 * MIB
    monkeypatch.setattr(computed_codes, "column_strips", lambda *_: ())
    cs.apply(plan, tmp_path / "whole_rows")
    file = "model.safetensors"
    assert (tmp_path / "out" / file).read_bytes() == (tmp_path / "whole_rows" / file).read_bytes()
