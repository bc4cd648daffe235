"""Folders of Meta's Llama with a file for each rank: the whole model, and what is no folder of one model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import ckptsurgeon as cs
from ckptsurgeon.errors import FormatError
from ckptsurgeon.util.notes import is_serious

State = dict[str, torch.Tensor]
WHOLE = load_file(Path(__file__).resolve().parents[3] / "fixtures/golden/layouts/llama/meta.safetensors")
ROWS, COLUMNS = ("wq", "wk", "wv", "w1", "w3", "output"), ("wo", "w2")


def write(ranks: int = 2, *, words: int = 0, change: Callable[[int, State], object] = lambda rank, state: None) -> None:
    """Save the model as ranks of fairscale's layers have it; ``words`` is the split dimension of the embedding."""
    Path("model").mkdir(exist_ok=True)
    Path("model/params.json").write_text(json.dumps({"dim": 24, "n_heads": 6, "n_kv_heads": 2}))
    for rank in range(ranks):
        state: State = {"rope.freqs": torch.ones(2)}
        for key, value in WHOLE.items():
            layer = key.split(".")[-2]
            dim = words if layer == "tok_embeddings" else 0 if layer in ROWS else 1 if layer in COLUMNS else None
            state[key] = (value if dim is None else value.chunk(ranks, dim)[rank]).clone()
        change(rank, state)
        torch.save(state, f"model/consolidated.{rank:02d}.pth")


@pytest.mark.parametrize(("ranks", "words"), [(2, 0), (2, 1)])
def test_the_ranks_are_one_model(ranks: int, words: int) -> None:
    """Llama 3 splits the rows of the embedding, Llama 1 and 2 its columns."""
    write(ranks, words=words)
    plan = cs.filter("model", exclude=["rope"])
    assert f"read as one model: {ranks} ranks of tensor parallelism" in plan.notes
    cs.apply(plan, "out.safetensors")
    made = load_file("out.safetensors")
    assert made.keys() == WHOLE.keys()
    assert all(torch.equal(made[key], WHOLE[key]) for key in WHOLE)
    assert cs.verify("out.safetensors").ok


def test_the_model_gets_the_layout_of_transformers() -> None:
    write()
    cs.apply(cs.convert("model", layout="transformers"), "out.safetensors")
    wanted = load_file(Path(__file__).resolve().parents[3] / "fixtures/golden/layouts/llama/transformers.safetensors")
    made = load_file("out.safetensors")
    assert made.keys() == wanted.keys()
    assert all(torch.equal(made[key], wanted[key]) for key in wanted)


def test_a_tensor_that_cannot_be_compared_is_not_said_to_differ() -> None:
    """A transposed tensor has no checksum of its own, so that nobody knows whether the ranks have the same values."""
    write(change=lambda rank, state: state.update({"extra.weight": torch.ones(4, 6).t()}))
    with pytest.raises(FormatError, match=r"extra.weight cannot be compared between the ranks, and ckpt does not know"):
        cs.inspect("model")
    write(change=lambda rank, state: state.update({"extra.weight": torch.ones(4, 6) * rank}))
    with pytest.raises(FormatError, match=r"extra.weight differs between the ranks"):
        cs.inspect("model")


def test_entries_other_than_tensors_are_kept_from_the_first_rank() -> None:
    write(change=lambda rank, state: state.update(step=7))  # type: ignore[call-overload]
    assert [(extra.key, extra.value) for extra in cs.inspect("model").extras] == [("step", 7)]


def test_entries_with_tensors_are_left_out_and_named() -> None:
    """They would be the parts of the first rank, which look like whole weights."""

    def change(rank: int, state: State) -> None:
        entries = {"ema": dict(state), "steps": {"last": [7]}, "history": [{"old": {"a": state["norm.weight"]}}]}
        state.update(entries)  # type: ignore[arg-type]

    write(change=change)
    found = cs.inspect("model")
    said = "left out, because ckpt does not join tensors in nested dicts and lists: ema, history"
    assert said in found.notes
    assert not [note for note in found.notes if "also has" in note]
    assert {extra.key for extra in found.extras} == {"steps"}
    with pytest.raises(cs.ConfigError, match="ema"):
        cs.inspect("model", root="ema")


def test_a_weight_that_one_rank_does_not_have_as_a_tensor_is_an_error() -> None:
    write(change=lambda rank, state: state.update({"output.weight": None} if rank else {}))  # type: ignore[dict-item]
    with pytest.raises(
        FormatError, match=r"consolidated.01.pth: output.weight is not a tensor here, but is one on rank 0"
    ):
        cs.inspect("model")


def test_nested_state_dicts_are_not_taken_for_the_whole_model() -> None:
    def nest(rank: int, state: State) -> None:
        inner = dict(state)
        state.clear()
        state["model"] = inner  # type: ignore[assignment]

    write(change=nest)
    with pytest.raises(FormatError, match=r"consolidated.00.pth is not a dict of tensors"):
        cs.inspect("model")


def test_norms_that_differ_between_ranks_are_said() -> None:
    write(change=lambda rank, state: state["norm.weight"].add_(rank))
    said = "1 tensor that should be equal on all ranks differ; those of the first rank are used: norm.weight"
    assert any(said in note and is_serious(note) for note in cs.inspect("model").notes)


def test_norms_that_cannot_be_compared_between_ranks_are_said() -> None:
    write(change=lambda rank, state: state.update({"norm.weight": state["norm.weight"].repeat_interleave(2)[::2]}))
    said = (
        "1 tensor that should be equal on all ranks could not be compared; the tensor of the first rank is used: "
        "norm.weight"
    )
    assert said in cs.inspect("model").notes


FAULTS: dict[str, tuple[Callable[[int, State], object], str]] = {
    "a key that one rank lacks": (lambda rank, state: state.pop("norm.weight") if rank else None, "has other keys"),
    "another shape": (
        lambda rank, state: state.update({"output.weight": torch.ones(3, 24)}) if rank else None,
        r"output.weight is float32 \(3, 24\), but float32 \(15, 24\)",
    ),
    "another dtype": (
        lambda rank, state: state.update({"output.weight": state["output.weight"].half()}) if rank else None,
        "output.weight is float16",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_not_one_model_is_an_error(fault: str) -> None:
    change, said = FAULTS[fault]
    write(change=change)
    with pytest.raises(FormatError, match=said):
        cs.inspect("model")


def test_a_rank_that_is_missing_is_an_error() -> None:
    write()
    Path("model/consolidated.01.pth").rename("model/consolidated.03.pth")
    with pytest.raises(FormatError, match=r"lacks the files of some ranks: consolidated.01.pth, consolidated.02.pth"):
        cs.inspect("model")


def test_the_last_ranks_that_are_missing_are_an_error() -> None:
    write(4)
    Path("model/consolidated.03.pth").unlink()
    with pytest.raises(FormatError, match=r"has 1/4 of the heads, so .* 4 ranks; missing: consolidated.03.pth"):
        cs.inspect("model")


def test_a_file_that_is_no_checkpoint_is_an_error_and_all_files_are_closed() -> None:
    write()
    Path("model/consolidated.01.pth").write_bytes(b"no checkpoint")
    with pytest.raises(FormatError, match="consolidated.01.pth"):
        cs.inspect("model")
