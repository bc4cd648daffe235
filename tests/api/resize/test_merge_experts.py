"""Experts are merged in groups: which, with which weights, and that equal experts merge into the same network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import ckptsurgeon as cs
from ckptsurgeon.planning.resizing.axes import Axis
from ckptsurgeon.planning.resizing.merge_experts import merged, similar_groups

from .test_another_type import Saved
from .test_resize import outputs, source
from .test_statistics import made, with_experts

__all__ = ["source"]

ROUTER, EXPERTS = "model.layers.{}.mlp.gate.weight", "model.layers.{}.mlp.experts.{}_proj"
TWO: dict[str, Any] = {"set": {"num_local_experts": 2}}


def grouped_by_hand(rows: torch.Tensor, heads: list[int]) -> list[list[int]]:
    """Return the groups of the experts with these rows of the router, by the angles between the rows."""
    similar = torch.nn.functional.cosine_similarity(rows[:, None].double(), rows[None].double(), dim=-1)
    nearest = [heads[int(similar[expert, heads].argmax())] for expert in range(len(rows))]
    return [[expert for expert in range(len(rows)) if expert == head or (expert not in heads and nearest[expert] == head)]
            for head in heads]  # fmt: skip


@pytest.mark.costly
@pytest.mark.parametrize("heads", [[0, 1], [1, 3]])
def test_experts_join_the_one_with_the_most_similar_row(heads: list[int], source: Saved, tmp_path: Path) -> None:
    plan = cs.resize(source("mixtral"), **TWO, merge_experts="similar", keep={"num_local_experts": heads})
    assert "merged in groups, by similar rows of the router; their channels are not aligned first" in plan.notes[0]
    assert plan.notes[0].endswith("the outputs change")
    cs.apply(plan, tmp_path / "out")
    assert not cs.verify(tmp_path / "out").failed
    before, after = load_file(source("mixtral") / "model.safetensors"), load_file(tmp_path / "out/model.safetensors")
    for layer in range(2):
        rows = router_in(before, layer)
        groups = grouped_by_hand(rows, heads)
        assert sorted(expert for group in groups for expert in group) == [0, 1, 2, 3]
        torch.testing.assert_close(router_in(after, layer), torch.stack([rows[group].mean(0) for group in groups]))
        for name in ("gate_up", "down"):
            old, new = of_experts(before, layer, name), of_experts(after, layer, name)
            torch.testing.assert_close(new, torch.stack([old[group].mean(0) for group in groups]))


def router_in(tensors: dict[str, torch.Tensor], layer: int) -> torch.Tensor:
    return next(one for key, one in tensors.items() if f"layers.{layer}." in key and key.endswith("gate.weight"))


def of_experts(tensors: dict[str, torch.Tensor], layer: int, name: str) -> torch.Tensor:
    """Return the weights of all experts of a layer, which are stored as one tensor or as one for each expert."""
    if EXPERTS.format(layer, name) in tensors:
        return tensors[EXPERTS.format(layer, name)]
    path = next(key for key in tensors if f"layers.{layer}." in key and ".experts.0." in key).partition(".experts.")[0]
    number = 1 + max(
        int(key.split(".experts.")[1].split(".")[0]) for key in tensors if key.startswith(f"{path}.experts.")
    )
    parts = ("w1", "w3") if name == "gate_up" else ("w2",)
    return torch.stack(
        [torch.cat([tensors[f"{path}.experts.{one}.{part}.weight"] for part in parts]) for one in range(number)]
    )


def test_experts_count_as_often_as_they_are_used(tmp_path: Path) -> None:
    with_experts("qwen3_moe", tmp_path)
    values = made(tmp_path)
    plan = cs.resize(
        tmp_path / "llama", set={"num_experts": 3}, merge_experts="0+3,1,2", by=tmp_path / "stats.safetensors"
    )
    assert "those in the list, each weighted by its frequency of use in stats.safetensors" in plan.notes[0]
    cs.apply(plan, tmp_path / "out")
    assert not cs.verify(tmp_path / "out").failed
    before, after = load_file(tmp_path / "llama/model.safetensors"), load_file(tmp_path / "out/model.safetensors")
    shares: list[float] = []
    for layer in range(2):
        load = values[f"model.layers.{layer}.mlp.gate.load"].double()
        share = load[[0, 3]] / load[[0, 3]].sum()
        shares.append(float(share[0]))
        rows = before[ROUTER.format(layer)].double()
        torch.testing.assert_close(after[ROUTER.format(layer)][0].double(), share @ rows[[0, 3]], rtol=1e-6, atol=1e-7)
        assert torch.equal(after[ROUTER.format(layer)][1:], before[ROUTER.format(layer)][1:3])
    assert any(0.01 < share < 0.99 and share != 0.5 for share in shares)


def test_with_statistics_the_experts_that_contribute_most_are_the_heads(tmp_path: Path) -> None:
    with_experts("qwen3_moe", tmp_path)
    values = made(tmp_path)
    more: dict[str, Any] = {"set": {"num_experts": 2}, "by": tmp_path / "stats.safetensors"}
    rows = cs.resize(tmp_path / "llama", **more, merge_experts="similar").sources[0].operations
    found = [row for row in rows if "combine" in row and row["combine"].endswith("gate.weight")]
    for layer in range(2):
        heads = values[f"model.layers.{layer}.mlp.experts.saliency"].topk(2).indices.sort().values.tolist()
        router = load_file(tmp_path / "llama/model.safetensors")[ROUTER.format(layer)]
        groups = grouped_by_hand(router, heads)
        own = next(row for row in found if f"layers.{layer}." in row["combine"])
        assert own["groups"] == ",".join("+".join(map(str, group)) for group in groups)
        assert own["weights"] == values[f"model.layers.{layer}.mlp.gate.load"].tolist()


@pytest.mark.long
def test_equal_experts_merge_into_the_same_network(source: Saved, tmp_path: Path) -> None:
    four = {"num_local_experts": 4, "num_experts_per_tok": 2}
    cs.apply(cs.resize(source("llama"), set=four, model_type="mixtral"), tmp_path / "four")
    cs.apply(cs.resize(tmp_path / "four", **TWO, merge_experts="similar"), tmp_path / "two")
    before, after = outputs(source("llama"), "llama"), outputs(tmp_path / "two", "mixtral")
    assert (before - after).abs().max() < 1e-5 * before.abs().max()


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({**TWO, "merge_experts": "alike"}, "neither similar nor a list of groups"),
        ({**TWO, "merge_experts": "0+1,1+2"}, "neither similar nor a list of groups"),
        ({**TWO, "merge_experts": "0+1,2"}, "expert 3 is not in any group"),
        ({**TWO, "merge_experts": "0+1,2+3+4"}, "there is no expert 4"),
        ({**TWO, "merge_experts": "0,1,2+3"}, "lists 3 groups, but num_local_experts is 2"),
        ({**TWO, "merge_experts": "0+1,2+3", "keep": {"num_local_experts": [0, 1]}}, "cannot be used together"),
        ({**TWO, "merge_experts": "similar", "keep": {"num_local_experts": [0, 1, 2]}}, "lists 3 indices"),
        (
            {**TWO, "merge_experts": "similar", "keep": {"num_local_experts": [0, 9]}},
            "lists 2 indices; it must list 2 different indices below 4",
        ),
        ({"set": {"num_local_experts": 8}, "merge_experts": "similar"}, "number of experts does not become smaller"),
        ({"set": {"hidden_size": 96}, "merge_experts": "similar"}, "number of experts does not become smaller"),
        (
            {"model_type": "llama", "expert": 0, "merge_experts": "similar"},
            "--as changes only the model type|model_type",
        ),
    ],
)
def test_what_cannot_be_is_an_error(more: dict[str, Any], why: str, source: Saved) -> None:
    with pytest.raises(cs.ConfigError, match=why):
        cs.resize(source("mixtral"), **more)


def test_routers_that_are_not_numbers_are_an_error(source: Saved, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    tensors = load_file(source("mixtral") / "model.safetensors")
    router = next(key for key in tensors if key.endswith("gate.weight"))
    tensors[router][1, 3] = torch.nan
    folder = tmp_path / "in"
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_bytes((source("mixtral") / "config.json").read_bytes())
    with pytest.raises(cs.PlanError, match="has NaN or infinite values"):
        cs.resize(folder, **TWO, merge_experts="similar", keep={"num_local_experts": [0, 1]})


def test_parts_of_which_the_router_chooses_some_keep_equally_many(source: Saved) -> None:
    more: dict[str, Any] = {"merge_experts": "similar"}
    plan = cs.resize(source("deepseek_v3"), set={"n_routed_experts": 4}, **more)
    rows = [row for row in plan.sources[0].operations if "combine" in row]
    assert len(rows) > 2
    for row in rows:
        parts = [{int(one) // 4 for one in group.split("+")} for group in row["groups"].split(",")]
        assert sorted(map(tuple, parts)) == [(0,), (0,), (1,), (1,)]
    for fields, kept in (({"n_routed_experts": 5}, {}), ({"n_routed_experts": 4}, {"n_routed_experts": [0, 1, 2, 7]})):
        with pytest.raises(cs.ConfigError, match="divides the experts into 2 groups"):
            cs.resize(source("deepseek_v3"), set=fields, keep=kept, **more)


def test_groups_of_equal_rows_and_groups_that_are_never_used() -> None:
    same = np.ones((4, 4)).tolist()
    assert similar_groups(same, [1, 2]) == [[0, 1, 3], [2]]  # of equal ones, the first
    assert similar_groups(same, [1, 2], within=2) == [[0, 1], [2, 3]]
    axis = Axis("m.w", 0, 4, 2, "out", "experts")
    change = merged("experts", [[axis]], [[[0, 1, 3], [2]]], [[0.0, 0.0, 5.0, 0.0]], (4, 2), "by a test")
    assert change.rows == [{"combine": "m.w", "dim": 0, "groups": "0+1+3,2", "weights": [1.0, 1.0, 5.0, 1.0]}]
    with pytest.raises(cs.PlanError, match="which is not one element for each expert"):
        merged("experts", [[Axis("m.w", 0, 8, 4, "out", "experts")]], [[[0, 1, 3], [2]]], [[]], (4, 2), "by a test")


def test_the_groups_are_said(source: Saved) -> None:
    plan = cs.resize(source("mixtral"), **TWO, merge_experts="similar", keep={"num_local_experts": [1, 3]})
    before = load_file(source("mixtral") / "model.safetensors")
    for layer in range(2):
        groups = [sorted(group) for group in grouped_by_hand(router_in(before, layer), [1, 3])]
        said = ",".join("+".join(map(str, group)) for group in groups)
        assert f"{said} in model.layers.{layer}" in plan.notes[0] or f"{said} in each layer" in plan.notes[0]


def test_the_kept_experts_are_said(source: Saved, tmp_path: Path) -> None:
    plan = cs.resize(source("mixtral"), **TWO)
    cs.apply(plan, tmp_path / "out")
    before, after = load_file(source("mixtral") / "model.safetensors"), load_file(tmp_path / "out/model.safetensors")
    for layer in range(2):
        old, new = router_in(before, layer), router_in(after, layer)
        kept = [at for at, row in enumerate(old) if any(torch.equal(row, one) for one in new)]
        said = f"{kept[0]}..{kept[1]}" if kept[1] == kept[0] + 1 else ",".join(map(str, kept))
        assert f"{said} in model.layers.{layer}" in plan.notes[0] or f"{said} in each layer" in plan.notes[0]


def test_a_field_has_the_name_that_the_user_wrote(source: Saved) -> None:
    [note] = [one for one in cs.resize(source("mixtral"), set={"num_experts": 8}).notes if "repeated" in one]
    assert note.startswith("num_experts 4 to 8: ")
