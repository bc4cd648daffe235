"""Match with values: tensors whose elements have another order or other dimensions in the other checkpoint."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

import ckptsurgeon as cs

from .test_values import Tensors, both, check, rows

LAYERS, WIDTH, HEADS, SIZE = 3, 12, 3, 5


def random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(11)


@pytest.mark.costly
@pytest.mark.parametrize(("torch_shape", "dims"), [((7, 5, 3), (2, 1, 0)), ((7, 5, 3, 2), (2, 3, 1, 0))])
def test_kernels_of_convolutions_as_in_flax(torch_shape: tuple[int, ...], dims: tuple[int, ...]) -> None:
    here = {f"conv.{n}.weight": random(*torch_shape) for n in range(LAYERS)}
    here |= {f"conv.{n}.bias": random(7) for n in range(LAYERS)}
    there = {f"Conv_{n}.kernel": here[f"conv.{n}.weight"].permute(dims) for n in range(LAYERS)}
    there |= {f"Conv_{n}.bias": here[f"conv.{n}.bias"] for n in range(LAYERS)}
    found, _ = both(here, there)
    assert rows(found) == [{"permute": "conv.{n}.weight", "dims": list(dims)}]


def test_kernels_of_transposed_convolutions_with_inputs_first() -> None:
    one = random(6, 4, 3)
    both({"a.weight": one}, {"c.kernel": one.permute(2, 0, 1)})


def attention(*, biases: str) -> tuple[Tensors, Tensors]:
    """The projections of torch, and those of Flax's MultiHeadDotProductAttention with the same values."""
    here: Tensors = {}
    there: Tensors = {}
    for n in range(LAYERS):
        for name in ("query", "key", "value"):
            weight, bias = random(HEADS * SIZE, WIDTH), random(HEADS * SIZE) if biases == "random" else torch.zeros(15)
            here |= {f"h.{n}.{name}.weight": weight, f"h.{n}.{name}.bias": bias}
            there[f"block_{n}.attn.{name}.kernel"] = weight.T.reshape(WIDTH, HEADS, SIZE)
            there[f"block_{n}.attn.{name}.bias"] = bias.reshape(HEADS, SIZE)
        out = random(WIDTH, HEADS * SIZE)
        here |= {f"h.{n}.out.weight": out, f"h.{n}.out.bias": random(WIDTH)}
        there[f"block_{n}.attn.out.kernel"] = out.T.reshape(HEADS, SIZE, WIDTH)
        there[f"block_{n}.attn.out.bias"] = here[f"h.{n}.out.bias"]
    return here, there


@pytest.mark.costly
@pytest.mark.parametrize("biases", ["random", "zeros"])
def test_attention_as_in_flax(biases: str) -> None:
    here, there = attention(biases=biases)
    both(here, there)


@pytest.mark.long
def test_attention_of_flax_with_scanned_layers() -> None:
    here, there = attention(biases="random")
    names = [key.removeprefix("block_0.") for key in there if key.startswith("block_0.")]
    scanned = {f"blocks.{name}": torch.stack([there[f"block_{n}.{name}"] for n in range(LAYERS)]) for name in names}
    both(here, scanned)


def test_projections_with_heads_first_as_in_transformer_lens() -> None:
    weight = random(HEADS * SIZE, WIDTH)
    both({"q.weight": weight}, {"W_Q": weight.view(HEADS, SIZE, WIDTH).transpose(1, 2)})


def test_three_projections_in_one_kernel() -> None:
    weight = random(3 * HEADS * SIZE, WIDTH)
    both({"in_proj_weight": weight}, {"qkv.kernel": weight.T.reshape(WIDTH, 3, HEADS, SIZE)})


def test_channels_permuted_along_both_dimensions_with_their_biases() -> None:
    rows_, columns = torch.randperm(16), torch.randperm(12)
    here = {"a.weight": random(16, 12), "a.bias": random(16), "c.weight": random(16, 12, 3), "norm.weight": random(16)}
    there = {
        "a.weight": here["a.weight"][rows_][:, columns],
        "a.bias": here["a.bias"][rows_],
        "c.weight": here["c.weight"][rows_][:, columns],
        "norm.weight": here["norm.weight"][rows_],
    }
    found, _ = both(here, there)
    assert {next(iter(row)) for row in rows(found)} == {"take"}


