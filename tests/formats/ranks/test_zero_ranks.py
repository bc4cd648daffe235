"""Folders of DeepSpeed whose files do not belong together: each fault is an error, or a warning that ``-q`` shows."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from typing import Any

import pytest
import torch

import ckptsurgeon as cs
from ckptsurgeon.errors import FormatError
from ckptsurgeon.formats import deepspeed_universal
from ckptsurgeon.util.notes import is_serious

from ..test_deepspeed_zero import zero_folder
from .test_deepspeed_universal import universal

FLATS = {2: "single_partition_of_fp32_groups", 3: "fp32_flat_groups"}


def optimizer(rank: int) -> str:
    return f"d/bf16_zero_pp_rank_{rank}_mp_rank_00_optim_states.pt"


def model(rank: int, stage: int = 3) -> str:
    return f"d/zero_pp_rank_{rank}_mp_rank_00_model_states.pt" if stage == 3 else "d/mp_rank_00_model_states.pt"


def edit(path: str, change: Callable[[Any], Any]) -> None:
    state = torch.load(path, weights_only=False)
    change(state)
    torch.save(state, path)


def warnings(path: str = "d") -> list[str]:
    with cs.open_checkpoint(path) as checkpoint:
        return [note for note in checkpoint.notes if is_serious(note)]


@pytest.mark.parametrize("stage", [1, 2, 3])
@pytest.mark.parametrize("paddings", [False, True])
def test_whole_folders_have_no_warnings(stage: int, paddings: bool) -> None:
    zero_folder("d", stage, 3, paddings=paddings and stage < 3)
    assert warnings() == []


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_weights_are_rounded_as_torch_rounds_them(dtype: torch.dtype) -> None:
    """With large, tiny, infinite and undefined values, and values half-way between two of the dtype."""
    zero_folder("d", 2, 1)
    odd = torch.tensor([1e6, 65519.9, 65520.0, 1e-8, -0.0, float("inf"), float("nan"), 1 + 2**-8, 1 + 3 * 2**-8])

    def vectors(state: Any) -> None:
        flat = state["optimizer_state_dict"][FLATS[2]][0]
        flat[: len(odd)] = odd

    edit(optimizer(0), vectors)

    def modules(state: Any) -> None:
        flat = torch.load(optimizer(0), weights_only=False)["optimizer_state_dict"][FLATS[2]][0]
        state["module"]["a.weight"] = flat[:15].reshape(5, 3).to(dtype)
        state["module"]["b.weight"] = state["module"]["b.weight"].double()  # not compared

    edit(model(0, 2), modules)
    assert not any("rounded" in note for note in warnings())
    edit(model(0, 2), lambda state: state["module"]["a.weight"].view(-1)[7:8].add_(1))
    assert any("a.weight" in note and "rounded" in note for note in warnings())


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_values_that_are_not_those_of_the_model_states_are_named(rank: int, ckpt: Any) -> None:
    zero_folder("d", 2, 3)
    edit(optimizer(rank), lambda state: [one.add_(1) for one in state["optimizer_state_dict"][FLATS[2]]])
    (said,) = warnings()
    assert said.startswith(
        f"the weights of rank {rank} in the optimizer states, rounded, differ from mp_rank_00_model_st"
    )
    assert "the files are of different steps, or of different ranks" in said
    assert f"warning: the weights of rank {rank}" in ckpt("convert", "d", "-o", "o.pth", "-q").err
    assert ckpt("check", "d").code == 1


@pytest.mark.parametrize("stage", [2, 3])
def test_ranks_that_are_missing_by_their_names_are_an_error(stage: int) -> None:
    zero_folder("d", stage, 3)
    os.rename(optimizer(2), optimizer(5))
    with pytest.raises(
        FormatError, match="the optimizer states of rank 2 are missing, and those of other ranks are there twice"
    ):
        cs.open_checkpoint("d")


@pytest.mark.parametrize(
    ("entry", "value", "said"),
    [("zero_stage", 1, "different stages of ZeRO"), ("partition_count", [4, 4], "different numbers of ranks")],
)
def test_optimizer_states_of_other_settings_are_an_error(entry: str, value: Any, said: str) -> None:
    zero_folder("d", 2, 3)
    edit(optimizer(1), lambda state: state["optimizer_state_dict"].update({entry: value}))
    with pytest.raises(FormatError, match=f"bf16_zero_pp_rank_1_mp_rank_00_optim_states.pt and .* {said}"):
        cs.open_checkpoint("d")


def test_a_tensor_that_no_list_names_is_named() -> None:
    zero_folder("d", 2, 2)
    edit(model(0, 2), lambda state: state["module"].update(lost=torch.ones(3), empty=torch.ones(0)))
    (said,) = warnings()
    assert said.startswith("left out 1 tensor of mp_rank_00_model_states.pt, neither in the optimizer states nor")
    assert said.endswith(": lost")


def test_model_states_that_are_missing(ckpt: Any) -> None:
    zero_folder("d", 3, 3)
    os.unlink(model(1))
    with pytest.raises(FormatError, match="the model states of rank 1 are missing, so parts of the parameters"):
        cs.open_checkpoint("d")
    shutil.rmtree("d")
    zero_folder("d", 3, 3, frozen=False)
    os.unlink(model(0))
    (said,) = warnings()
    assert said == "the model states of rank 0 are missing (the weights in the optimizer states are complete)"


def test_model_states_of_several_steps_are_named() -> None:
    zero_folder("d", 3, 3)
    edit(model(1), lambda state: state.update(global_steps=99))
    (said,) = warnings()
    assert said.startswith("the model states of the ranks are of different steps (global_steps: ")


@pytest.mark.parametrize("kind", ["a number", "a tensor", "a group", "a list"])
@pytest.mark.parametrize("stage", [2, 3])
def test_optimizer_states_of_several_steps_are_named(stage: int, kind: str) -> None:
    zero_folder("d", stage, 3)
    for rank in range(3):
        step = 5 + (rank == 1)
        states: dict[str, Any] = {
            "a number": {"optimizer_state_dict": {"state": {0: {"step": step}}}},
            "a tensor": {"base_optimizer_state": {"state": {0: {"step": torch.tensor(float(step))}}}},
            "a group": {"optimizer_state_dict": {"state": {}, "param_groups": [{"lr": 1, "step": step}]}},
            "a list": {"base_optimizer_state": [{"exp_avg": torch.ones(2), "step": torch.tensor(step)}]},
        }
        own = states[kind]
        edit(optimizer(rank), lambda state, own=own: state["optimizer_state_dict"].update(own))  # type: ignore[misc]
    (said,) = warnings()
    assert "the optimizer states of the ranks are of different steps (5 in bf16_zero_pp_rank_0" in said
    assert "6 in bf16_zero_pp_rank_1" in said


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("layer_0_expert_0_mp_rank_00_model_states.pt", "experts that are split across ranks"),
        ("expp_rank_0_mp_rank_00_optim_states.pt", "experts that are split across ranks"),
        ("layer_00-model_00-model_states.pt", "the layers of a pipeline"),
    ],
)
def test_experts_and_layers_of_a_pipeline_are_refused_by_name(name: str, said: str) -> None:
    zero_folder("d", 2, 2)
    torch.save({"w": torch.ones(2)}, f"d/{name}")
    with pytest.raises(FormatError, match=f"d has {said} .{name}., which cannot be read") as error:
        cs.open_checkpoint("d")
    assert ("only experts that AutoEP split" in error.value.hint) == ("experts" in said)


def test_model_states_of_one_rank_say_that_they_lack_the_parameters() -> None:
    zero_folder("d", 3, 2)
    (said,) = warnings(model(0))
    assert said.startswith("the file lacks the values of 6 parameters, which stage 3 of ZeRO stores in the optimizer")
    zero_folder("e", 2, 2)
    assert warnings("e/mp_rank_00_model_states.pt") == []
    edit("e/mp_rank_00_model_states.pt", lambda state: state.update(mp_world_size=2))
    (said,) = warnings("e/mp_rank_00_model_states.pt")
    assert said.startswith("the file has the weights of one of 2 ranks of the model")


# Universal checkpoints.

WEIGHT = "d/zero/layers.0.weight"


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("stage", [2, 3])
def test_a_whole_universal_checkpoint_has_no_warnings(stage: int, ranks: int) -> None:
    universal("d", stage=stage, ranks=ranks)
    assert warnings() == []


def test_the_model_states_beside_a_universal_checkpoint_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    universal("d")
    names, read = list[str](), deepspeed_universal.open_header

    def counted(file: Any, name: str) -> Any:
        names.append(os.path.basename(name))
        return read(file, name)

    monkeypatch.setattr(deepspeed_universal, "open_header", counted)
    assert warnings() == []
    assert names.count("mp_rank_00_model_states.pt") == 1


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_parameter_without_a_folder_is_an_error(ranks: int) -> None:
    universal("d", ranks=ranks)
    shutil.rmtree(WEIGHT)
    with pytest.raises(FormatError, match="lacks the folders of 1 parameter that the model states list: zero/layers.0"):
        cs.open_checkpoint("d")


def test_a_weight_of_another_shape_is_an_error() -> None:
    universal("d")
    torch.save({"param": torch.ones(3, 3)}, f"{WEIGHT}/fp32.pt")
    with pytest.raises(FormatError, match=r"layers.0.weight has the shape \(3, 3\) in zero/, but \(4, 5\)"):
        cs.open_checkpoint("d")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda: torch.save({"param": torch.ones(4, 5)}, f"{WEIGHT}/fp32.pt"),
            "of 3 sampled weights, 1, when rounded",
        ),
        (lambda: torch.save({"param": torch.ones(4, 5).half()}, f"{WEIGHT}/fp32.pt"), "1 weight not in float32"),
        (
            lambda: shutil.copytree(WEIGHT, f"{WEIGHT} (1)"),
            "the model states do not list 1 parameter of zero/: layers.0.weight (",
        ),
        (lambda: os.unlink("d/mp_rank_00_model_states.pt"), "there are no model states, so a parameter"),
    ],
    ids=["another step", "another dtype", "a copy", "no model states"],
)
def test_what_does_not_belong_to_a_universal_checkpoint_is_named(change: Callable[[], Any], said: str) -> None:
    universal("d")
    change()
    assert [note[: len(said)] for note in warnings()] == [said]


@pytest.mark.parametrize("path", [optimizer, model])
def test_a_file_that_was_copied_onto_another_rank_is_named(path: Callable[[int], str]) -> None:
    zero_folder("d", 3, 3)
    shutil.copy(path(0), path(2))
    said = next(note for note in warnings() if " has the same values as " in note)
    assert "rank_2" in said
    assert said.endswith("if it is a copy, the part of its own rank is missing")


def test_ranks_that_have_one_value_are_not_taken_for_copies() -> None:
    zero_folder("d", 3, 3)
    for rank in range(3):
        edit(optimizer(rank), lambda state: [one.fill_(1) for one in state["optimizer_state_dict"][FLATS[3]]])
        edit(model(rank), lambda state: [one.fill_(0) for one in state["frozen_param_fragments"].values()])
    assert warnings() == []
