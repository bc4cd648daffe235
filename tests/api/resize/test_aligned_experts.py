"""Experts that differ only in the order of their channels merge into the same expert, however they are stored."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import ckptsurgeon as cs

from .test_another_type import Saved
from .test_resize import outputs, source, transformers

__all__ = ["source"]

EXPERTS = "model.layers.{}.mlp.experts.{}"
Tensors = dict[str, torch.Tensor]
Order = torch.Tensor


def of_mixtral(layer: int, tensors: Tensors, expert: int, order: Order) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the tensors of expert 0 of a layer with its channels in another order, as those of ``expert``."""
    gate_up, down = (tensors[EXPERTS.format(layer, name)][0] for name in ("gate_up_proj", "down_proj"))
    both = gate_up.unflatten(0, (2, -1))[:, order].flatten(0, 1)
    yield EXPERTS.format(layer, "gate_up_proj"), both
    yield EXPERTS.format(layer, "down_proj"), down[:, order]


def of_gpt_oss(layer: int, tensors: Tensors, expert: int, order: Order) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the same of gpt-oss: inputs before outputs, gate and up in turns, and biases."""
    for name in ("gate_up_proj", "gate_up_proj_bias"):
        value = tensors[EXPERTS.format(layer, name)][0]
        yield EXPERTS.format(layer, name), value.unflatten(-1, (-1, 2))[..., order, :].flatten(-2)
    yield EXPERTS.format(layer, "down_proj"), tensors[EXPERTS.format(layer, "down_proj")][0][order]
    yield EXPERTS.format(layer, "down_proj_bias"), tensors[EXPERTS.format(layer, "down_proj_bias")][0]


def shuffled(folder: Path, to: Path, own: Callable[..., Any]) -> Path:
    """Copy a model of two layers whose experts are the first one, each with its channels in another order."""
    shutil.copytree(folder, to)
    tensors = load_file(to / "model.safetensors")
    drawn = torch.Generator().manual_seed(3)
    for layer in range(2):
        first = dict(tensors)
        experts, channels = tensors[EXPERTS.format(layer, "gate_up_proj")].shape[0], 0
        channels = json.loads((to / "config.json").read_text())["intermediate_size"]
        for expert in range(1, experts):
            for key, value in own(layer, first, expert, torch.randperm(channels, generator=drawn)):
                tensors[key][expert] = value
    save_file(tensors, to / "model.safetensors", metadata={"format": "pt"})
    return to


def apart(folder: Path) -> None:
    """Store each expert in tensors of its own, as Mixtral was published."""
    tensors = load_file(folder / "model.safetensors")
    for layer in range(2):
        gate_up, down = (tensors.pop(EXPERTS.format(layer, name)) for name in ("gate_up_proj", "down_proj"))
        tensors[f"model.layers.{layer}.block_sparse_moe.gate.weight"] = tensors.pop(
            f"model.layers.{layer}.mlp.gate.weight"
        )
        for expert, (both, last) in enumerate(zip(gate_up, down, strict=True)):
            at = f"model.layers.{layer}.block_sparse_moe.experts.{expert}"
            first, second = both.chunk(2)
            tensors |= {
                f"{at}.{name}.weight": one.clone() for name, one in (("w1", first), ("w2", last), ("w3", second))
            }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.fixture
def made(source: Saved, tmp_path: Path) -> Callable[[str], tuple[Path, str]]:
    """Return a function that returns the folder of a model with shuffled equal experts, and its model type."""

    def saved(storage: str) -> tuple[Path, str]:
        kind, own = ("gpt_oss", of_gpt_oss) if storage == "gpt_oss" else ("mixtral", of_mixtral)
        folder = tmp_path / "stacked"
        stacked(source(kind), folder)
        folder = shuffled(folder, tmp_path / "shuffled", own)
        if storage == "apart":
            apart(folder)
        return folder, kind

    return saved


def stacked(folder: Path, to: Path) -> None:
    """Copy a model, with all experts of a layer in one tensor, as transformers has them in memory."""
    shutil.copytree(folder, to)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    save_file(model.state_dict(), to / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.long
@pytest.mark.costly
@pytest.mark.parametrize("storage", ["stacked", "apart", "gpt_oss"])
def test_experts_in_other_orders_merge_into_the_same_expert(
    storage: str, made: Callable[[str], tuple[Path, str]], tmp_path: Path
) -> None:
    folder, kind = made(storage)
    number = json.loads((folder / "config.json").read_text())["num_local_experts"]
    fields = {"num_local_experts": 2}
    plan = cs.resize(folder, set=fields, merge_experts="similar", align_experts=True)
    assert (
        f"the channels of {2 * (number - 2)} of {2 * (number - 2)} experts are first put into the order"
        in plan.notes[0]
    )
    assert "1.000 after, so these experts are equal and none of them is lost" in plan.notes[0]
    cs.apply(plan, tmp_path / "out")
    assert not cs.verify(tmp_path / "out").failed
    before, after = outputs(folder, kind), outputs(tmp_path / "out", kind)
    assert (before - after).abs().max() < 1e-5 * before.abs().max()
    cs.apply(cs.resize(folder, set=fields, merge_experts="similar"), tmp_path / "plain")
    plain = outputs(tmp_path / "plain", kind)
    assert (before - plain).abs().max() > 1e-3 * before.abs().max()


@pytest.mark.long
def test_the_mean_of_aligned_experts_is_the_expert_bit_for_bit(
    made: Callable[[str], tuple[Path, str]], tmp_path: Path
) -> None:
    folder, _ = made("stacked")
    plan = cs.resize(
        folder, set={"num_local_experts": 2}, merge_experts="0+2,1+3", align_experts=True, dtype="bfloat16"
    )
    (tmp_path / "plan.json").write_text(json.dumps(plan.to_json()))
    cs.apply(cs.load_plan(tmp_path / "plan.json"), tmp_path / "out")
    carried = json.loads(cs.open_checkpoint(tmp_path / "out").recipe or "")["arguments"]
    assert carried["align_experts"] is True
    before, after = load_file(folder / "model.safetensors"), experts_of(tmp_path / "out")
    for layer in range(2):
        for name in ("gate_up_proj", "down_proj"):
            key = EXPERTS.format(layer, name)
            assert torch.equal(after[key], before[key][:2].bfloat16()), key


def experts_of(folder: Path) -> Tensors:
    """Return the tensors of a model as transformers has them in memory."""
    return dict(transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="auto").state_dict())


@pytest.mark.long
def test_noisy_copies_of_an_expert_are_put_into_its_order(
    made: Callable[[str], tuple[Path, str]], tmp_path: Path
) -> None:
    folder, _ = made("stacked")
    tensors, wanted = load_file(folder / "model.safetensors"), load_file(folder / "model.safetensors")
    torch.manual_seed(5)
    for key in [one for one in tensors if ".experts." in one]:
        tensors[key] += tensors[key].std() * torch.randn_like(tensors[key]) / 4
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    errors = []
    for align in (True, False):
        plan = cs.resize(
            folder, set={"num_local_experts": 1, "num_experts_per_tok": 1}, merge_experts="0+1+2+3", align_experts=align
        )
        assert ("none of them is lost" in plan.notes[0]) is False
        cs.apply(plan, tmp_path / f"out{align}")
        after = experts_of(tmp_path / f"out{align}")
        key = EXPERTS.format(1, "down_proj")
        errors.append(float((after[key][0] - wanted[key][0]).norm() / wanted[key][0].norm()))
    assert errors[0] < 0.15 < 0.7 < errors[1]  # the mean of four halves the noise of a quarter


def test_the_command_aligns_experts(made: Callable[[str], tuple[Path, str]], tmp_path: Path, ckpt: Any) -> None:
    folder, _ = made("apart")
    done = ckpt(
        "resize", folder, "--set", "num_local_experts=2", "--merge-experts", "similar", "--align-experts", "-o",
        tmp_path / "out",
    )  # fmt: skip
    assert done.code == 0, done.err
    assert "the channels of 4 of 4 experts are first put into the order" in " ".join(done.err.split())


def test_what_cannot_be_aligned_is_an_error(source: Saved, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(cs.ConfigError, match="only for merge_experts"):
        cs.resize(source("mixtral"), set={"num_local_experts": 2}, align_experts=True)
    with pytest.raises(cs.ConfigError, match="another number of channels"):
        cs.resize(
            source("mixtral"), set={"num_local_experts": 2, "intermediate_size": 48}, merge_experts="similar",
            align_experts=True,
        )  # fmt: skip
    with monkeypatch.context() as limited:
        limited.setattr("ckptsurgeon.planning.resizing.merge_experts.MOST", 20)
        with pytest.raises(cs.PlanError, match="takes 22 operations, more than the limit of 20"):
            cs.resize(source("mixtral"), set={"num_local_experts": 2}, merge_experts="0+1,2+3", align_experts=True)
    stacked(source("mixtral"), tmp_path / "in")
    tensors = load_file(tmp_path / "in/model.safetensors")
    tensors[EXPERTS.format(1, "down_proj")][2, 0, 0] = torch.nan
    save_file(tensors, tmp_path / "in/model.safetensors", metadata={"format": "pt"})
    with pytest.raises(cs.PlanError, match="down_proj of .* has NaN or infinite values"):
        cs.resize(tmp_path / "in", set={"num_local_experts": 2}, merge_experts="0+1,2+3", align_experts=True)


@pytest.mark.long
def test_moments_of_what_is_not_merged_follow(made: Callable[[str], tuple[Path, str]], tmp_path: Path) -> None:
    folder, _ = made("stacked")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model(input_ids=torch.arange(5, 20)[None], labels=torch.arange(5, 20)[None]).loss.backward()
    optimizer.step()
    torch.save(optimizer.state_dict(), tmp_path / "state.pt")
    change: dict[str, Any] = {"set": {"num_local_experts": 2}, "merge_experts": "0+1,2+3", "align_experts": True}
    plan = cs.resize(folder, **change, optimizer=tmp_path / "state.pt")
    assert "means of several" in plan.notes[-1]
    cs.apply(plan, tmp_path / "state.pth")
    cs.apply(cs.resize(folder, **change), tmp_path / "out")
    after = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    later = torch.optim.AdamW(after.parameters(), lr=1e-3)
    later.load_state_dict(torch.load(tmp_path / "state.pth"))
    kept = [later.state[one]["exp_avg"].shape == one.shape for one in after.parameters() if one in later.state]
    assert len(kept) > 10
    assert all(kept)
