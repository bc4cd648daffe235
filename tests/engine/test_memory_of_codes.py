"""The memory for decoding a quantised tensor and for rounding one to codes: some pieces, whatever its size."""

import tracemalloc
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import ckptsurgeon as cs
from ckptsurgeon.engine.compute import compute

MIB = 1 << 20


def peak(plan: cs.Plan, output: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(compute, "THREADS", 1)  # two are at their peaks together or not
    cs.apply(plan, output)  # makes the tables that stay in memory
    tracemalloc.start()
    cs.apply(plan, output, force=True)
    found = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return found


@pytest.mark.parametrize("scheme", ["fp8-block", "int8", "nvfp4"])
def test_rounding_to_codes_takes_six_mebibytes(scheme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_file({"layer.up_proj.weight": torch.randn(2048, 2048)}, tmp_path / "plain.safetensors")
    plan = cs.convert(tmp_path / "plain.safetensors", quantize=scheme, include=["**"])
    assert peak(plan, tmp_path / "out.safetensors", monkeypatch) < 6 * MIB


def test_decoding_packed_integers_takes_six_mebibytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = torch.randint(-(2**31), 2**31, (256, 2048)).to(torch.int32)
    parts = {"qweight": words, "qzeros": words[:16, :256].contiguous(), "scales": torch.rand(16, 2048).half()}
    save_file({f"layer.{name}": one for name, one in parts.items()}, tmp_path / "gptq.safetensors")
    plan = cs.convert(tmp_path / "gptq.safetensors", dequantize=True)
    assert peak(plan, tmp_path / "out.safetensors", monkeypatch) < 6 * MIB
