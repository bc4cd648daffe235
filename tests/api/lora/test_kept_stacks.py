"""Adapters of stacked experts (PEFT's target_parameters) with other ranks, and joined: PEFT loads them as they are."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import ckptsurgeon as cs
from ckptsurgeon.engine.compute import one_block
from ckptsurgeon.errors import FormatError, PlanError

from .test_stacked_experts import DOWN, GATE_UP, mixtral, qwen, tensors, trained
from .test_stacks_of_base import gpt_oss

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::RuntimeWarning")  # of PEFT
BOTH = {"target_parameters": [GATE_UP, DOWN]}
OTHER_RANKS = {"r": 5, **BOTH, "rank_pattern": {"down_proj": 3}, "alpha_pattern": {"layers.1.mlp.experts.down_proj": 4}}


def adapter(make: Callable[[], Any], name: str, seed: int = 0, **settings: Any) -> None:
    """Save ``base``, and an adapter of it under ``name``; all bases of one ``make`` are equal."""
    torch.manual_seed(0)
    trained(make(), **settings)
    state = load_file("adapter/adapter_model.safetensors")
    random = torch.Generator().manual_seed(seed)
    noise = {key: torch.randn(value.shape, generator=random) * 0.3 for key, value in state.items()}
    save_file(noise, "adapter/adapter_model.safetensors", {"format": "pt"})
    shutil.move("adapter", name)


def config_of(folder: str) -> dict[str, Any]:
    return json.loads(Path(folder, "adapter_config.json").read_text())


def changes(name: str) -> dict[str, torch.Tensor]:
    """Return what PEFT adds to each weight of ``base``, in which it merges the adapter ``name``."""
    import peft
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained("base").double()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    after = peft.PeftModel.from_pretrained(model, name).merge_and_unload().state_dict()  # warns of missing factors
    found = {key: after[key] - value for key, value in before.items()}
    return {key: value for key, value in found.items() if value.any()}


def best(matrices: torch.Tensor, rank: int) -> torch.Tensor:
    left, values, right = torch.linalg.svd(matrices, full_matrices=False)
    return (left[..., :rank] * values[..., None, :rank]) @ right[..., :rank, :]


def assert_same(found: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for key, value in wanted.items():
        torch.testing.assert_close(found[key], value, rtol=1e-5, atol=1e-5)


@pytest.mark.each_value
@pytest.mark.costly
@pytest.mark.parametrize("make", [gpt_oss, qwen])
@pytest.mark.parametrize("settings", [OTHER_RANKS, {"r": 4, "target_parameters": [DOWN], "target_modules": []}])
def test_each_expert_gets_the_nearest_product(make: Callable[[], Any], settings: dict[str, Any]) -> None:
    adapter(make, "one", **settings)
    before = changes("one")
    receipt = cs.apply(cs.lora_resize("one", rank=2), "small/")
    assert cs.verify("small/").ok
    assert_same(changes("small"), {key: best(value, 2) for key, value in before.items()})
    assert config_of("small")["target_parameters"] == config_of("one")["target_parameters"]
    assert config_of("small")["r"] == 2
    stacks = [value for key, value in before.items() if ".experts." in key]
    lost = [float((value - best(value, 2)).norm() / value.norm()) for value in stacks]
    found = [fit.error for fit in receipt.fits if ".experts" in fit.key]
    assert sorted(found) == pytest.approx(sorted(lost), rel=1e-4)


@pytest.mark.each_value
@pytest.mark.costly
@pytest.mark.parametrize("make", [gpt_oss, qwen])
@pytest.mark.parametrize(
    "several",
    [
        [OTHER_RANKS, BOTH],
        [{"target_parameters": [DOWN]}, {**OTHER_RANKS, "target_modules": ["v_proj"]}],
        [{"target_parameters": [DOWN]}, {"r": 3, "target_parameters": [GATE_UP]}],
        [{"target_parameters": ["layers.1.mlp.experts.gate_up_proj"]}, {"r": 3, "target_parameters": [DOWN]}],
        [BOTH, {"r": 3}],
    ],
    ids=["same", "one in both", "different", "of a layer", "layers"],
)
def test_a_sum_is_that_of_the_changes(make: Callable[[], Any], several: list[dict[str, Any]]) -> None:
    for seed, settings in enumerate(several):
        adapter(make, str(seed), seed, **settings)
    first, second = map(changes, "01")
    cs.apply(cs.lora_concat(["0", "1"], weights=[0.7, -0.3]), "joined/")
    assert cs.verify("joined/").ok
    wanted = {
        key: 0.7 * first.get(key, torch.zeros(())) - 0.3 * second.get(key, torch.zeros(()))
        for key in {**first, **second}
    }
    assert_same(changes("joined"), wanted)
    cs.apply(cs.lora_merge("base", ["joined"]), "one/")
    cs.apply(cs.lora_merge("base", ["0", "1"], weights=[0.7, -0.3]), "two/")
    assert_same(tensors("one"), tensors("two"))


def test_each_expert_keeps_its_share_of_the_energy() -> None:
    adapter(gpt_oss, "one", r=4, target_parameters=[DOWN], target_modules=[])
    state = load_file("one/adapter_model.safetensors")
    for key in state:
        if "layers.0" in key and "lora_A" in key:
            state[key][4:8] *= torch.tensor([1, 0.1, 0.01, 0.001])[:, None]  # the second of three experts
            state[key][:4] *= torch.tensor([1, 0.6, 0.4, 0.001])[:, None]
            state[key][8:] *= torch.tensor([1, 0.01, 0.01, 0.001])[:, None]
    save_file(state, "one/adapter_model.safetensors", {"format": "pt"})
    before = changes("one")
    cs.apply(cs.lora_resize("one", energy=0.9), "small/")
    after = changes("small")
    rank = {key: int(torch.linalg.matrix_rank(value.float()).max()) for key, value in after.items()}
    assert sorted(rank.values()) == [2, 4]
    for key, value in before.items():
        squares = torch.linalg.svdvals(value) ** 2
        kept = squares[:, : rank[key]].sum(1) / squares.sum(1)
        less = squares[:, : rank[key] - 1].sum(1) / squares.sum(1)
        assert kept.min() >= 0.9 > less.min()
    assert_same(after, {key: best(value, rank[key]) for key, value in before.items()})


@pytest.mark.costly
@pytest.mark.parametrize("make", [mixtral, qwen])
def test_a_router_gets_its_rank_by_the_name_of_its_weight(make: Callable[[], Any]) -> None:
    """PEFT adapts it as a parameter, and compares patterns of ranks with ``gate.weight``."""
    adapter(make, "one", r=2, target_modules="all-linear")
    adapter(make, "two", seed=1, r=3, target_parameters=[DOWN, "mlp.gate.weight"], target_modules=[])
    first, second = changes("one"), changes("two")
    cs.apply(cs.lora_concat(["one", "two"]), "joined/")
    wanted = {key: value + second.get(key, 0) for key, value in first.items()}
    assert_same(changes("joined"), wanted)
    assert any(name.endswith("gate\\.weight") for name in config_of("joined")["rank_pattern"])
    plan = cs.lora_merge("base", ["joined"])
    assert not any("match no module" in note for note in plan.notes)
    cs.apply(plan, "out/")
    cs.apply(cs.lora_merge("base", ["one", "two"]), "sum/")
    assert_same(tensors("out"), tensors("sum"))
    cs.apply(cs.lora_resize("joined", rank=4), "small/")
    assert_same(changes("small"), {key: best(value, 4) for key, value in wanted.items()})


def test_a_stack_that_is_left_out_leaves_no_wrapper() -> None:
    """PEFT nests a second wrapper of the same module around the first, which shows in the keys."""
    adapter(gpt_oss, "one", r=2, **BOTH)
    adapter(gpt_oss, "two", seed=1, r=3, target_parameters=[GATE_UP])
    exclude = ["**.layers.0.**.down_proj"]
    cs.apply(cs.lora_concat(["one", "two"], exclude=exclude), "joined/")
    cs.apply(cs.lora_convert("one", to="peft", exclude=exclude), "less/")
    first, second = changes("one"), changes("two")
    del first["model.layers.0.mlp.experts.down_proj"]
    assert_same(changes("less"), first)
    assert_same(changes("joined"), {key: value + second.get(key, 0) for key, value in first.items()})
    cs.apply(cs.lora_merge("base", ["less"]), "out/")


def test_only_peft_can_store_the_stacks_of_gpt_oss() -> None:
    adapter(gpt_oss, "one", **OTHER_RANKS)
    cs.apply(cs.lora_convert("one", to="peft", dtype="float64"), "wide/")
    assert cs.verify("wide/").ok
    assert {value.dtype for value in tensors("wide").values()} == {torch.float64}
    assert_same(changes("wide"), changes("one"))
    with pytest.raises(
        PlanError, match=r"4 stacks of experts \(target_parameters\), and kohya has no adapters"
    ) as error:
        cs.lora_convert("one", to="kohya")
    assert "--exclude" in error.value.hint
    with pytest.raises(PlanError, match="KnOTS cannot merge stacks of experts"):
        cs.lora_concat(["one", "one"], method="knots")


def test_stacks_and_single_experts_are_joined_as_single_experts() -> None:
    adapter(qwen, "one", **BOTH)
    cs.apply(cs.lora_convert("one", to="peft"), "single/")
    cs.apply(cs.lora_concat(["one", "single"]), "joined/")
    assert "target_parameters" not in config_of("joined")
    cs.apply(cs.lora_merge("base", ["joined"]), "out/")
    cs.apply(cs.lora_merge("base", ["one"], weights=[2]), "twice/")
    assert_same(tensors("out"), tensors("twice"))


def test_a_rank_that_does_not_fit_the_stacks_is_an_error() -> None:
    for name in ("one", "other"):
        adapter(gpt_oss, name, r=2, target_modules=[], **BOTH)
    said = config_of("other")
    for fields, error, what in (
        ({"r": 4}, FormatError, r"do not fit stacked experts, for the rank 4: .* \(6, 64\)"),
        ({"rank_pattern": {"down_proj": 1}}, FormatError, "which give different numbers of experts"),
        ({"r": 1}, PlanError, "gate_up_proj has 3 experts in one, 6 in other"),
    ):
        Path("other/adapter_config.json").write_text(json.dumps({**said, **fields}))
        with pytest.raises(error, match=what):
            cs.lora_concat(["one", "other"])
        if error is FormatError:
            with pytest.raises(error, match=what):
                cs.lora_resize("other", rank=1)


def test_the_parts_of_experts_are_joined_in_blocks_of_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    adapter(gpt_oss, "one", r=2, **BOTH)
    adapter(gpt_oss, "two", seed=1, r=3, **BOTH)
    plan = cs.lora_concat(["one", "two"])
    cs.apply(plan, "whole/")
    monkeypatch.setattr(one_block, "CACHED", 100)  # parts of a row
    cs.apply(cs.lora_concat(["one", "two"]), "parts/")
    whole, parts = tensors("whole"), tensors("parts")
    assert all(torch.equal(parts[key], value) for key, value in whole.items())
    step = next(step for step in plan.steps if step.policy)
    for wrong in ("experts 4", "experts 1000000000", "experts 3x"):
        edited = replace(plan, steps=tuple(replace(one, policy=wrong) if one == step else one for one in plan.steps))
        with pytest.raises(PlanError):
            cs.apply(edited, "wrong/")
