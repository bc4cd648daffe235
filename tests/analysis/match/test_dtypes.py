"""Values of types that need care: complex numbers, and float16 against bfloat16."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import ckptsurgeon as cs
from ckptsurgeon.analysis.match.proposal import Proposal
from ckptsurgeon.analysis.match.values.rounded import DIRECTIONS, NEAR, numbered

from .test_values import WIDTH, Tensors, check, each_layer, experts, gpt2, meta, neox, network, padded


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


def halves(here: Tensors, there: Tensors) -> Proposal:
    """Match the first model in float16 with the second in bfloat16, both rounded from float32; check what is written."""
    save_file({key: tensor.half().contiguous() for key, tensor in here.items()}, "here.safetensors")
    save_file({key: tensor.bfloat16().contiguous() for key, tensor in there.items()}, "there.safetensors")
    found = cs.match("here.safetensors", "there.safetensors", values=True, output="moved.yaml", force=True)
    assert found.complete, (found, found.notes, found.missing)
    cs.apply("moved.yaml", "out.safetensors", force=True)
    made = load_file("out.safetensors")
    assert made.keys() == there.keys()
    for key, tensor in there.items():
        torch.testing.assert_close(made[key].float(), tensor, rtol=2**-10, atol=2**-24)
    return found


@pytest.mark.parametrize("scale", [1.0, 0.02, 1e-4])
@pytest.mark.parametrize("change", [neox, meta, gpt2], ids=["neox", "meta", "gpt2"])
def test_float16_and_bfloat16_of_one_network(change: Callable[[Tensors, str], None], scale: float) -> None:
    here = {key: tensor * scale for key, tensor in network(kv=WIDTH).items()}
    if change is meta:
        here = {key: tensor * scale for key, tensor in network().items()}
    there = each_layer(here, change)
    found = halves(here, there)
    assert "rounded" in found.agreed.values()
    assert any("within the rounding of float16 and bfloat16" in note for note in found.notes)
    halves(there, here)


def test_experts_in_float16_and_in_bfloat16() -> None:
    halves(experts(stacked=False, turned=False, fused=False), experts(stacked=True, turned=True, fused=True))


def test_padded_and_equal_rows_in_float16_and_in_bfloat16() -> None:
    here = {"emb.weight": padded(16), "head.weight": padded(16), "a.bias": torch.randn(9), "w": torch.randn(8, 6)}
    here["w"][2:5] = here["w"][1]
    halves(here, {"x": here["head.weight"].T, "y": here["emb.weight"], "z": here["a.bias"], "v": here["w"]})


def test_what_differs_by_more_than_rounding_does_not_agree() -> None:
    weight, other = torch.randn(64, 64), torch.randn(5, 4)
    changed = weight.clone()
    changed[40, 40] *= 1.02
    save_file({"a.weight": weight.half(), "w": other.half()}, "here.safetensors")
    save_file({"b.weight": changed.bfloat16(), "w": other.bfloat16()}, "there.safetensors")
    found = cs.match("here.safetensors", "there.safetensors", values=True)
    assert [*found.missing] == ["b.weight"]
    assert found.agreed["w"] in ("cast", "rounded")
    assert any("are not searched: compare each checkpoint with a more precise one" in note for note in found.notes)


def test_different_networks_in_float16_and_bfloat16_do_not_agree() -> None:
    save_file({"a.weight": torch.randn(64, 64).half()}, "here.safetensors")
    save_file({"b.weight": torch.randn(64, 64).bfloat16()}, "there.safetensors")
    found = cs.match("here.safetensors", "there.safetensors", values=True)
    assert found.notes[0].startswith("nothing agrees by value")
    assert not found.rules


def test_checkpoints_with_both_types_are_compared_exactly() -> None:
    one, other = torch.randn(8, 6).half(), torch.randn(6, 4, 3).bfloat16()
    found = check({"a": one, "c": other}, {"b": one.T, "d": other.permute(2, 1, 0)})
    assert {*found.agreed.values()} == {"bits"}


def test_lines_that_are_near_have_one_number_and_others_their_own() -> None:
    generator = np.random.default_rng(0)
    lines = generator.standard_normal((20_000, DIRECTIONS + 1))
    order = generator.permutation(20_000)
    here, there = numbered(lines, lines[order] + generator.uniform(-NEAR, NEAR, lines.shape) / 2)
    assert len(np.unique(here)) == 20_000
    assert np.array_equal(there, here[order])
