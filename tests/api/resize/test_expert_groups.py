"""Experts of a router with groups (DeepSeek-V3): equally many remain in each group."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import ckptsurgeon as cs

transformers = pytest.importorskip("transformers", minversion="5")
running = importlib.import_module("fixtures.resizing.running")

FIELD, FEWER = "n_routed_experts", {"n_routed_experts": 6}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Return the folder of a DeepSeek-V3 with two groups of experts, 0..3 and 4..7, of which each token uses one.

    The experts of the second group have larger weights.
    """
    running.save("deepseek_v3", tmp_path / "in")
    path = tmp_path / "in/model.safetensors"
    tensors = load_file(path)
    for key, value in tensors.items():
        if ".experts." in key and int(key.partition(".experts.")[2].partition(".")[0]) > 3:
            value.mul_(4)
        if key.endswith("e_score_correction_bias"):
            value.copy_(torch.arange(8.0))
    save_file(tensors, path, {"format": "pt"})
    return tmp_path / "in"


def kept(plan: cs.Plan, out: Path) -> list[list[int]]:
    """Return the experts of the source that each layer keeps, after rows of the router; their biases must follow."""
    before = load_file(Path(plan.sources[0].path) / "model.safetensors")
    cs.apply(plan, out)
    after, found = load_file(out / "model.safetensors"), []
    for key in sorted(key for key in after if key.endswith("mlp.gate.weight")):
        own = [next(at for at, row in enumerate(before[key]) if torch.equal(row, new)) for new in after[key]]
        bias = after[key.replace("weight", "e_score_correction_bias")]
        assert bias.tolist() == [float(at) for at in own]
        found.append(own)
    return found


@pytest.mark.long
def test_equally_many_experts_of_each_group_are_kept(source: Path, tmp_path: Path) -> None:
    plan = cs.resize(source, set=FEWER)
    assert (
        "those with the largest weights, equally many of each of the 2 groups of the router, are kept" in plan.notes[0]
    )
    found = kept(plan, tmp_path / "out")
    assert len(found) == 2
    assert all([at // 4 for at in experts] == [0, 0, 0, 1, 1, 1] for experts in found)


@pytest.mark.long
def test_a_list_of_experts_takes_equally_many_of_each_group(source: Path, tmp_path: Path) -> None:
    for listed in ("0..5", [0, 2, 4, 5, 6, 7]):
        with pytest.raises(
            cs.ConfigError, match="must keep the same number of experts of each group: .* 2 groups"
        ) as raised:
            cs.resize(source, set=FEWER, keep={FIELD: listed})
        assert raised.value.hint == "Each group has 4 experts that follow each other: keep 3 of them."
    assert kept(cs.resize(source, set=FEWER, keep={FIELD: "0,1,3,4,6,7"}), tmp_path / "out") == [[0, 1, 3, 4, 6, 7]] * 2


@pytest.mark.long
@pytest.mark.costly
@pytest.mark.parametrize(
    "fields",
    [{"n_group": 1}, {"topk_group": 2}, {"n_group": 3, "topk_group": 3}],
    ids=["no groups", "all groups", "others"],
)
def test_groups_without_effect_do_not_limit_what_is_kept(fields: dict[str, Any], source: Path, tmp_path: Path) -> None:
    plan = cs.resize(source, set={**FEWER, **fields})
    assert "groups of the router" not in plan.notes[0]
    assert all(experts[-4:] == [4, 5, 6, 7] for experts in kept(plan, tmp_path / "out"))


@pytest.mark.long
def test_more_groups_divide_the_old_ones(source: Path, tmp_path: Path) -> None:
    cs.apply(cs.resize(source, set={FIELD: 16}), tmp_path / "more")
    fields = {FIELD: 8, "n_group": 4}
    cs.resize(tmp_path / "more", set=fields, keep={FIELD: "0..3,8..11"})
    with pytest.raises(cs.ConfigError, match="divides the experts into 2 groups"):
        cs.resize(tmp_path / "more", set=fields, keep={FIELD: "0..7"})


def test_repeated_experts_stay_in_their_groups(source: Path, tmp_path: Path) -> None:
    plan = cs.resize(source, set={FIELD: 16, "num_experts_per_tok": 4})
    assert plan.notes[0].endswith("the outputs change")
    assert kept(plan, tmp_path / "out") == [[at // 2 for at in range(16)]] * 2


@pytest.mark.long
def test_listed_experts_are_merged_within_their_group(source: Path, tmp_path: Path) -> None:
    for crossing in ("0+4,1,2,3,5,6,7", "0,1,2+4,3,5,6+7"):
        number = crossing.count(",") + 1
        with pytest.raises(cs.ConfigError, match="divides the experts into 2 groups"):
            cs.resize(source, set={FIELD: number}, merge_experts=crossing)
    with pytest.raises(cs.ConfigError, match=r"4 becomes expert 2, which is in another group"):
        cs.resize(source, set={FIELD: 6}, merge_experts="0+1,2+3,4,5,6,7")
    cs.apply(cs.resize(source, set={FIELD: 6}, merge_experts="0+1,2,3,4,5,6+7"), tmp_path / "out")
    assert cs.verify(tmp_path / "out").ok


def test_the_second_name_of_the_number_of_groups_counts() -> None:
    from ckptsurgeon.api.model_folder.layers.experts import _unequal_groups

    fields = {"num_experts": 7, "num_expert_group": 2}
    assert ["2 (num_expert_group), into which 7 experts" in note for note in _unequal_groups(fields)] == [True]
    assert not list(_unequal_groups({**fields, "num_experts": 8}))
