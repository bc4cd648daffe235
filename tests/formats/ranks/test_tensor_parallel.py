"""``--to tp``: a safetensors file for each rank, cut along the axes that the user names; and the way back."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import ckptsurgeon as cs

AXES = ["**.{q,k,v}_proj.weight=0", "**.o_proj.weight=1", "embed.weight=-2", "conv=1"]


def state() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    rows = {f"layers.0.{name}_proj.weight": torch.randn(8, 6) for name in "qkv"}
    others = {
        "layers.0.o_proj.weight": torch.randn(6, 8).half(),
        "norm.weight": torch.randn(6),
        "count": torch.tensor(3),
    }
    return {**rows, **others, "embed.weight": torch.randn(12, 300), "conv": torch.randn(3, 4, 2, 5)}


def written(ranks: int = 4) -> dict[str, torch.Tensor]:
    made = state()
    save_file(made, "w.safetensors")
    cs.apply(cs.convert("w.safetensors"), "d", to="tp", ranks=ranks, axis=AXES)
    return made


def rank_file(rank: int) -> str:
    return f"d/model-rank-{rank}-part-0.safetensors"


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_each_rank_has_its_part(ranks: int) -> None:
    made = written(ranks)
    axes = {"q_proj": 0, "k_proj": 0, "v_proj": 0, "o_proj": 1, "embed": 0, "conv": 1}
    for rank in range(ranks):
        part = load_file(rank_file(rank))
        assert part.keys() == made.keys()
        for key, value in made.items():
            axis = next((axis for name, axis in axes.items() if name in key), None)
            assert torch.equal(part[key], value if axis is None else value.chunk(ranks, axis)[rank]), key


@pytest.mark.costly
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_it_is_read_back_as_it_was(ranks: int, ckpt: Any) -> None:
    made = written(ranks)
    with cs.open_checkpoint("d") as checkpoint:
        assert checkpoint.format == "tensor parallel"
        assert set(checkpoint) == set(made)
        assert all(torch.equal(checkpoint.tensor(key), value) for key, value in made.items())
    assert ckpt("verify", "d").code == 0
    cs.apply(cs.convert("d"), "back.safetensors")
    assert all(torch.equal(load_file("back.safetensors")[key], value) for key, value in made.items())


def test_the_last_pattern_counts() -> None:
    save_file(state(), "w.safetensors")
    cs.apply(cs.convert("w.safetensors"), "d", to="tp", ranks=2, axis=["layers=0", "**.o_proj.weight=none"])
    assert load_file(rank_file(1))["layers.0.o_proj.weight"].shape == (6, 8)
    assert load_file(rank_file(1))["layers.0.q_proj.weight"].shape == (4, 6)


def index(**fields: Any) -> Callable[[], None]:
    def change() -> None:
        found = json.loads(Path("d/ranks.json").read_text())
        Path("d/ranks.json").write_text(json.dumps({**found, **fields}))

    return change


def tensors(rank: int, **fields: torch.Tensor | None) -> Callable[[], None]:
    def change() -> None:
        found = {**load_file(rank_file(rank)), **fields}
        save_file({key: value for key, value in found.items() if value is not None}, rank_file(rank))

    return change


WRONG: dict[str, tuple[Callable[[], object], str]] = {
    "an index that is none": (lambda: Path("d/ranks.json").write_text("[" * 9), "is not valid JSON"),
    "no number of ranks": (index(ranks="two"), "must contain ranks, a number from 1 to"),
    "too many ranks": (index(ranks=10**12), "must contain ranks, a number from 1 to"),
    "more ranks": (index(ranks=3), "d/model-rank-2-part-0.safetensors does not exist"),
    "an axis that is none": (index(axes={"conv": "x"}), "an axis that is not an integer from 0 to 63"),
    "an axis beyond": (index(axes={"conv": 9}), "conv has no axis 9"),
    "an axis of no tensor": (index(axes={"convolution": 0}), "lack convolution"),
    "a file less": (lambda: os.unlink(rank_file(1)), "d/model-rank-1-part-0.safetensors does not exist"),
    "the first file less": (lambda: os.unlink(rank_file(0)), "d/model-rank-0-part-0.safetensors does not exist"),
    "a file cut short": (lambda: os.truncate(rank_file(1), 100), "model-rank-1-part-0.safetensors"),
    "a tensor less": (tensors(1, conv=None), "do not have the same tensors: conv"),
    "another shape": (tensors(1, conv=torch.ones(2, 2, 2, 5)), "conv in model-rank-1-part-0.safetensors is float32"),
    "another dtype": (tensors(1, count=torch.tensor(3.0)), "count in model-rank-1-part-0.safetensors is float32"),
}


@pytest.mark.parametrize("name", WRONG)
def test_files_that_do_not_fit_are_refused(name: str, ckpt: Any) -> None:
    written(2)
    change, said = WRONG[name]
    change()
    done = ckpt("inspect", "d")
    assert (done.code, said in " ".join(done.err.split())) == (3, True), done.err


def test_a_file_that_is_there_but_cannot_be_opened_is_not_called_missing() -> None:
    written(2)
    os.unlink(rank_file(1))
    os.mkfifo(rank_file(1))
    with pytest.raises(cs.FormatError, match="cannot be read: d/model-rank-1-part-0.safetensors is a FIFO"):
        cs.open_checkpoint("d")


@pytest.mark.parametrize("key", ["norm.weight", "layers.0.q_proj.weight"])
def test_whole_tensors_that_differ_between_the_ranks_are_refused(key: str, ckpt: Any) -> None:
    written(2)
    part = load_file(rank_file(1))
    save_file({**part, key: part[key] + 1}, rank_file(1))
    index = json.loads(Path("d/ranks.json").read_text())
    index["axes"].pop(key, None)
    Path("d/ranks.json").write_text(json.dumps(index))
    done = ckpt("inspect", "d")
    assert (done.code, f"{key}, which is not split according to ranks.json" in " ".join(done.err.split())) == (
        3,
        True,
    ), done.err


def notes_on(path: str) -> list[str]:
    return [note for note in cs.inspect(path).notes if "tensor parallelism" in note]


ALL = "give the folder with ranks.json and the files of all ranks"


@pytest.mark.parametrize("at", [0, 9_000, 131_072, 249_999])
def test_a_large_whole_tensor_that_differs_anywhere_is_refused(at: int) -> None:
    """A megabyte of a file without checksums: not only its ends are compared."""
    save_file({"split.weight": torch.ones(4, 2), "whole": torch.zeros(1 << 18)}, "w.safetensors")
    cs.apply(cs.convert("w.safetensors"), "d", to="tp", ranks=2, axis=["split.weight=0"])
    assert len(cs.open_checkpoint("d")) == 2
    tensors = load_file(rank_file(1))
    tensors["whole"][at : at + 17_000] = 1.0  # 68 kB
    save_file(tensors, rank_file(1))
    with pytest.raises(cs.FormatError, match="whole, which is not split"):
        cs.open_checkpoint("d")


@pytest.mark.parametrize("rank", [0, 1])
def test_the_file_of_one_rank_is_said_to_be_a_part(rank: int, ckpt: Any) -> None:
    written(2)
    name = os.path.basename(rank_file(rank))
    said = f"{name} has the parts of one of 2 ranks of tensor parallelism: {ALL}"
    assert notes_on(rank_file(rank)) == [said]
    assert said in " ".join(ckpt("convert", rank_file(rank), "-o", "h.safetensors").err.split())
    (row,) = [row for row in cs.check(rank_file(rank)).rows if row.id == "shard"]
    assert [(str(one.status.value), one.what) for one in row.found] == [("FAIL", said)]
    os.unlink("d/ranks.json")
    assert notes_on(rank_file(rank)) == [said.replace("of 2", "of at least 2")]
    os.unlink(rank_file(1 - rank))
    (alone,) = notes_on("d")
    assert alone.startswith(f"{name} is named as the file of one rank" if rank == 0 else f"{name} has the parts of one")


def test_the_file_of_the_only_rank_is_a_whole_model() -> None:
    written(1)
    assert notes_on(rank_file(0)) == notes_on("d") == []


def test_a_file_of_ranks_that_split_nothing_is_a_whole_model() -> None:
    save_file(state(), "w.safetensors")
    cs.apply(cs.convert("w.safetensors"), "d", to="tp", ranks=2)
    assert notes_on(rank_file(1)) == []


def test_a_folder_without_its_index_says_what_is_missing() -> None:
    written(2)
    os.unlink("d/ranks.json")
    with pytest.raises(cs.FormatError, match=r"d has the files of 2 ranks of tensor parallelism, but no ranks\.json"):
        cs.open_checkpoint("d")
