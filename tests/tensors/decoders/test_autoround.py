"""AutoRound's packings of GPTQ codes: zero points are stored less 1, or as they are, as ``packing_format`` says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import ckptsurgeon as cs
from ckptsurgeon.errors import CheckpointError

COLUMNS, ROWS, STORED = 64, 16, 7


def saved(path: Path, packing: str | None, **more: object) -> Path:
    """A layer of 4 bits whose codes are all 9, and whose stored zero points are all 7, in one group of 64."""
    state = {
        "layer.qweight": torch.full((COLUMNS // 8, ROWS), 0x99999999 - (1 << 32), dtype=torch.int32),
        "layer.qzeros": torch.full((1, ROWS // 8), 0x77777777, dtype=torch.int32),
        "layer.scales": torch.full((1, ROWS), 0.5).half(),
    }
    path.mkdir()
    save_file(state, path / "model.safetensors", {"format": "pt"})
    settings = {"quant_method": "auto-round", "bits": 4, "group_size": 64, "sym": False, "data_type": "int"}
    settings |= {"packing_format": packing} if packing else {}
    settings |= more
    (path / "config.json").write_text(json.dumps({"quantization_config": settings}))
    return path


@pytest.mark.parametrize(
    ("packing", "zero"),
    [
        (None, STORED + 1),
        ("auto_round:auto_gptq", STORED + 1),
        ("auto_round", STORED),
        ("auto_round:gptqmodel", STORED),
    ],
)
def test_zero_points_are_read_as_the_packing_stores_them(packing: str | None, zero: int, tmp_path: Path) -> None:
    folder = saved(tmp_path / "m", packing)
    cs.apply(cs.convert(folder, dequantize=True, dtype="float32"), tmp_path / "out")
    found = load_file(tmp_path / "out" / "model.safetensors")["layer.weight"]
    assert torch.equal(found, torch.full((ROWS, COLUMNS), (9 - zero) * 0.5))


@pytest.mark.parametrize(
    ("backend", "zero"),
    [
        ("auto_round:exllamav2", STORED),
        ("autoround:exllamav2", STORED),
        ("auto_round:tritonv2", STORED),
        ("auto_round:gptq:exllamav2", STORED + 1),
        ("auto_gptq:exllamav2", STORED + 1),
        ("auto", STORED + 1),
    ],
)
def test_settings_of_older_versions_name_a_backend_instead(backend: str, zero: int, tmp_path: Path) -> None:
    folder = saved(tmp_path / "m", None, quant_method="intel/auto-round", backend=backend)
    cs.apply(cs.convert(folder, dequantize=True, dtype="float32"), tmp_path / "out")
    found = load_file(tmp_path / "out" / "model.safetensors")["layer.weight"]
    assert torch.equal(found, torch.full((ROWS, COLUMNS), (9 - zero) * 0.5))


@pytest.mark.parametrize(("act_bits", "zero"), [(16, STORED), (8, STORED + 1), (4, STORED + 1)])
def test_models_with_quantised_activations_are_packed_by_another_module(
    act_bits: int, zero: int, tmp_path: Path
) -> None:
    folder = saved(tmp_path / "m", "auto_round", act_bits=act_bits)
    cs.apply(cs.convert(folder, dequantize=True, dtype="float32"), tmp_path / "out")
    found = load_file(tmp_path / "out" / "model.safetensors")["layer.weight"]
    assert torch.equal(found, torch.full((ROWS, COLUMNS), (9 - zero) * 0.5))


def test_a_packing_format_is_said_rather_than_the_backend(tmp_path: Path) -> None:
    folder = saved(tmp_path / "m", "auto_round:auto_gptq", backend="auto_round:tritonv2")
    cs.apply(cs.convert(folder, dequantize=True, dtype="float32"), tmp_path / "out")
    found = load_file(tmp_path / "out" / "model.safetensors")["layer.weight"]
    assert torch.equal(found, torch.full((ROWS, COLUMNS), (9 - STORED - 1) * 0.5))


@pytest.mark.parametrize(
    ("first", "second", "differ"),
    [
        ("auto_round:auto_gptq", "auto_round:gptqmodel", True),
        ("auto_round", "auto_round:auto_gptq", True),
        ("auto_round", "auto_round:gptqmodel", False),
        ("auto_round:auto_gptq", None, False),
    ],
)
def test_codes_are_not_carried_under_another_packing(
    first: str, second: str | None, differ: bool, tmp_path: Path
) -> None:
    here, there = saved(tmp_path / "a", first), saved(tmp_path / "b", second)
    if not differ:
        cs.transplant(here, there)
        return
    with pytest.raises(CheckpointError, match="checkpoint_format"):
        cs.transplant(here, there)
