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

from .test_rearranged import LAYERS, attention
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


@pytest.mark.long
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


@pytest.mark.costly
@pytest.mark.parametrize("scale", [1.0, 0.02])
@pytest.mark.parametrize("dims", [(2, 1, 0), (2, 3, 1, 0)])
def test_kernels_of_jax_in_float16_and_in_bfloat16(dims: tuple[int, ...], scale: float) -> None:
    shape = (7, 5, 3, 2)[: len(dims)]
    here = {f"conv.{n}.weight": torch.randn(shape) * scale for n in range(6)}
    there = {f"Conv_{n}.kernel": here[f"conv.{n}.weight"].permute(dims) for n in range(6)}
    assert [dict(row.row) for row in halves(here, there).operations] == [
        {"permute": "conv.{n}.weight", "dims": list(dims)}
    ]
    halves(there, here)


@pytest.mark.long
@pytest.mark.parametrize("is_scanned", [False, True])
def test_attention_of_jax_in_float16_and_in_bfloat16(is_scanned: bool) -> None:
    here, there = attention(biases="random")
    if is_scanned:
        names = [key.removeprefix("block_0.") for key in there if key.startswith("block_0.")]
        there = {f"blocks.{name}": torch.stack([there[f"block_{n}.{name}"] for n in range(LAYERS)]) for name in names}
    halves(here, there)
    halves(there, here)


def test_norms_of_layers_in_one_tensor_in_float16_and_in_bfloat16() -> None:
    here = {f"h.{n}.{name}.weight": torch.randn(24) for n in range(LAYERS) for name in ("norm1", "norm2")}
    here["w"] = torch.randn(7, 24)
    names = ("norm1", "norm2")
    there = {f"blocks.{name}": torch.stack([here[f"h.{n}.{name}.weight"] for n in range(LAYERS)]) for name in names}
    there["w"] = here["w"]
    assert {next(iter(row.row)) for row in halves(here, there).operations} == {"stack"}
    assert {next(iter(row.row)) for row in halves(there, here).operations} == {"unstack"}


def test_channels_permuted_along_both_dimensions_in_float16_and_in_bfloat16() -> None:
    rows, columns = torch.randperm(64), torch.randperm(48)
    here = {"a.weight": torch.randn(64, 48), "c.weight": torch.randn(64, 48, 3)}
    there = {key: value[rows][:, columns] for key, value in here.items()}
    found = halves(here, there)
    assert [next(iter(row.row)) for row in found.operations] == ["take"] * 4


def test_a_head_that_is_the_transposed_embedding_in_float16_and_in_bfloat16() -> None:
    here = {"emb.weight": torch.randn(20, 12), "b.weight": torch.randn(5, 12)}
    found = halves(here, {**here, "head.kernel": here["emb.weight"].T})
    assert {next(iter(row.row)) for row in found.operations} == {"copy", "transpose"}


def test_permuted_vectors_in_float16_and_bfloat16_are_not_guessed() -> None:
    """Several elements of a vector are the same number in bfloat16, so that no order is certain."""
    vector, other = torch.randn(400), torch.randn(6, 5)
    save_file({"a": vector.half(), "w": other.half()}, "here.safetensors")
    save_file({"b": vector[torch.randperm(400)].bfloat16(), "w": other.bfloat16()}, "there.safetensors")
    found = cs.match("here.safetensors", "there.safetensors", values=True)
    assert [*found.missing] == ["b"]
    assert any("permuted vectors are not searched" in note for note in found.notes)


def test_kernels_of_different_networks_in_float16_and_bfloat16_do_not_agree() -> None:
    here = {f"conv.{n}": torch.randn(7, 5, 3).half() for n in range(20)}
    there = {f"kernel.{n}": torch.randn(3, 5, 7).bfloat16() for n in range(20)}
    save_file(here, "here.safetensors")
    save_file(there, "there.safetensors")
    found = cs.match("here.safetensors", "there.safetensors", values=True)
    assert found.notes[0].startswith("nothing agrees by value")
    assert not found.operations


def test_what_differs_by_more_than_rounding_does_not_agree() -> None:
    weight, other = torch.randn(64, 64), torch.randn(5, 4)
    changed = weight.clone()
    changed[40, 40] *= 1.02
    save_file({"a.weight": weight.half(), "w": other.half()}, "here.safetensors")
    save_file({"b.weight": changed.bfloat16(), "w": other.bfloat16()}, "there.safetensors")
    found = cs.match("here.safetensors", "there.safetensors", values=True)
    assert [*found.missing] == ["b.weight"]
    assert found.agreed["w"] in ("cast", "rounded")
    assert any("compare each checkpoint with a more precise one" in note for note in found.notes)


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