@pytest.mark.costly
@pytest.mark.parametrize("constant", [False, True])
def test_norms_of_layers_in_one_tensor(constant: bool) -> None:
    here = {f"h.{n}.{name}.weight": random(WIDTH) for n in range(LAYERS) for name in ("norm1", "norm2")}
    here |= {f"h.{n}.fc.weight": random(7, WIDTH) for n in range(LAYERS)}
    if constant:
        here |= {key: torch.ones(WIDTH) for key in here if "norm" in key}
    names = {key.split(".", 2)[2] for key in here}
    there = {f"blocks.{name}": torch.stack([here[f"h.{n}.{name}"] for n in range(LAYERS)]) for name in sorted(names)}
    found, _ = both(here, there)
    assert {next(iter(row)) for row in rows(found)} == {"stack"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_norms_of_layers_in_one_tensor_in_another_order(dtype: torch.dtype) -> None:
    order = [3, 0, 2, 1]
    here = {f"h.{n}.norm.weight": random(WIDTH).to(dtype) for n in range(4)} | {"w": random(7, WIDTH).to(dtype)}
    there = {"blocks.norm.weight": torch.stack([here[f"h.{n}.norm.weight"] for n in order]), "w": here["w"]}
    found, back = both(here, there)
    assert {"stack": "blocks.norm.weight.{n}", "into": "blocks.norm.weight"} in rows(found)
    assert [next(iter(row)) for row in rows(back)] == ["unstack"]


def test_norms_in_another_order_whose_names_are_those_of_the_rows() -> None:
    order = [3, 0, 2, 1]
    here = {f"norms.{n}": random(WIDTH) for n in range(4)} | {"w": random(7, WIDTH)}
    there = {"norms": torch.stack([here[f"norms.{n}"] for n in order]), "w": here["w"]}
    found, _ = both(here, there)
    assert {"stack": "new.norms.{n}", "into": "norms"} in rows(found)


def test_a_list_of_norms_in_order_is_preferred() -> None:
    norms = [random(WIDTH) for _ in range(3)]
    here = {f"{name}.{n}.weight": norm for name in "ab" for n, norm in enumerate(norms)} | {"w": random(7, WIDTH)}
    here |= {f"b.{n}.weight": norm.clone() for n, norm in zip((2, 0, 1), norms, strict=True)}
    found = cs.match(here, {"b.weight": torch.stack(norms), "w": here["w"]}, values=True)
    assert rows(found) == [{"stack": "a.{n}.weight", "into": "b.weight"}]


@pytest.mark.long
def test_a_permuted_vector_of_thousands_of_channels() -> None:
    order = torch.randperm(5120)
    here = {"norm.weight": random(5120), "w": random(7, WIDTH)}
    both(here, {"norm.weight": here["norm.weight"][order], "w": here["w"]})


def test_norms_of_ones_that_names_do_not_tell_apart_are_not_guessed() -> None:
    here = {f"h.{n}.{name}": torch.ones(WIDTH) for n in range(LAYERS) for name in "ab"}
    there = {name: torch.ones(LAYERS, WIDTH) for name in "xy"} | {"w.weight": random(5, 4)}
    found = cs.match({**here, "w": there["w.weight"]}, there, values=True)
    assert {*found.missing} == {"x", "y"}


def test_a_head_that_is_the_transposed_embedding() -> None:
    here = {"emb.weight": random(20, WIDTH), "b.weight": random(5, WIDTH)}
    there = {**here, "head.kernel": here["emb.weight"].T}
    found = check(here, there)
    assert {next(iter(row)) for row in rows(found)} == {"copy", "transpose"}


def test_the_same_elements_in_an_order_that_no_operation_makes_are_not_proposed() -> None:
    weight, other = random(8, 6), random(5, 4)
    mixed = weight.flatten()[torch.randperm(48)].view(8, 6)
    save_file({"a": weight, "w": other}, "here.safetensors")
    save_file({"b": mixed, "w": other}, "there.safetensors")
    found = cs.match("here.safetensors", "there.safetensors", values=True)
    assert [*found.missing] == ["b"]
    assert not found.operations


def paths() -> tuple[Tensors, Tensors]:
    """A network with names of torch, and the same as JAX's arrays with paths as keys."""
    here: Tensors = {}
    there: Tensors = {}
    for n in range(12):
        for name in ("query", "key"):
            here |= {f"h.{n}.{name}.weight": random(8, 6), f"h.{n}.{name}.bias": random(8)}
            there[f"params/layer_{n}/conv2/{name}/kernel"] = here[f"h.{n}.{name}.weight"].T
            there[f"params/layer_{n}/conv2/{name}/bias"] = here[f"h.{n}.{name}.bias"]
    return here, there


@pytest.mark.long
def test_keys_with_slashes_become_few_operations() -> None:
    here, there = paths()
    found, _ = both(there, here)
    assert rows(found) == [{"transpose": f"params/layer_{{n}}/conv2/{name}/kernel"} for name in ("key", "query")]
    assert len(found.rules) == 4
    found, _ = both(here, there)
    assert rows(found) == [{"transpose": f"h.{{n}}.{name}.weight"} for name in ("key", "query")]
