"""What adapters take is known before, and kept to: bytes, passes, memory; what is not finite is said."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import ckptsurgeon as cs

from ...helpers.adapters import base_state, factors, peft_folder
from ...helpers.nursery import run_apart

PEAK = """
import sys
import ckptsurgeon as cs
cs.apply(PLAN, "out/")
print(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
"""
MERGE = "cs.lora_merge('base.safetensors', 'adapter', memory=sys.argv[1])"
EXTRACT = "cs.lora_extract('tuned.safetensors', 'base.safetensors', rank=32, memory=sys.argv[1])"


def write(rows: int, columns: int, rank: int) -> None:
    """A base of three matrices, what was tuned of it, and an adapter of one of them."""
    base = {f"layers.{i}.q.weight": torch.randn(rows, columns) for i in range(3)}
    save_file(base, "base.safetensors")
    save_file({**base, "layers.1.q.weight": base["layers.1.q.weight"] + 1}, "tuned.safetensors")
    a, b = factors(rows, columns, rank)
    if not Path("adapter").exists():
        peft_folder("adapter", {"layers.1.q.lora_A.weight": a, "layers.1.q.lora_B.weight": b}, r=rank)
        return
    pair = {"layers.1.q.lora_A.weight": a, "layers.1.q.lora_B.weight": b}
    save_file({f"base_model.model.{key}": value for key, value in pair.items()}, "adapter/adapter_model.safetensors")


def peak(plan: str, memory: int) -> int:
    """The most memory, in bytes, of a small process of its own."""
    done = run_apart(PEAK.replace("PLAN", plan), memory)
    assert not done.returncode, done.stderr
    for path in Path("out").iterdir():
        path.unlink()
    return int(done.stdout) << 10


@pytest.mark.long
@pytest.mark.parametrize(("plan", "memory"), [(MERGE, 40 << 20), (EXTRACT, 72 << 20)], ids=["merge", "extract"])
def test_the_memory_is_kept_to_whatever_the_tensors_sizes(plan: str, memory: int) -> None:
    write(64, 64, 32)
    interpreter = peak(plan, memory)
    write(20_000, 1000, 32)  # 80 MB each
    assert peak(plan, memory) - interpreter < memory


@pytest.mark.long
@pytest.mark.parametrize(
    ("plan", "why"),
    [(MERGE, "its adapters' factors and a block of rows are in memory at once"), (EXTRACT, "the low-rank factors of a difference")],
    ids=["merge", "extract"],
)  # fmt: skip
def test_what_does_not_fit_the_memory_is_an_error(plan: str, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    write(100_000, 100, 32)
    monkeypatch.setattr(sys, "argv", ["", "17MB"])
    with pytest.raises(
        cs.PlanError, match=rf"takes [\d.]+ MB of memory, because {why}.*; the limit is 17\.0 MB"
    ) as error:
        eval(plan)
    assert error.value.hint.startswith("Allow more memory: --memory ")
    assert not Path("out").exists()


def test_a_dry_run_says_what_it_takes(ckpt: Any) -> None:
    write(64, 48, 8)
    base, factor = 3 * 64 * 48 * 4, 8 * (64 + 48) * 4
    merge = ["lora", "merge", "base.safetensors", "adapter", "-n"]
    assert "costs reads 40.4 kB, writes 36.9 kB, about 16.8 MB of memory" in " ".join(ckpt(*merge).out.split())
    costs = json.loads(ckpt(*merge, "--json").out)["costs"]
    assert costs == {"passes": 1, "nbytes_read": base + factor, "nbytes_written": base, "memory_nbytes": 16 << 20}
    extract = ["lora", "extract", "tuned.safetensors", "base.safetensors", "--rank", "8", "-n"]
    assert "costs reads up to 172.0 kB in 7 passes, writes 3.6 kB" in " ".join(ckpt(*extract).out.split())
    costs = json.loads(ckpt(*extract, "--json").out)["costs"]
    assert (costs["passes"], costs["nbytes_read"], costs["nbytes_written"]) == (7, 7 * 2 * base // 3, factor)


@pytest.mark.parametrize("verb", [["merge", "base.safetensors", "adapter"], ["extract", "tuned.safetensors", "base.safetensors"]])  # fmt: skip
def test_what_is_no_size_is_said(verb: list[str], ckpt: Any) -> None:
    write(8, 8, 2)
    done = ckpt("lora", *verb, "--memory", "lots", "-o", "no/")
    assert (done.code, "--memory lots is not a valid size" in done.err) == (2, True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 3e38])
def test_what_an_adapter_makes_infinite_or_nan_is_said(value: float, dtype: torch.dtype, ckpt: Any) -> None:
    base = base_state(dtype)
    base["layers.0.q.weight"][0] = float("nan")  # was not finite before
    base["layers.0.q.weight"][1, 1] = float("inf")
    save_file(base, "base.safetensors")
    a, b = factors(8, 8)
    b[5, 0], b[1, 0] = value, value
    a[0] = 3e38 if value == 3e38 and dtype != torch.float16 else 1.0
    peft_folder("a", {"layers.0.q.lora_A.weight": a, "layers.0.q.lora_B.weight": b})
    done = ckpt("lora", "merge", "base.safetensors", "a", "-o", "o.safetensors", "--json")
    found = load_file("o.safetensors")["layers.0.q.weight"]
    lost = int((~found.isfinite() & base["layers.0.q.weight"].isfinite()).sum())
    expected = 0 if value == 3e38 and dtype == torch.float64 else 15
    assert lost >= expected
    said = [note for note in json.loads(done.out)["notes"] if "small tensor" not in note]
    became = [f"{lost} values of layers.0.q.weight became infinite or NaN"] if lost else []
    assert said == [*became, "NaN and infinite values come from the inputs: layers.0.q.weight (9 values)"]
    assert done.err == ""
    assert cs.verify("o.safetensors").ok


def test_magnitudes_of_nothing_are_said(ckpt: Any) -> None:
    base = base_state()
    base["layers.1.up.weight"][3] = 0
    save_file(base, "base.safetensors")
    a, b = factors(20, 8)
    b[3] = 0
    tensors = {"layers.1.up.lora_A.weight": a, "layers.1.up.lora_B.weight": b, "layers.1.up.lora_magnitude_vector": torch.ones(20)}  # fmt: skip
    peft_folder("a", tensors, use_dora=True)
    done = ckpt("lora", "merge", "base.safetensors", "a", "-o", "o.safetensors", "--json")
    assert json.loads(done.out)["notes"] == ["8 values of layers.1.up.weight became infinite or NaN"]
    assert done.err == ""


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_weights_that_are_no_numbers_are_said_once(value: str, ckpt: Any) -> None:
    write(8, 8, 2)
    done = ckpt(
        "lora", "merge", "base.safetensors", "adapter", "adapter", f"--weights=1,{value}", "-o", "no.safetensors"
    )
    assert (done.code, done.err) == (
        2,
        f"error: --weights: {value} is not a valid weight. Use a finite number, as in 0.7.\n",
    )
