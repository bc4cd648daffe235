"""The memory that decoding and encoding again take does not grow with the tensor, in three encodings."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ...helpers import zoo
from ...helpers.nursery import run_apart
from ...helpers.zoo import BY_NAME

LIMIT = 64 << 20
ROWS, COLUMNS = 4096, 5120
"""84 MB in single precision."""
PEAK = """
import os
os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])  # each thread has blocks of its own
import ckptsurgeon as cs
cs.apply(PLAN, "out/")
print(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
"""
PLANS = {"decoded": "cs.convert('m', dequantize=True, dtype='bfloat16')", "kept": "cs.average(['m', 'm'])"}
ENCODINGS = ["fp8-channel", "int8", "nvfp4-packed"]
"""One of 8-bit floats with a scale for each row, one of integers, and one of 4-bit codes with scales for blocks."""


def repeated(row: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """A tensor of equal rows, which is written faster than a random one."""
    return row.repeat(-(-shape[-1] // len(row)))[: shape[-1]].expand(shape).contiguous()


def peak(name: str, plan: str, rows: int, columns: int) -> int:
    """The most memory, in bytes, of a process that decodes one weight of a model."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(zoo, "OUT", rows)
        patch.setattr(zoo, "IN", columns)
        codes = torch.arange(-120, 121)
        patch.setattr(zoo, "words", lambda g, *shape: repeated(codes.to(torch.int32) * 16843009, shape))
        patch.setattr(zoo, "eight_bits", lambda g, *shape, dtype=torch.uint8: repeated(codes.to(dtype), shape))
        patch.setattr(zoo, "fp8", lambda g, *shape: repeated(codes.float().to(torch.float8_e4m3fn), shape))
        replace(BY_NAME[name], layers=BY_NAME[name].layers[:1]).folder(Path("m"))
    done = run_apart(PEAK.replace("PLAN", plan))
    assert not done.returncode, done.stderr
    shutil.rmtree("out")
    return int(done.stdout) << 10


@pytest.mark.long
@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("name", ENCODINGS)
def test_the_memory_of_floats_integers_and_4_bit_codes_is_bounded(name: str, plan: str) -> None:
    interpreter = peak(name, PLANS[plan], 64, 256)
    assert peak(name, PLANS[plan], ROWS, COLUMNS) - interpreter < LIMIT
