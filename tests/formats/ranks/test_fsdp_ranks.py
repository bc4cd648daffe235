"""Folders with a file for each rank: what torch's own DTensors hold, put together as torch would."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import ckptsurgeon as cs
from ckptsurgeon.errors import FormatError, UnsafeError
from ckptsurgeon.util.notes import is_serious
from tests.helpers.ranks import LAYOUTS, RANKS, rank_name

Layout = Callable[[str], Path]
pytestmark = pytest.mark.filterwarnings("ignore")


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return (a.dtype, a.shape) == (b.dtype, b.shape) and torch.equal(a, b)


@pytest.mark.costly
@pytest.mark.parametrize("name", LAYOUTS)
def test_the_parts_of_all_ranks_are_put_together(name: str, layout: Layout) -> None:
    wanted = load_file(layout(name))
    with cs.open_checkpoint("d") as checkpoint:
        assert checkpoint.format == "fsdp ranks"
        assert set(checkpoint) == set(wanted)
        assert all(same(checkpoint.tensor(key), value) for key, value in wanted.items())
        assert not any("differ" in note for note in checkpoint.notes)
    cs.apply(cs.convert("d"), "out.safetensors")
    assert cs.verify("out.safetensors").ok
    found = load_file("out.safetensors")
    assert all(same(found[key], value) for key, value in wanted.items())


def test_names_without_the_number_of_ranks(layout: Layout) -> None:
    wanted = load_file(layout("rows"))
    for rank in range(RANKS):
        os.rename(f"d/{rank_name(rank)}", f"d/pytorch_model_fsdp_rank{rank}.bin")
    with cs.open_checkpoint("d") as checkpoint:
        assert same(checkpoint.tensor("uneven"), wanted["uneven"])


def test_a_file_of_one_rank_says_that_it_is_a_part(layout: Layout, ckpt: Any) -> None:
    layout("rows")
    done = ckpt("inspect", f"d/{rank_name(1)}")
    assert (done.code, "pass the folder with the files of all ranks" in " ".join(done.out.split())) == (0, True)
    layout_of = cs.open_checkpoint(f"d/{rank_name(1)}")
    assert layout_of["buffer"].opaque == ""


def test_a_missing_rank_is_said(layout: Layout, ckpt: Any) -> None:
    layout("rows")
    os.unlink(f"d/{rank_name(2)}")
    done = ckpt("inspect", "d")
    said = "has the files of 3 of 4 ranks: the file of rank 2 is missing"
    assert (done.code, said in " ".join(done.err.split())) == (3, True), done.err


def test_ranks_of_two_runs_are_refused_unless_verl_names_one(layout: Layout, ckpt: Any) -> None:
    wanted = load_file(layout("rows"))
    torch.save({"even": torch.ones(8, 4)}, f"d/{rank_name(0, 1)}")
    done = ckpt("inspect", "d")
    assert (done.code, "has the files of several runs" in " ".join(done.err.split())) == (3, True)
    Path("d/fsdp_config.json").write_text('{"FSDP_version": 2, "world_size": 4}')
    done = ckpt("inspect", "d")
    assert (done.code, "read the files of 4 ranks, as fsdp_config.json says" in " ".join(done.err.split())) == (0, True)
    assert same(cs.open_checkpoint("d").tensor("even"), wanted["even"])


def test_buffers_that_differ_are_named_and_the_first_is_taken(layout: Layout, ckpt: Any) -> None:
    layout("rows")
    changed(3, lambda state: state.update(buffer=torch.zeros(3)))
    done = ckpt("inspect", "d")
    said = "1 tensor that should be equal on all ranks differ; the tensor of the first rank is used: buffer"
    assert (done.code, said in " ".join(done.err.split())) == (0, True), done.err
    assert torch.equal(cs.open_checkpoint("d").tensor("buffer"), torch.arange(3.0))


def test_replicas_that_differ_are_named(layout: Layout) -> None:
    layout("replicas")

    def change(state: Any) -> None:
        state["even"]._local_tensor = state["even"]._local_tensor + 1

    changed(3, change)
    said = "1 tensor with copies of one part on several ranks that differ; the copy of the first rank is used: even"
    assert said in [note for note in cs.open_checkpoint("d").notes if is_serious(note)]
    assert cs.check("d").row("shard").status.value == "FAIL"


@pytest.mark.parametrize(("key", "serious"), [("linear.weight", True), ("norm.running_mean", False)])
def test_whole_weights_that_differ_are_serious_and_statistics_are_not(key: str, serious: bool) -> None:
    os.mkdir("d")
    for rank in range(2):
        torch.save({key: torch.full((3,), float(rank)), "bias": torch.ones(3)}, f"d/{rank_name(rank, 2)}")
    (note,) = (note for note in cs.open_checkpoint("d").notes if f"is used: {key}" in note)
    assert is_serious(note) == serious


def test_nested_state_dicts_and_other_entries(layout: Layout) -> None:
    wanted = load_file(layout("rows"))
    for rank in range(RANKS):
        state = torch.load(f"d/{rank_name(rank)}", weights_only=False)
        torch.save({"model": state, "step": 7}, f"d/{rank_name(rank)}")
    with cs.open_checkpoint("d") as checkpoint:
        assert (checkpoint.root, set(checkpoint)) == ("model", set(wanted))
        assert {one.key: one.value for one in checkpoint.extras} == {"step": 7}


def test_what_verl_puts_beside_the_ranks_goes_along(layout: Layout, ckpt: Any) -> None:
    layout("rows")
    os.mkdir("d/huggingface")
    Path("d/huggingface/config.json").write_text('{"model_type": "llama"}')
    Path("d/huggingface/tokenizer_config.json").write_text("{}")
    shutil.copy(f"d/{rank_name(0)}", f"d/optim_world_size_{RANKS}_rank_0.pt")
    done = ckpt("convert", "d", "-o", "out")
    assert (
        done.code,
        "left out other files of the ranks, such as states of optimizers" in " ".join(done.err.split()),
    ) == (0, True)
    assert {"config.json", "tokenizer_config.json", "model.safetensors"} <= set(os.listdir("out"))
    assert ckpt("verify", "out").code == 0


def changed(rank: int, change: Callable[[Any], object]) -> None:
    """Change what a rank has saved; torch makes DTensors of the file without any process group."""
    path = f"d/{rank_name(rank)}"
    state = torch.load(path, weights_only=False)
    change(state)
    torch.save(state, path)


def test_a_tensor_that_the_first_rank_does_not_have_as_one_is_an_error(layout: Layout) -> None:
    layout("rows")
    changed(0, lambda state: state.update(even=None))
    with pytest.raises(FormatError, match=f"{rank_name(0)}: even is not a tensor here, but is one on rank 1"):
        cs.open_checkpoint("d")


def spec(key: str, **fields: Any) -> Callable[[Any], None]:
    """Change the specification of a tensor on one rank."""

    def change(state: Any) -> None:
        for name, value in fields.items():
            object.__setattr__(state[key]._spec, name, value)

    return change


def mesh(**fields: Any) -> Callable[[Any], None]:
    def change(state: Any) -> None:
        state["even"]._spec.mesh.__dict__.update(fields)

    return change


def local(value: torch.Tensor) -> Callable[[Any], None]:
    def change(state: Any) -> None:
        state["even"]._local_tensor = value

    return change


def placements(*placed: str) -> tuple[Any, ...]:
    from torch.distributed.tensor.placement_types import Partial, Replicate, Shard, _StridedShard

    known = {
        "s0": Shard(0),
        "s1": Shard(1),
        "s9": Shard(9),
        "r": Replicate(),
        "p": Partial(),
        "t": _StridedShard(0, split_factor=3),
        "z": _StridedShard(0, split_factor=0),
    }
    return tuple(known[one] for one in placed)


def _axis(size: int, stride: int) -> Any:
    return lambda state: state["even"]._spec.mesh._layout.axes[0].__dict__.update(shape=(size,), stride=(stride,))


WRONG: dict[str, tuple[int, Callable[[Any], object], str]] = {
    "a partial sum": (0, spec("even", placements=placements("p")), "not Shard or Replicate"),
    "a dimension beyond": (0, spec("even", placements=placements("s9")), "split along dimension 9"),
    "too many placements": (0, spec("even", placements=placements("s0", "s1")), "placements do not fit the mesh"),
    "a split factor of another mesh": (0, spec("even", placements=placements("t")), "even cannot be read"),
    "a split factor of zero": (0, spec("even", placements=placements("z")), "the split_factor 0, which must be 1"),
    "an order of other cuts": (0, spec("even", shard_order=((0, (1,)),)), "contradict shard_order"),
    "another placement": (1, spec("even", placements=placements("s1"), shard_order=()), "split differently"),
    "a part of another shape": (2, local(torch.ones(5, 4)), "has a part of shape (5, 4)"),
    "a part of another dtype": (2, local(torch.ones(2, 4).half()), "the local part is"),
    "no part": (2, local(torch.ones(0, 4)), "has a part of shape (0, 4)"),
    "a huge mesh": (0, _axis(2**40, 1), "the mesh is not a grid"),
    "a mesh beyond its ranks": (0, _axis(4, 7), "reach beyond its ranks"),
    "ranks twice": (0, mesh(_flatten_rank_map=(0, 0, 1, 1)), "not distinct numbers"),
    "ranks that are none": (0, mesh(_flatten_rank_map=("a", None, 2.0, -1)), "not distinct numbers"),
    "ranks of a larger run": (0, mesh(_flatten_rank_map=(0, 1, 2, 9)), "including rank 9"),
    "no ranks": (0, mesh(_flatten_rank_map=None), "the mesh does not have 1 to"),
    "no mesh": (0, lambda s: s["even"]._spec.__dict__.update(mesh=None), "instead of a DeviceMesh"),
    "no specification": (0, lambda s: setattr(s["even"], "_spec", 3), "instead of a DTensorSpec"),
    "a tensor less": (3, lambda s: s.pop("even"), "it lacks even, which rank 0 has"),
    "a buffer less": (3, lambda s: s.pop("buffer"), "it lacks buffer, which rank 0 has"),
    "another buffer": (3, lambda s: s.update(buffer=torch.ones(4)), "the files are not from the same run"),
    "a plain tensor": (1, lambda s: s.update(even=torch.ones(8, 4)), "split differently"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_ranks_that_do_not_fit_are_refused(name: str, layout: Layout, ckpt: Any) -> None:
    layout("rows")
    rank, change, message = WRONG[name]
    changed(rank, change)
    done = ckpt("inspect", "d")
    said = " ".join(done.err.split())
    assert (done.code, message in said, "model_world_size_4_rank_" in said) == (3, True, True), done.err


def test_another_tensor_of_the_same_name_is_refused(layout: Layout, ckpt: Any) -> None:
    layout("rows")
    changed(2, lambda state: state.update(even=state["uneven"]))
    done = ckpt("inspect", "d")
    assert (done.code, "the files are not from the same run" in " ".join(done.err.split())) == (3, True), done.err


def test_a_file_that_is_cut_short_is_refused(layout: Layout, ckpt: Any) -> None:
    layout("rows")
    os.truncate(f"d/{rank_name(2)}", os.path.getsize(f"d/{rank_name(2)}") // 2)
    done = ckpt("inspect", "d")
    assert (done.code, rank_name(2) in " ".join(done.err.split())) == (3, True), done.err


def test_parts_without_end_are_refused(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    from ckptsurgeon.formats.base import limits

    layout("rows")
    monkeypatch.setattr(limits, "RANK_PIECES", 11)
    with pytest.raises(UnsafeError, match="more entries than the limit of 11"):
        cs.open_checkpoint("d")


def test_a_rank_beyond_the_number_in_its_name_is_refused() -> None:
    os.mkdir("d")
    torch.save({"a": torch.ones(2)}, "d/model_world_size_1_rank_1.pt")
    with pytest.raises(FormatError, match=r"model_world_size_1_rank_1\.pt, but the run has 1 rank"):
        cs.open_checkpoint("d")


def test_nothing_in_it_is_run(layout: Layout) -> None:
    wanted = load_file(layout("rows"))
    changed(1, lambda state: state.update(more=_Payload()))
    assert set(cs.open_checkpoint("d")) == set(wanted)
    assert not Path("canary").exists()


class _Payload:
    def __reduce__(self) -> Any:
        return os.system, ("touch canary",)


def test_views_that_differ_between_the_ranks_are_said(layout: Layout) -> None:
    layout("rows")
    changed(2, lambda state: state.update(buffer=(torch.arange(10.0) + 5)[2:5]))
    changed(1, lambda state: state.update(buffer=torch.arange(10.0)[2:5]))
    changed(0, lambda state: state.update(buffer=torch.arange(10.0)[2:5]))
    changed(3, lambda state: state.update(buffer=torch.arange(10.0)[2:5]))
    notes = cs.open_checkpoint("d").notes
    assert any("1 tensor that should be equal on all ranks differ" in note and "buffer" in note for note in notes)


def test_two_files_of_one_rank_are_refused(ckpt: Any) -> None:
    os.mkdir("d")
    for name in ("model_rank_0.pt", "model_rank0.bin"):
        torch.save({"a": torch.ones(2)}, f"d/{name}")
    done = ckpt("inspect", "d")
    assert (done.code, "has two files for the same rank" in " ".join(done.err.split())) == (3, True), done.err


def test_entries_that_are_no_tensors_count_too(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    from ckptsurgeon.formats.base import limits

    layout("rows")
    monkeypatch.setattr(limits, "RANK_PIECES", 500)
    cs.open_checkpoint("d")
    changed(1, lambda state: state.update({f"own.{number}": number for number in range(500)}))
    with pytest.raises(UnsafeError, match="more entries than the limit of 500"):
        cs.open_checkpoint("d")


def test_the_error_on_swapped_files_says_that_they_may_be_swapped(layout: Layout) -> None:
    layout("rows")
    os.rename(f"d/{rank_name(0)}", "last")
    os.rename(f"d/{rank_name(RANKS - 1)}", f"d/{rank_name(0)}")
    os.rename("last", f"d/{rank_name(RANKS - 1)}")
    with pytest.raises(FormatError, match="has a part of shape") as caught:
        cs.open_checkpoint("d")
    assert caught.value.hint.startswith("Were files of ranks renamed or swapped")
