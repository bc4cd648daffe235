"""``--to fsdp``: what torch's own ranks load, and what is read back is the identity."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import ckptsurgeon as cs
from ckptsurgeon.errors import ConfigError, OutputError
from tests.helpers.ranks import layers, loaded, rank_name, tensors
from tests.helpers.torch_versions import needs_mesh_layouts

pytestmark = pytest.mark.filterwarnings("ignore")


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return (a.dtype, a.shape) == (b.dtype, b.shape) and torch.equal(a, b)


def whole() -> dict[str, torch.Tensor]:
    more = {"norm.running_mean": torch.randn(4), "scalar": torch.tensor(2.5), "large": torch.randn(700, 801)}
    return {**tensors(), **{key: value.detach() for key, value in layers().state_dict().items()}, **more}


@pytest.fixture
def source() -> dict[str, torch.Tensor]:
    state = whole()
    save_file(state, "w.safetensors")
    return state


@pytest.mark.long
@needs_mesh_layouts
@pytest.mark.parametrize("ranks", [2, pytest.param(4, marks=pytest.mark.long)])
def test_real_ranks_load_the_files(ranks: int, source: dict[str, torch.Tensor], tmp_path: Path) -> None:
    cs.apply(cs.convert("w.safetensors"), "d", to="fsdp", ranks=ranks, mesh="cpu:fsdp")
    os.rename("w.safetensors", "d.whole")
    loaded(os.path.abspath("d"), ranks)


@pytest.mark.costly
@pytest.mark.parametrize("ranks", [1, 3, 8])
def test_it_is_read_back_as_it_was(ranks: int, source: dict[str, torch.Tensor], ckpt: Any) -> None:
    assert ckpt("convert", "w.safetensors", "-o", "d", "--to", "fsdp", "--ranks", str(ranks)).code == 0
    assert sorted(os.listdir("d")) == sorted(["ckptsurgeon.json", *(rank_name(rank, ranks) for rank in range(ranks))])
    with cs.open_checkpoint("d") as checkpoint:
        assert all(same(checkpoint.tensor(key), value) for key, value in source.items())
    assert ckpt("verify", "d").code == 0
    cs.apply(cs.convert("d"), "back.safetensors")
    assert all(same(load_file("back.safetensors")[key], value) for key, value in source.items())


@pytest.mark.parametrize("ranks", [1, 3])
@pytest.mark.parametrize("axis", [[], ["head=none", "embedding=none"]])
def test_tied_tensors_are_stored_once_and_read_back_as_tied(ranks: int, axis: list[str]) -> None:
    embedding = torch.randn(7, 4000)
    torch.save({"embedding": embedding, "norm": torch.ones(4), "head": embedding}, "tied.pth")
    cs.apply(cs.convert("tied.pth"), "d", to="fsdp", ranks=ranks, axis=axis)
    each = embedding.nbytes * (ranks if axis else 1)
    assert sum(Path("d", rank_name(rank, ranks)).stat().st_size for rank in range(ranks)) < each + 4096 * ranks
    with cs.open_checkpoint("d") as checkpoint:
        assert checkpoint.ties == {"head": "embedding"}
        assert all(same(checkpoint.tensor(key), embedding) for key in ("head", "embedding"))
    assert cs.verify("d").ok
    cs.apply(cs.convert("d"), "back.pth")
    back = torch.load("back.pth", weights_only=True)
    assert same(back["head"], embedding)
    assert back["head"].data_ptr() == back["embedding"].data_ptr()


def test_tied_tensors_that_are_split_along_other_axes_are_stored_apart() -> None:
    embedding = torch.randn(6, 8)
    torch.save({"embedding": embedding, "head": embedding}, "tied.pth")
    cs.apply(cs.convert("tied.pth"), "d", to="fsdp", ranks=2, axis=["head=1"])
    with cs.open_checkpoint("d") as checkpoint:
        assert all(same(checkpoint.tensor(key), embedding) for key in ("head", "embedding"))


@needs_mesh_layouts
def test_tied_tensors_share_their_memory_when_torch_loads_them() -> None:
    embedding = torch.randn(6, 8)
    torch.save({"embedding": embedding, "head": embedding}, "tied.pth")
    cs.apply(cs.convert("tied.pth"), "d", to="fsdp", ranks=2)
    for rank in range(2):
        state = torch.load(f"d/{rank_name(rank, 2)}", weights_only=False)
        parts = [state[key]._local_tensor for key in ("embedding", "head")]
        assert all(torch.equal(part, embedding[3 * rank : 3 * rank + 3]) for part in parts)
        assert parts[0].data_ptr() == parts[1].data_ptr()


def test_the_same_tensors_give_the_same_bytes(source: dict[str, torch.Tensor]) -> None:
    for name in ("a", "b"):
        cs.apply(cs.convert("w.safetensors"), name, to="fsdp", ranks=2)
    for rank in range(2):
        assert Path("a", rank_name(rank, 2)).read_bytes() == Path("b", rank_name(rank, 2)).read_bytes()


@needs_mesh_layouts
def test_each_rank_has_its_own_part_and_buffers_are_whole(source: dict[str, torch.Tensor]) -> None:
    cs.apply(cs.convert("w.safetensors"), "d", to="fsdp", ranks=4, axis=["even=1", "vector=none"])
    for rank in range(4):
        state = torch.load(f"d/{rank_name(rank)}", weights_only=False)
        assert torch.equal(state["even"]._local_tensor, source["even"][:, rank : rank + 1])
        assert state["few"]._local_tensor.shape == ((1, 2) if rank < 3 else (0, 2))
        for key in ("vector", "scalar", "number", "norm.running_mean"):
            assert type(state[key]) is torch.Tensor
            assert same(state[key], source[key])


@pytest.mark.long
def test_what_is_computed_is_shared_out_too(source: dict[str, torch.Tensor]) -> None:
    save_file(
        {key: value + 1 if value.is_floating_point() else value for key, value in source.items()}, "v.safetensors"
    )
    plan = cs.merge(["w.safetensors", "v.safetensors"], method="linear", weights=[0.5, 0.5])
    cs.apply(plan, "one.safetensors")
    cs.apply(cs.merge(["w.safetensors", "v.safetensors"], method="linear", weights=[0.5, 0.5]), "d", to="fsdp", ranks=3)
    wanted = load_file("one.safetensors")
    with cs.open_checkpoint("d") as checkpoint:
        assert all(same(checkpoint.tensor(key), value) for key, value in wanted.items())
    cs.apply(cs.convert("w.safetensors", dtype="bf16"), "h", to="fsdp", ranks=3)
    assert same(cs.open_checkpoint("h").tensor("large"), source["large"].bfloat16())


def test_an_output_is_replaced_as_a_whole(source: dict[str, torch.Tensor], ckpt: Any) -> None:
    assert ckpt("convert", "w.safetensors", "-o", "d", "--to", "fsdp", "--ranks", "4").code == 0
    again = ("convert", "w.safetensors", "-o", "d", "--to", "fsdp", "--ranks", "2")
    assert ckpt(*again).code == 5
    assert ckpt(*again, "--force").code == 0
    assert sorted(os.listdir("d")) == ["ckptsurgeon.json", rank_name(0, 2), rank_name(1, 2)]


@needs_mesh_layouts
def test_a_recipe_gives_the_ranks(source: dict[str, torch.Tensor], ckpt: Any) -> None:
    Path("r.yaml").write_text(
        "verb: convert\nsource: w.safetensors\noutput: d\nto: fsdp\nranks: 2\naxis: ['large=1']\nmesh: cpu:dp\n"
    )
    assert ckpt("apply", "r.yaml", "-n").code == 0
    assert ckpt("apply", "r.yaml").code == 0
    state = torch.load(f"d/{rank_name(1, 2)}", weights_only=False)
    assert state["large"]._local_tensor.shape == (700, 400)
    assert state["large"].device_mesh.mesh_dim_names == ("dp",)
    Path("r.yaml").write_text("verb: convert\nsource: w.safetensors\noutput: e\nto: fsdp\nranks: many\n")
    done = ckpt("apply", "r.yaml")
    assert (done.code, "the field ranks is 'many', not a number" in " ".join(done.err.split())) == (2, True), done.err


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"to": "fsdp"}, ConfigError, "needs the number of ranks"),
        ({"to": "fsdp", "ranks": 0}, ConfigError, "needs the number of ranks"),
        ({"to": "fsdp", "ranks": -1}, ConfigError, "not a number from 1 to"),
        ({"to": "fsdp", "ranks": 10**9}, ConfigError, "not a number from 1 to"),
        ({"to": "pth", "ranks": 2}, ConfigError, "needs to="),
        ({"to": "fsdp", "ranks": 2, "max_shard_size": "5GB"}, ConfigError, "one file for each rank"),
        ({"to": "fsdp", "ranks": 2, "axis": ["large"]}, ConfigError, "is not of the form GLOB=AXIS"),
        ({"to": "fsdp", "ranks": 2, "axis": ["large=2"]}, ConfigError, "has no axis 2"),
        ({"to": "fsdp", "ranks": 2, "axis": ["lorge=0"]}, cs.PatternError, "matches none of the"),
        ({"to": "fsdp", "ranks": 2, "mesh": "a b"}, ConfigError, "is not a valid mesh"),
        ({"to": "tp", "ranks": 3, "axis": ["even=0"]}, OutputError, "into 3 equal parts"),
    ],
)  # fmt: skip
def test_options_that_do_not_fit_are_refused(
    options: dict[str, Any], error: type[Exception], said: str, source: dict[str, torch.Tensor]
) -> None:
    with pytest.raises(error, match=said):
        cs.apply(cs.convert("w.safetensors"), "d", **options)
    assert not os.path.exists("d")
