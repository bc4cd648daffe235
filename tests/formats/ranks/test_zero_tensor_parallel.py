"""Folders of ZeRO whose model is split over ranks of tensor parallelism, which their states describe."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import torch

import ckptsurgeon as cs

Tensors = dict[str, torch.Tensor]
INFO: dict[str, Any] = {
    "universal_checkpoint_version": 0.2,
    "vocabulary_parameter_patterns": [r"^embed\.weight$"],
    "tp_replicated_parameter_patterns": [r"\d+.norm.weight", r".*norm_f.weight"],
    "parameter_with_row_parallelism_patterns": [r"\d+\.dense\.weight"],
    "parameter_with_2_sub_params_cat_dim_0": [r"\d+.gate_up.weight"],
    "original_vocab_size": 7,
}


def whole() -> Tensors:
    torch.manual_seed(0)
    return {
        "embed.weight": torch.randn(8, 4), "0.norm.weight": torch.randn(4), "0.query.weight": torch.randn(6, 4),
        "0.query.bias": torch.randn(6), "0.dense.weight": torch.randn(4, 6), "0.gate_up.weight": torch.randn(8, 4),
        "norm_f.weight": torch.randn(4),
    }  # fmt: skip


def part(key: str, value: torch.Tensor, rank: int) -> torch.Tensor:
    if "norm" in key:
        return value
    if "gate_up" in key:
        return torch.cat([half.chunk(2)[rank] for half in value.chunk(2)])
    return value.chunk(2, 1 if "dense" in key else 0)[rank]


def save(path: str, ranks: int = 2, info: Any = INFO) -> Tensors:
    """Write the states of two ranks of tensor parallelism, each with so many ranks of ZeRO stage 2."""
    weights = whole()
    os.makedirs(path)
    for model in range(2):
        own = {key: part(key, value, model).contiguous() for key, value in weights.items()}
        states = {
            "module": {}, "buffer_names": [], "universal_checkpoint_info": info,
            "param_shapes": [OrderedDict((key, value.shape) for key, value in own.items())],
        }  # fmt: skip
        torch.save(states, f"{path}/mp_rank_{model:02d}_model_states.pt")
        vector = torch.cat([value.reshape(-1) for value in own.values()])
        vector = torch.cat([vector, torch.zeros(-len(vector) % (2 * ranks))])
        for rank, piece in enumerate(vector.chunk(ranks)):
            state = {"zero_stage": 2, "partition_count": ranks, "single_partition_of_fp32_groups": [piece.clone()]}
            name = f"{path}/bf16_zero_pp_rank_{rank}_mp_rank_{model:02d}_optim_states.pt"
            torch.save({"optimizer_state_dict": state}, name)
    return {**weights, "embed.weight": weights["embed.weight"][:7]}


@pytest.mark.costly
@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_the_parts_of_all_ranks_are_put_together(ranks: int) -> None:
    wanted = save("d", ranks)
    with cs.open_checkpoint("d") as checkpoint:
        assert set(checkpoint) == set(wanted)
        assert all(torch.equal(checkpoint.tensor(key), value) for key, value in wanted.items())
        said = "left out padding beyond original_vocab_size, 7: embed.weight (1 of 8 rows)"
        assert said in checkpoint.notes
    cs.apply(cs.convert("d"), "out.safetensors")
    assert cs.verify("out.safetensors").ok


WRONG: dict[str, tuple[Any, str]] = {
    "none": (None, "lacks universal_checkpoint_info"),
    "an affine map": ({**INFO, "affine_map": {"a": 1}}, "lists parameters in affine_map, which ckpt cannot join"),
    "parts of parameters": ({**INFO, "parameter_with_sub_params": [{"patterns": ["a"]}]}, "lists parameters in parameter_with_sub_params"),
    "a pattern that takes for ever": ({**INFO, "tp_replicated_parameter_patterns": ["(a+)+$"]}, "too complex to be used safely"),
    "two of anything": ({**INFO, "tp_replicated_parameter_patterns": [".*a.*b"]}, "too complex to be used safely"),
    "two numbers": ({**INFO, "tp_replicated_parameter_patterns": [r"\d+\d+.norm"]}, "too complex to be used safely"),
    "a pattern that is none": ({**INFO, "vocabulary_parameter_patterns": [3]}, "too complex to be used safely"),
    "patterns that are none": ({**INFO, "vocabulary_parameter_patterns": "embed"}, "not a list"),
    "many patterns": ({**INFO, "vocabulary_parameter_patterns": ["a"] * 100}, "not a list"),
    "a vector split by rows": ({**INFO, "parameter_with_row_parallelism_patterns": ["0.query.bias"]}, "is split along dimension 1"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_is_not_known_is_refused(name: str, ckpt: Any) -> None:
    info, said = WRONG[name]
    save("d", 2, info)
    done = ckpt("inspect", "d")
    assert (done.code, said in " ".join(done.err.split())) == (3, True), done.err


def changed_states(change: Callable[[dict[str, Any]], object]) -> None:
    for model in range(2):
        path = f"d/mp_rank_{model:02d}_model_states.pt"
        states = torch.load(path, weights_only=False)
        change(states)
        torch.save(states, path)


def test_buffers_are_whole_on_every_rank() -> None:
    save("d")
    buffer = torch.randn(4)
    changed_states(lambda states: states.update(module={"inv_freq": buffer}, buffer_names=["inv_freq"]))
    assert torch.equal(cs.open_checkpoint("d").tensor("inv_freq"), buffer)


def test_whole_parameters_that_differ_between_the_ranks_are_refused(ckpt: Any) -> None:
    save("d", 1)
    path = "d/bf16_zero_pp_rank_0_mp_rank_01_optim_states.pt"
    state = torch.load(path)
    state["optimizer_state_dict"]["single_partition_of_fp32_groups"][0] += 1
    torch.save(state, path)
    done = ckpt("inspect", "d")
    assert (done.code, "is not split, but its values differ" in " ".join(done.err.split())) == (3, True), done.err
    assert "ds_to_universal" not in done.err  # it asserts that the values are equal


def test_whole_parameters_that_lie_on_two_ranks_of_zero_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of two ranks has 40 values: the last value of 1.norm.weight is on the second rank."""
    values = whole()
    sizes = {"0.norm.weight": 4, "a.weight": 33, "1.norm.weight": 4, "b.weight": 21}
    long = {key: values["0.norm.weight"] if "norm" in key else torch.randn(2 * n, 1) for key, n in sizes.items()}
    monkeypatch.setitem(globals(), "whole", lambda: {**long, "embed.weight": values["embed.weight"]})
    wanted = save("d", 2)
    with cs.open_checkpoint("d") as checkpoint:
        assert all(torch.equal(checkpoint.tensor(key), value) for key, value in wanted.items())
    path = "d/bf16_zero_pp_rank_1_mp_rank_01_optim_states.pt"
    state = torch.load(path)
    state["optimizer_state_dict"]["single_partition_of_fp32_groups"][0][0] += 1
    torch.save(state, path)
    with pytest.raises(cs.FormatError, match=r"1\.norm\.weight is not split, but its values differ"):
        cs.open_checkpoint("d")


