"""Universal checkpoints of DeepSpeed, from files as ``ds_to_universal.py`` lays them out."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import ckptsurgeon as cs

Tensors = dict[str, torch.Tensor]


def universal(path: str, *, stage: int = 2, ranks: int = 1) -> Tensors:
    """Write a folder, and return the weights that are in it."""
    torch.manual_seed(0)
    weights = {
        "embed.weight": torch.randn(7, 3),
        "layers.0.weight": torch.randn(4, 5),
        "layers.10.bias": torch.randn(4),
    }
    for key, value in weights.items():
        os.makedirs(f"{path}/zero/{key}")
        stored = value.reshape(-1).clone() if stage == 3 else value
        entry: Any = {"param": stored, "cat_dim": 0, **({"vocab_tensor": True} if "embed" in key else {})}
        torch.save(stored if stage == 3 else entry, f"{path}/zero/{key}/fp32.pt")
        for moment in ("exp_avg", "exp_avg_sq"):
            torch.save({"param": torch.zeros_like(stored)}, f"{path}/zero/{key}/{moment}.pt")
        torch.save(torch.tensor(3), f"{path}/zero/{key}/step.pt")
    torch.save({"optimizer_state_dict": {}}, f"{path}/zero/optimizer_state.pt")
    buffer, kept = {"norm.mean": torch.randn(3)}, {"frozen": torch.randn(2, 2).half()}
    states = {
        "module": {**{key: value.half() for key, value in weights.items()}, **buffer, **kept},
        "buffer_names": list(buffer),
        "param_shapes": [OrderedDict((key, value.shape) for key, value in weights.items())],
        "frozen_param_shapes": OrderedDict((key, value.shape) for key, value in kept.items()),
        "frozen_param_fragments": OrderedDict(kept),
        "shared_params": {"head.weight": "embed.weight"},
        "global_steps": 3,
    }
    for rank in range(ranks):
        torch.save(states, f"{path}/mp_rank_{rank:02}_model_states.pt")
    if ranks > 1:
        return {**weights, "head.weight": weights["embed.weight"]}
    return {**weights, **buffer, **kept, "head.weight": weights["embed.weight"]}


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return (a.dtype, a.shape) == (b.dtype, b.shape) and torch.equal(a, b)


@pytest.mark.costly
@pytest.mark.parametrize(("stage", "ranks"), [(2, 1), (2, 2), (3, 1)])
def test_the_weights_are_those_of_the_parameters(stage: int, ranks: int, ckpt: Any) -> None:
    wanted = universal("d", stage=stage, ranks=ranks)
    with cs.open_checkpoint("d") as checkpoint:
        assert (checkpoint.format, checkpoint.root) == (
            "deepspeed universal",
            "module" if ranks == 1 else checkpoint.root,
        )
        assert set(checkpoint) == set(wanted)
        assert all(same(checkpoint.tensor(key), value) for key, value in wanted.items())
    done = ckpt("convert", "d", "-o", "out.safetensors")
    said = "float32 weights of 3 parameters; left out of the optimizer: exp_avg, exp_avg_sq, step"
    assert (done.code, said in " ".join(done.err.split())) == (0, True), done.err
    assert all(same(load_file("out.safetensors")[key], value) for key, value in wanted.items())
    assert ckpt("verify", "out.safetensors").code == 0


def test_the_folder_that_latest_universal_names_is_read() -> None:
    wanted = universal("run/global_step3_universal")
    Path("run/latest_universal").write_text("global_step3_universal")
    assert set(cs.open_checkpoint("run")) == set(wanted)


def entry(value: Any) -> Callable[[], None]:
    return lambda: torch.save(value, "d/zero/layers.0.weight/fp32.pt")


WRONG: dict[str, tuple[Callable[[], object], str]] = {
    "a file less": (lambda: os.unlink("d/zero/layers.0.weight/fp32.pt"), "d/zero/layers.0.weight/fp32.pt does not exist"),
    "no param": (entry({"parameter": torch.ones(2)}), "has no entry param with a tensor"),
    "a param that is none": (entry({"param": [1, 2]}), "has no entry param with a tensor"),
    "a number": (entry(3), "has no entry param with a tensor"),
    "states that are none": (lambda: torch.save([1], "d/mp_rank_00_model_states.pt"), "not a dict of training states"),
    "shapes that are none": (
        lambda: torch.save({"param_shapes": [{"a": -1}]}, "d/mp_rank_00_model_states.pt"), "invalid entry param_shapes",
    ),
    "a file cut short": (lambda: os.truncate("d/zero/layers.0.weight/fp32.pt", 300), "layers.0.weight/fp32.pt"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_does_not_fit_is_refused(name: str, ckpt: Any) -> None:
    universal("d")
    change, said = WRONG[name]
    change()
    done = ckpt("inspect", "d")
    assert (done.code, said in " ".join(done.err.split())) == (3, True), done.err


def test_a_file_that_is_there_but_cannot_be_opened_is_not_called_missing() -> None:
    universal("d")
    os.unlink("d/zero/layers.0.weight/fp32.pt")
    os.mkdir("d/zero/layers.0.weight/fp32.pt")
    with pytest.raises(cs.FormatError, match="d/zero/layers.0.weight/fp32.pt cannot be opened: Is a directory"):
        cs.open_checkpoint("d")


NO_STEP = "run contains no checkpoint."
LOST = "it is a folder whose latest_universal "


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("../elsewhere", NO_STEP),
        ("/etc", NO_STEP),
        ("", NO_STEP),
        ("..", NO_STEP),
        ("\0", NO_STEP),
        ("global_step9", f"{LOST}says global_step9, but there is no subfolder of this name."),
        ("global_step9_universal", f"{LOST}says global_step9_universal, but there is no subfolder of this name."),
    ],
)
def test_a_latest_that_names_no_folder_is_none(text: str, said: str) -> None:
    universal("elsewhere")
    os.makedirs("run")
    Path("run/latest_universal").write_text(text)
    with pytest.raises(cs.FormatError) as caught:
        cs.open_checkpoint("run")
    assert caught.value.message.endswith(said)


def test_what_states_of_several_ranks_have_alone_is_said_to_be_left_out() -> None:
    universal("d", ranks=2)
    assert any(
        "the tensors in the model states of 2 ranks were not read" in note for note in cs.open_checkpoint("d").notes
    )


@pytest.mark.parametrize(
    ("steps", "said"),
    [
        ({"embed.weight": 3, "layers.0.weight": 5}, "the files step.pt have different steps (3 of embed.weight, 5 of "),
        ({"embed.weight": 9, "layers.0.weight": 9, "layers.10.bias": 9}, "step.pt has more steps (9 of embed.weight)"),
        ({"embed.weight": 2, "layers.0.weight": 2, "layers.10.bias": 2}, ""),
        ({"embed.weight": None}, ""),
    ],
)
def test_steps_that_contradict_are_named(steps: dict[str, int | None], said: str, ckpt: Any) -> None:
    universal("d")
    for key, step in steps.items():
        if step is None:
            os.unlink(f"d/zero/{key}/step.pt")
        else:
            torch.save(torch.tensor(float(step)), f"d/zero/{key}/step.pt")
    done = ckpt("convert", "d", "-o", "out.pth", "-q")
    assert (done.code, " ".join(done.err.split()).startswith(f"warning: {said}" if said else "")) == (0, True), done.err
    assert bool(done.err) == bool(said)
    assert ckpt("check", "d").code == bool(said)
