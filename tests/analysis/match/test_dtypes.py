"""Values of types that need care: complex numbers, and float16 against bfloat16."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

import ckptsurgeon as cs

from .test_values import check


@pytest.mark.parametrize("shape", [(8, 8), (8, 6)])
def test_complex_matrices_are_transposed(shape: tuple[int, int]) -> None:
    one, weight = torch.randn(*shape, dtype=torch.complex64), torch.randn(5, 4)
    found = check({"a": one, "w": weight}, {"b": one.T, "w": weight})
    assert [dict(row.row) for row in found.operations] == [{"transpose": "a"}]


def test_complex_numbers_of_double_precision_are_transposed() -> None:
    one, weight = torch.randn(8, 6, dtype=torch.complex128), torch.randn(5, 4)
    torch.save({"a": one, "w": weight}, "here.pt")
    torch.save({"b": one.T.contiguous(), "w": weight}, "there.pt")
    found = cs.match("here.pt", "there.pt", values=True)
    assert found.complete
    assert [dict(row.row) for row in found.operations] == [{"transpose": "a"}]
    torch.save({"b": one.T.contiguous().conj().resolve_conj(), "w": weight}, "there.pt")
    assert not cs.match("here.pt", "there.pt", values=True).complete


def test_float16_and_bfloat16_of_one_model_are_not_called_different_networks_without_reserve() -> None:
    weight = torch.randn(64, 64)
    save_file({"a.weight": weight.half()}, "here.safetensors")
    save_file({"b.weight": weight.bfloat16()}, "there.safetensors")
    said = cs.match("here.safetensors", "there.safetensors", values=True).notes[0]
    assert "both were made from a more precise one: float16 and bfloat16 round differently" in said