@pytest.mark.parametrize(("stated", "hint"), [(4, "Fetch the whole folder again."), (1, "Move the files of another")])
def test_another_number_of_ranks_than_the_states_say_is_refused(stated: int, hint: str) -> None:
    save("d")
    changed_states(lambda states: states.update(mp_world_size=2))
    cs.open_checkpoint("d").close()
    changed_states(lambda states: states.update(mp_world_size=stated))
    with pytest.raises(cs.FormatError, match=f"was split over {stated} tensor-parallel rank") as caught:
        cs.open_checkpoint("d")
    assert caught.value.hint.startswith(hint)


def test_the_states_of_one_of_two_ranks_are_not_the_model() -> None:
    save("d")
    changed_states(lambda states: states.update(mp_world_size=2))
    for name in os.listdir("d"):
        if "mp_rank_01" in name:
            os.remove(f"d/{name}")
    with pytest.raises(cs.FormatError, match="was split over 2 tensor-parallel ranks, but there are model states of 1"):
        cs.open_checkpoint("d")


def test_a_part_without_dimensions_does_not_fit_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = part

    def change(key: str, value: torch.Tensor, rank: int) -> torch.Tensor:
        return value[0] if rank and key == "0.query.bias" else plain(key, value, rank)

    monkeypatch.setitem(globals(), "part", change)
    save("d")
    with pytest.raises(
        cs.FormatError, match=r"parts of 0.query.bias on the ranks do not fit together: \(3,\) and \(\)"
    ):
        cs.open_checkpoint("d")
