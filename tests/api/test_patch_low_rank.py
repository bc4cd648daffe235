"""Patches with low-rank factors of changes: the smallest error that a rank allows, and what is said about it."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import ckptsurgeon as cs
from ckptsurgeon.engine.patch import low_rank

from ..conftest import Result
from ..helpers.depth import FULL
from ..helpers.zoo import BY_NAME
from .test_patch import State, content, damaged, tried, with_index
from .test_patch_quantised import PLAIN, models, parts

SHAPES = {
    "a.weight": (64, 96),
    "b.weight": (1100, 2048),  # blocks end within rows
    "conv.weight": (48, 16, 3, 3),
    "norm": (96,),
    "still.weight": (40, 64),
    "embed.weight": (50, 32),
}


def tuned(dtype: torch.dtype, rank: int = 4, noise: float = 1e-3) -> tuple[State, State]:
    """A model, and a fine-tune whose changes are products of rank ``rank`` and a little noise."""
    draw = torch.Generator().manual_seed(1)
    old = {name: torch.randn(shape, generator=draw).to(dtype) for name, shape in SHAPES.items()}
    new = {}
    for name, one in old.items():
        rows = one.shape[0]
        change = torch.randn(rows, rank, generator=draw) @ torch.randn(rank, one.numel() // rows, generator=draw)
        change = 0.3 * change + noise * torch.randn(change.shape, generator=draw)
        new[name] = one.clone() if name == "still.weight" else (one.float() + change.reshape(one.shape)).to(dtype)
    return old, new


def write(old: State, new: State) -> None:
    save_file(old, "old.safetensors"), save_file(new, "new.safetensors")


def make(output: str = "p", **options: Any) -> cs.Patch:
    return cs.make_patch("old.safetensors", "new.safetensors", output, force=True, **options)


def change_of(old: State, new: State, key: str) -> torch.Tensor:
    return (new[key].double() - old[key].double()).reshape(len(old[key]), -1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float16])
@pytest.mark.parametrize("rank", [4, 2])
def test_the_product_of_the_best_factors_is_added(dtype: torch.dtype, rank: int) -> None:
    old, new = tuned(dtype)
    write(old, new)
    made = make(low_rank="**", rank=rank, exact="embed.weight")
    cs.apply_patch("old.safetensors", "p", "again.safetensors")
    found = load_file("again.safetensors")
    for key in ("norm", "still.weight", "embed.weight"):
        assert torch.equal(found[key], new[key])
    assert [(fit.key, fit.rank) for fit in made.low_rank] == [
        (key, rank) for key in ("a.weight", "b.weight", "conv.weight")
    ]
    missing = change = 0.0
    for fit in made.low_rank:
        delta = change_of(old, new, fit.key)
        assert fit.shape == tuple(delta.shape)
        squares, left = torch.linalg.eigh(delta @ delta.T)  # the smallest first; an SVD takes four times as long
        best = (squares[:-rank].sum() / squares.sum()).sqrt().item()
        error = (found[fit.key].double() - new[fit.key].double()).norm().item()
        assert fit.error == pytest.approx(error / delta.norm().item(), rel=1e-5)
        rounding = 0.0 if dtype == torch.float32 else torch.finfo(dtype).eps * new[fit.key].double().norm().item()
        # No product of this rank has a smaller error (Eckart and Young); the sum is rounded once.
        assert fit.error <= best * 1.001 + 1e-5 + rounding / delta.norm().item()
        assert fit.error >= best * 0.999 or dtype != torch.float32
        product = left[:, -rank:] @ (left[:, -rank:].T @ delta)
        wanted = (old[fit.key].double().reshape(delta.shape) + product).to(dtype).reshape(old[fit.key].shape)
        assert torch.allclose(found[fit.key].double(), wanted.double(), rtol=2 * torch.finfo(dtype).eps, atol=1e-3)
        missing, change = missing + error**2, change + delta.square().sum().item()
    assert made.change_error == pytest.approx(math.sqrt(missing / change), rel=1e-5)
    assert (made.approximated, made.changed, made.equal) == (3, 5, 1)


@pytest.mark.long
def test_the_size_is_that_of_the_factors() -> None:
    old, new = ({"w": torch.randn(1024, 1024).bfloat16()} for _ in range(2))
    write(old, new)
    made = make(low_rank="w", rank=8)
    assert 0.7 * 4 * 8 * 2048 < made.nbytes < 4 * 8 * 2048 + 2000
    assert make(low_rank="w").low_rank[0].rank == 16


@pytest.mark.long
def test_a_patch_says_the_same_when_it_is_made_read_and_applied(ckpt: Callable[..., Result]) -> None:
    write(*tuned(torch.bfloat16))
    done = ckpt(
        *["patch", "make", "old.safetensors", "new.safetensors", "-o", "p", "--low-rank", "*.weight", "--rank", "3"]
    )
    text = " ".join(done.out.split())
    assert re.search(r"approximate 4 tensors: low-rank factors of their changes are stored \(rank 3\); the error", text)
    made = cs.read_patch("p")
    worst = max(made.low_rank, key=lambda fit: fit.error)
    assert f"errors of the changes: {worst.key} {100 * worst.error:.1f} %" in text
    shown = json.loads(ckpt("patch", "show", "p", "--json").out)
    assert shown["low_rank"] == [fit.to_json() for fit in made.low_rank]
    assert shown["low_rank"][1]["shape"] == [1100, 2048]
    done = ckpt("patch", "apply", "old.safetensors", "p", "-o", "out.safetensors")
    text = " ".join(done.out.split())
    assert "they differ from the new checkpoint" in text
    assert f"{worst.key} {100 * worst.error:.1f} %" in text
    assert ckpt("verify", "out.safetensors", "--patch", "p").code == 0
    assert "errors of the changes" in ckpt("patch", "show", "p").out


@pytest.mark.long
def test_signs_and_factors_are_in_one_patch(ckpt: Callable[..., Result]) -> None:
    write(*tuned(torch.bfloat16))
    made = make(signs="{b,embed}.weight", low_rank="{a,conv}.weight", rank=3)
    assert (made.approximated, [fit.key for fit in made.low_rank]) == (4, ["a.weight", "conv.weight"])
    shown = " ".join(ckpt("patch", "show", "p").out.split())
    assert "low-rank factors of the changes of 2 (rank 3), and the signs of the others, are stored" in shown
    cs.apply_patch("old.safetensors", "p", "out.safetensors")
    make("signs", signs="{b,embed}.weight")
    cs.apply_patch("old.safetensors", "signs", "signs.safetensors")
    assert torch.equal(load_file("out.safetensors")["b.weight"], load_file("signs.safetensors")["b.weight"])


@pytest.mark.long
def test_patches_follow_one_with_factors() -> None:
    old, new = tuned(torch.float16)
    write(old, new)
    make(low_rank="**", rank=3)
    cs.apply_patch("old.safetensors", "p", "near.safetensors")
    save_file({key: one + 1 for key, one in new.items()}, "third.safetensors")
    made = cs.make_patch("near.safetensors", "third.safetensors", "q", low_rank="b.weight", rank=2)
    assert len(made.low_rank) == 1
    cs.apply_patch("near.safetensors", "q", "wanted.safetensors")
    cs.apply_patch("old.safetensors", ["p", "q"], "again.safetensors")
    assert content("again.safetensors").popitem()[1] == content("wanted.safetensors").popitem()[1]


@pytest.mark.long
def test_renamed_and_tied_matrices_have_factors() -> None:
    old, new = tuned(torch.float32)
    moved = old["b.weight"].clone()
    moved[64:] += torch.randn(1036, 2) @ torch.randn(2, 2048)  # after the bytes by which a renamed tensor is found
    torch.save({"x": old["a.weight"], "y": old["a.weight"], "b": old["b.weight"]}, "old.pth")
    torch.save({"x": new["a.weight"], "y": new["a.weight"], "c": moved}, "new.pth")
    made = cs.make_patch("old.pth", "new.pth", "p", low_rank=["x", "c"], rank=4)
    assert sorted(fit.key for fit in made.low_rank) == ["c", "x", "y"]
    cs.apply_patch("old.pth", "p", "out.pth")
    found = torch.load("out.pth")
    assert found["x"].data_ptr() == found["y"].data_ptr()
    assert torch.allclose(found["c"], moved, atol=1e-4)
    assert cs.make_patch("old.pth", "new.pth", "p", low_rank="x", exact="y", rank=4, force=True).approximated == 0


@pytest.mark.long
def test_a_block_that_takes_less_space_exactly_is_exact() -> None:
    old, new = tuned(torch.float32)
    new["b.weight"][:600] = old["b.weight"][:600]  # all of the first block, and rows of the second
    new["b.weight"][7, 7] += 10_000  # the first factor alone represents it
    write(old, new)
    made = make(low_rank="b.weight", rank=3)
    cs.apply_patch("old.safetensors", "p", "again.safetensors")
    found = load_file("again.safetensors")["b.weight"]
    assert torch.equal(found[:512], new["b.weight"][:512])
    assert not torch.equal(found[512:], new["b.weight"][512:])
    error = (found.double() - new["b.weight"].double()).norm() / change_of(old, new, "b.weight").norm()
    assert made.low_rank[0].error == pytest.approx(error.item(), rel=1e-5)


ODD: dict[str, tuple[torch.Tensor, torch.Tensor, str]] = {
    "small": (torch.ones(4, 90), torch.ones(4, 90) * 2, "rank 4 is not below both sides"),
    "nan": (torch.ones(40, 30), torch.ones(40, 30) * torch.nan, "the change is not finite"),
    "infinite": (torch.ones(40, 30) / 0.0, torch.ones(40, 30), "the change is not finite"),
    "integer": (torch.ones(40, 30).int(), torch.ones(40, 30).int() * 2, "the dtype is int32"),
    "complex": (torch.ones(40, 30) + 0j, torch.ones(40, 30) + 1j, "the dtype is complex64"),
    "double": (torch.ones(40, 30).double(), torch.ones(40, 30).double() * 2, "the dtype is float64"),
    "cast": (
        torch.ones(40, 30).half(),
        torch.ones(40, 30),
        "the old checkpoint has no matrix of this key, dtype and shape",
    ),
    "longer": (torch.ones(39, 30), torch.ones(40, 30), "the old checkpoint has no matrix of this key, dtype and shape"),
    "sparse": (torch.ones(40, 30), torch.ones(40, 30) + torch.eye(40, 30)[:, :1], "half of the space of the exact"),
}


@pytest.mark.parametrize("name", ODD)
def test_what_has_no_factors_is_stored_exactly_and_a_note_says_why(name: str) -> None:
    old, new, why = ODD[name]
    write({"w": old}, {"w": new})
    made = make(low_rank="w", rank=4)
    (note,) = [note for note in made.notes if "although the patterns select it" in note]
    assert note.startswith("1 matrix is stored exactly")
    assert why in note
    assert note.endswith(": w")
    assert not [note for note in made.notes if "no tensor" in note]
    assert made.low_rank == ()
    cs.apply_patch("old.safetensors", "p", "again.safetensors")
    assert content("again.safetensors").popitem()[1] == content("new.safetensors").popitem()[1]


def test_a_matrix_that_only_the_new_checkpoint_has_is_stored_exactly() -> None:
    write({"w": torch.ones(3)}, {"w": torch.ones(3), "x": torch.randn(40, 30), "y": torch.randn(40, 31)})
    note = make(low_rank="**", rank=4).notes[0]
    assert note.startswith(
        "2 matrices are stored exactly, although the patterns select them (the old checkpoint has no"
    )


@pytest.mark.parametrize("shape", [(0, 8), (8, 0), (30,)])
def test_nothing_to_factor_is_said(shape: tuple[int, ...]) -> None:
    same = torch.ones(40, 30) * torch.nan
    write({"w": torch.ones(shape), "x": same}, {"w": torch.ones(shape) * 2, "x": same})
    assert make(low_rank="**", rank=4).notes[0].startswith("no tensor is approximated")


def test_a_matrix_whose_factors_take_much_memory_is_stored_exactly(monkeypatch: pytest.MonkeyPatch) -> None:
    write(*tuned(torch.float32))
    monkeypatch.setattr(low_rank, "MOST_BYTES", 8 * 4 * 14 * 1000)
    made = make(low_rank="**", rank=4)
    assert made.notes[0].startswith(
        "1 matrix is stored exactly, although the patterns select it (computing the factors"
    )
    assert made.notes[0].endswith(": b.weight")
    assert made.approximated == len(made.low_rank) == 3


@pytest.mark.parametrize(
    ("options", "wrong"),
    [
        ({"low_rank": "layer.*"}, 'low_rank="layer.*" matches none of the 6 new keys'),
        ({"rank": 4}, "rank needs low_rank"),
        ({"signs": "**", "rank": 4}, "rank needs low_rank"),
        ({"low_rank": "**", "rank": 0}, "0 is not a valid rank"),
        ({"low_rank": "**", "rank": -3}, "-3 is not a valid rank"),
        ({"low_rank": "a.*", "signs": "*.weight"}, "signs and low_rank both select 1 tensor: a.weight"),
        ({"exact": "**"}, "exact needs signs or low_rank"),
    ],
)
def test_options_that_cannot_be_meant_are_errors(options: dict[str, Any], wrong: str) -> None:
    write(*tuned(torch.bfloat16))
    with pytest.raises((cs.ConfigError, cs.PatternError), match=re.escape(wrong)):
        make(**options)
    assert not Path("p").exists()


def test_a_tensor_that_is_exact_may_be_selected_twice() -> None:
    write(*tuned(torch.bfloat16))
    made = make(low_rank="{a,b}.*", signs="*.weight", exact="{a,b}.*", rank=4)
    assert (made.low_rank, made.approximated) == ((), 2)


def test_quantised_weights_are_stored_exactly(tmp_path: Path) -> None:
    models(BY_NAME["fp8-channel"], tmp_path)
    made = cs.make_patch("a", "b", "p", low_rank="model.layers.**", rank=4)
    assert [fit.key for fit in made.low_rank] == [PLAIN]
    assert any("quantised weights are stored exactly" in note for note in made.notes)
    cs.apply_patch("a", "p", "out")
    wanted, found = load_file("b/model.safetensors"), load_file("out/model.safetensors")
    for key in parts("b"):
        assert torch.equal(found[key].view(torch.uint8), wanted[key].view(torch.uint8)), key
    with pytest.raises(cs.PlanError, match="only parts of quantised weights") as caught:
        cs.make_patch("a", "b", "q", low_rank=parts("b"))
    assert "Leave --low-rank out" in caught.value.hint


# Damage.


@pytest.fixture
def factored() -> bytes:
    """A patch of two small files, with low-rank factors of changes."""
    old = torch.rand(24, 32)
    write({"w": old, "v": torch.ones(9)}, {"w": old + torch.randn(24, 32) / 99, "v": torch.ones(9)})
    assert len(make("d.ckptpatch", low_rank="w", rank=2).low_rank) == 1
    cs.apply_patch("old.safetensors", "d.ckptpatch", "made.safetensors")
    return Path("d.ckptpatch").read_bytes()


def test_a_patch_with_one_changed_byte_never_makes_another_file(factored: bytes) -> None:
    assert tried(factored)
    applied = [place for place, raw in damaged(factored) if tried(raw)]
    assert len(applied) < (
        40 if FULL else 10
    )  # the last bits of factors, which do not change the rounded sums: the file is right


def segment(index: dict[str, Any]) -> list[Any]:
    return next(one for one in index["files"][0][3] if one[0] == "low_rank")


@pytest.mark.parametrize(
    "change",
    [
        lambda index: index.update(version=2),
        lambda index: index.pop("errors"),
        lambda index: segment(index).__setitem__(0, "xor"),
        lambda index: segment(index).__setitem__(0, "signs"),
        lambda index: segment(index).__setitem__(3, 7),
        lambda index: segment(index).pop(),
        lambda index: segment(index)[4].pop(),
        lambda index: segment(index)[4].append(0),
        lambda index: segment(index)[4].__setitem__(1, 0),
        lambda index: segment(index)[4].reverse(),
        lambda index: segment(index)[5].__setitem__(0, "float16"),
        lambda index: segment(index)[5].__setitem__(0, "int8"),
        lambda index: segment(index)[5].__setitem__(1, 16),
        lambda index: segment(index)[5].__setitem__(1, 24),
        lambda index: segment(index)[5].__setitem__(1, 1 << 60),
        lambda index: segment(index)[5].__setitem__(2, 1),
        lambda index: segment(index)[5].__setitem__(2, 3),
        lambda index: segment(index)[5].__setitem__(2, 24),
        lambda index: segment(index)[5].__setitem__(2, True),
        lambda index: segment(index)[5].__setitem__(3, None),
    ],
)
def test_an_index_with_factors_that_lies_is_an_error(
    change: Callable[[dict[str, Any]], object], factored: bytes
) -> None:
    assert tried(with_index(factored, lambda index: None))
    assert not tried(with_index(factored, change))
