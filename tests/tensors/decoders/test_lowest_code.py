"""A code of -128 in encodings whose quantisers divide the largest weight by 127."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import ckptsurgeon as cs

WORDS = "codes of -128"


def codes(lowest: int) -> torch.Tensor:
    made = torch.randint(-127, 128, (64, 64), generator=torch.Generator().manual_seed(0)).to(torch.int8)
    made[3, 5] = lowest
    return made


def bitsandbytes(path: Path, lowest: int) -> Path:
    parts = {"weight": codes(lowest), "SCB": torch.rand(64) + 0.1, "weight_format": torch.tensor(0, dtype=torch.uint8)}
    save_file({f"layer.{name}": one for name, one in parts.items()}, path / "model.safetensors")
    return path / "model.safetensors"


def ctranslate2(path: Path, lowest: int) -> Path:
    save_file({"a/weight": codes(lowest), "a/weight_scale": torch.rand(64) * 100 + 900}, path / "model.safetensors")
    return path / "model.safetensors"


def compressed(path: Path, lowest: int) -> Path:
    parts = {"weight": codes(lowest), "weight_scale": torch.rand(64, 1) / 1000 + 1e-4}
    save_file({f"layer.{name}": one for name, one in parts.items()}, path / "model.safetensors")
    return path / "model.safetensors"


def gguf(path: Path, lowest: int) -> Path:
    save_file({"layer.weight": torch.randn(64, 64)}, path / "plain.safetensors")
    cs.apply(cs.convert(path / "plain.safetensors", gguf_type="q8_0", layout="keep"), path / "model.gguf", force=True)
    data = bytearray((path / "model.gguf").read_bytes())
    data[-7] = lowest & 0xFF
    (path / "model.gguf").write_bytes(data)
    return path / "model.gguf"


WRITERS = (bitsandbytes, ctranslate2, gguf)


def notes(path: Path) -> list[str]:
    receipt = cs.apply(cs.convert(path, dequantize=True), path.with_name("out.safetensors"), force=True)
    return [note for note in receipt.notes if WORDS in note]


@pytest.mark.parametrize("write", WRITERS)
def test_a_code_that_the_quantiser_never_makes_is_noted(write: Callable[[Path, int], Path], tmp_path: Path) -> None:
    assert len(notes(write(tmp_path, -128))) == 1
    assert notes(write(tmp_path, -127)) == []


@pytest.mark.parametrize("write", WRITERS)
def test_check_warns_of_it(write: Callable[[Path, int], Path], tmp_path: Path) -> None:
    rows = cs.check(write(tmp_path, -128)).rows
    assert [row.status.value for row in rows if WORDS in str([*row.found])] == ["WARN"]


def test_the_lowest_code_of_compressed_tensors_is_normal(tmp_path: Path) -> None:
    assert notes(compressed(tmp_path, -128)) == []
