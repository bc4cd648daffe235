"""Weights that were decoded with wrong zero points are noted by verbs that read headers, and by check."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import ckptsurgeon as cs
from ckptsurgeon.checkpoint.opening import open_checkpoint
from ckptsurgeon.checkpoint.values.matrix_notes import SHIFTED_VALUES

DTYPES = [torch.bfloat16, torch.float16, torch.float32]


def state(number: int, shift: float = 0, right: int = 0) -> dict[str, torch.Tensor]:
    """Matrices whose values are shifted by a share of their size, but for the first ``right``."""
    draw = torch.Generator().manual_seed(0)
    return {
        f"layers.{n}.up.weight": 0.02 * (torch.randn(64, 128, generator=draw) + shift * (n >= right))
        for n in range(number)
    }


def notes_of(found: dict[str, torch.Tensor], dtype: torch.dtype = torch.float32) -> list[str]:
    save_file({key: one.to(dtype) for key, one in found.items()}, "m.safetensors")
    with open_checkpoint("m.safetensors") as checkpoint:
        return [note for note in checkpoint.notes if SHIFTED_VALUES in note]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shift", "way"), [(0.35, "above"), (-0.35, "below"), (3, "above")])
def test_shifted_weights_are_noted(shift: float, way: str, dtype: torch.dtype) -> None:
    (said,) = notes_of(state(12, shift, right=2), dtype)
    assert said.startswith(f"the values of 10 of 12 matrices that were looked at have a mean {way} 0 by over 15 %")
    warned = [one.what for row in cs.check("m.safetensors").rows for one in row.found if row.id == "weight-size"]
    assert any(SHIFTED_VALUES in one for one in warned)


@pytest.mark.parametrize(
    "found",
    [
        state(12),
        state(12, 0.35, right=4),
        state(7, 1),
        {**state(6, 1), **{f"z{n}": torch.zeros(64, 64) for n in range(6)}},
    ],
)
def test_other_weights_are_not(found: dict[str, torch.Tensor]) -> None:
    assert not notes_of(found)


def test_matrices_that_are_shifted_both_ways_are_not() -> None:
    draw = state(12, 0.5)
    assert not notes_of({key: one * (-1) ** at for at, (key, one) in enumerate(draw.items())})


def test_the_real_network_is_not(minilm: Path) -> None:
    assert not notes_of(load_file(minilm / "model.safetensors"))


def test_values_that_are_not_finite_are_not() -> None:
    assert not notes_of({key: torch.full_like(one, torch.inf) for key, one in state(12).items()})


def test_scales_of_codes_are_not_weights() -> None:
    draw = torch.Generator().manual_seed(0)
    found = dict[str, torch.Tensor]()
    for n in range(12):
        found[f"layers.{n}.up.qweight"] = torch.randint(
            -(1 << 31), 1 << 31, (64, 256), dtype=torch.int32, generator=draw
        )
        found[f"layers.{n}.up.qzeros"] = torch.full((8, 32), -2004318072, dtype=torch.int32)
        found[f"layers.{n}.up.scales"] = (0.002 + 0.001 * torch.rand(8, 256, generator=draw)).half()
        found[f"layers.{n}.up.g_idx"] = torch.arange(512, dtype=torch.int32) // 64
    save_file(found, "m.safetensors")
    with open_checkpoint("m.safetensors") as checkpoint:
        assert len(checkpoint.codes.tensors) == 12
        assert not checkpoint.notes
