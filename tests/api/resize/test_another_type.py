"""A dense network becomes one with experts, opened by transformers and run beside its source; and the reverse."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import ckptsurgeon as cs
from ckptsurgeon.api.resize.another_type import ALIKE
from fixtures.resizing.cases import CHANGED, EQUAL, TYPES, Case
from fixtures.resizing.figures import FIGURES, name_of
from fixtures.resizing.networks import NETWORKS

from ...helpers.depth import FULL
from .test_resize import compare, outputs, source, transformers

__all__ = ["source"]

PAIRS = tuple(TYPES) if FULL else (("qwen2", "qwen2_moe"), ("llama", "mixtral"), ("llama", "qwen3_moe"))
ALL = [(*pair, name, TYPES[pair][name]) for pair in PAIRS for name in TYPES[pair]]
MOE = {"num_local_experts": 4}

Saved = Callable[[str], Path]


def test_every_pair_that_is_said_to_stay_equal_is_compared() -> None:
    assert {pair for pair, cases in TYPES.items() if any(one.expected == EQUAL for one in cases.values())} == ALIKE


@pytest.mark.costly
@pytest.mark.parametrize(("kind", "other", "name", "case"), ALL, ids=[f"{a}-{b}-{name}" for a, b, name, _ in ALL])
def test_a_network_of_another_type_loads_and_computes_as_it_is_said(
    kind: str, other: str, name: str, case: Case, source: Saved, tmp_path: Path
) -> None:
    folder = source(kind)
    if case.expected not in (EQUAL, CHANGED):
        with pytest.raises((cs.PlanError, cs.ConfigError), match=case.expected):
            cs.resize(folder, set=case.set, model_type=other, **case.more)
        return
    plan = cs.resize(folder, set=case.set, model_type=other, **case.more)
    said = "the outputs stay equal" if case.expected == EQUAL else "the outputs change"
    assert plan.notes[0].endswith(said), plan.notes
    cs.apply(plan, tmp_path / "out")
    assert not cs.verify(tmp_path / "out").failed
    assert json.loads((tmp_path / "out/config.json").read_text())["architectures"] == [NETWORKS[other][0]]
    figure = FIGURES.get(name_of(kind, other), {}).get(name)
    compare(outputs(folder, kind), outputs(tmp_path / "out", other), case, figure)


@pytest.mark.skipif(FULL, reason="a case of the test above")
def test_a_feed_forward_layer_that_becomes_halves_computes_the_same(source: Saved, tmp_path: Path) -> None:
    case = TYPES["qwen2", "qwen2_moe"]["halves"]
    test_a_network_of_another_type_loads_and_computes_as_it_is_said(
        "qwen2", "qwen2_moe", "halves", case, source, tmp_path
    )


@pytest.mark.long
def test_experts_are_copies_and_routers_are_drawn_with_the_seed(source: Saved, tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        cs.apply(cs.resize(source("llama"), set=MOE, model_type="mixtral", seed=seed), tmp_path / name)
    before = load_file(source("llama") / "model.safetensors")
    made = [load_file(tmp_path / name / "model.safetensors") for name in ("a", "b", "c")]
    routers = [one["model.layers.1.mlp.gate.weight"] for one in made]
    assert torch.equal(routers[0], routers[1])
    assert not torch.equal(routers[0], routers[2])
    assert routers[0].std() > 0.001
    both = torch.cat([before[f"model.layers.1.mlp.{name}_proj.weight"] for name in ("gate", "up")])
    assert torch.equal(made[0]["model.layers.1.mlp.experts.gate_up_proj"], both.expand(4, -1, -1))


HALVES = {"num_local_experts": 8, "num_experts_per_tok": 4, "intermediate_size": 48}


@pytest.mark.long
def test_parts_of_the_feed_forward_layer_and_the_rows_of_their_router(source: Saved, tmp_path: Path) -> None:
    plan = cs.resize(source("llama"), set=HALVES, model_type="mixtral", seed=5)
    assert "8 experts, 4 copies of each of 2 parts of the feed-forward layer (arXiv 2410.07524)" in plan.notes[0]
    cs.apply(plan, tmp_path / "moe")
    before, after = (load_file(one / "model.safetensors") for one in (source("llama"), tmp_path / "moe"))
    for layer in range(2):
        own = f"model.layers.{layer}.mlp"
        gate, up, down = (before[f"{own}.{name}_proj.weight"] for name in ("gate", "up", "down"))
        for expert in range(8):
            part = slice(48 * (expert % 2), 48 * (expert % 2) + 48)
            assert torch.equal(after[f"{own}.experts.gate_up_proj"][expert], torch.cat([gate[part], up[part]]))
            assert torch.equal(after[f"{own}.experts.down_proj"][expert], 2 * down[:, part])
        router = after[f"{own}.gate.weight"]
        assert torch.equal(router[::2], router[1::2])
        assert len(router.unique(dim=0)) == 4
        assert router.std() > 0.001
    (tmp_path / "plan.json").write_text(json.dumps(plan.to_json()))
    cs.apply(cs.load_plan(tmp_path / "plan.json"), tmp_path / "again")
    assert cs.diff(tmp_path / "moe", tmp_path / "again", values=True).same
    assert cs.verify(tmp_path / "again", plan=tmp_path / "plan.json").ok


def test_a_plan_whose_rows_cannot_be_repeated_is_an_error(source: Saved, tmp_path: Path) -> None:
    plan = cs.resize(source("llama"), set=HALVES, model_type="mixtral").to_json()
    for times in ("3", "0"):
        text = json.dumps(plan).replace('"repeat:2"', f'"repeat:{times}"')
        assert text != json.dumps(plan)
        (tmp_path / "plan.json").write_text(text)
        with pytest.raises(cs.PlanError, match=f"cannot be repeated {times} times"):
            cs.apply(cs.load_plan(tmp_path / "plan.json"), tmp_path / "out")


@pytest.mark.long
def test_the_expert_that_is_asked_for_becomes_the_feed_forward_layer(source: Saved, tmp_path: Path) -> None:
    """All experts of layer 0 but number 2 are broken, and what is made computes as number 2 does."""
    cs.apply(cs.resize(source("llama"), set=MOE, model_type="mixtral"), tmp_path / "moe")
    weights = load_file(tmp_path / "moe/model.safetensors")
    for key in ("model.layers.0.mlp.experts.gate_up_proj", "model.layers.0.mlp.experts.down_proj"):
        weights[key] = weights[key].clone()
        weights[key][[0, 1, 3]] = 1.0
    save_file(weights, tmp_path / "moe/model.safetensors", {"format": "pt"})
    cs.apply(cs.resize(tmp_path / "moe", model_type="llama", expert=2), tmp_path / "dense")
    before = load_file(source("llama") / "model.safetensors")
    after = load_file(tmp_path / "dense/model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert cs.resize(tmp_path / "moe", model_type="llama", expert=0).arguments["expert"] == 0  # is in the recipe, too


@pytest.mark.long
def test_the_hint_on_an_expert_of_another_size_names_its_size(source: Saved, tmp_path: Path) -> None:
    """A dense layer twice as large as an expert: no size of the experts, which are there already, can help."""
    cs.apply(cs.resize(source("llama"), set=MOE, model_type="mixtral"), tmp_path / "moe")
    for size in (192, 48):
        with pytest.raises(cs.PlanError, match="the sizes do not fit") as caught:
            cs.resize(tmp_path / "moe", model_type="llama", expert=2, set={"intermediate_size": size})
        assert caught.value.hint == "Give the feed-forward layer the size of an expert, 96."
    cs.resize(tmp_path / "moe", model_type="llama", expert=2, set={"intermediate_size": 96})


def test_fields_are_carried_over_and_others_are_said_to_be_left_out(source: Saved, tmp_path: Path) -> None:
    plan = cs.resize(source("llama"), set=MOE, model_type="mixtral")
    assert any("left out of config.json: attention_bias, mlp_bias" in note for note in plan.notes), plan.notes
    cs.apply(plan, tmp_path / "moe")
    old, new = (json.loads((one / "config.json").read_text()) for one in (source("llama"), tmp_path / "moe"))
    assert new["rope_parameters"] == old["rope_parameters"]  # whose default is another in Mixtral
    assert new["rms_norm_eps"] == old["rms_norm_eps"]
    assert (new["model_type"], new["num_local_experts"], "mlp_bias" in new) == ("mixtral", 4, False)


def test_an_unusual_field_that_is_left_out_is_no_promise(tmp_path: Path) -> None:
    """Qwen3 has windows in some layers; Qwen3-MoE does not have ``layer_types``, so its outputs differ."""
    folder = tmp_path / "qwen3"
    name, fields = NETWORKS["qwen3"]
    config = transformers.CONFIG_MAPPING["qwen3"](
        **{**fields, "use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}
    )
    getattr(transformers, name)(config).save_pretrained(folder)
    plan = cs.resize(folder, set={"num_experts": 4, "num_experts_per_tok": 2}, model_type="qwen3_moe")
    assert plan.notes[0].endswith("the outputs may change (--prove compares them)")
    assert any("unusual values: layer_types" in note for note in plan.notes)


@pytest.mark.parametrize(
    ("kind", "asked", "error"),
    [
        ("llama", {"model_type": "mixtral"}, "has experts, but their number is not given"),
        (
            "llama",
            {"model_type": "mixtral", "set": {"num_local_experts": 0}},
            'num_local_experts=0"? is not a whole number',
        ),
        (
            "llama",
            {"model_type": "mixtral", "set": {"num_local_experts": 1}},
            "each token would use 2 of 1 expert .*Set a larger number of experts, or let each token use fewer",
        ),
        (
            "llama",
            {"model_type": "mixtral", "set": {**MOE, "num_experts_per_tok": 0}},
            "each token would use 0 of .*Let each token use at least one: .*num_experts_per_tok=2",
        ),
        ("llama", {"model_type": "llama", "set": MOE}, "has this type already"),
        ("llama", {"model_type": "mixtrall", "set": MOE}, "no model_type 'mixtrall'"),
        ("llama", {"model_type": "qwen2"}, "both have no experts"),
        ("llama", {"model_type": "mixtral", "set": {**MOE, "num_exprts": 8}}, "no field 'num_exprts'"),
        ("llama", {"model_type": "mixtral", "set": {**MOE, "intermediate_size": 40}}, r"is \(64, 40\), but"),
        ("llama", {"model_type": "mixtral", "set": {**MOE, "hidden_size": 128}}, "hidden_size changes other layers"),
        ("llama", {"model_type": "mixtral", "set": MOE, "layers": "first"}, "changes only the model type"),
        ("llama", {"model_type": "mixtral", "set": MOE, "expert": 1}, "without"),
        ("llama", {"model_type": "mixtral", "set": MOE, "pad_to": 64}, "not the vocabulary: pad_to has no effect"),
        ("llama", {"model_type": "mixtral", "set": MOE, "new_tokens": "mean"}, "new_tokens has no effect"),
        ("llama", {"model_type": "mixtral", "set": MOE, "token_map": ["a=b"]}, "token_map has no effect"),
        ("llama", {"model_type": "mixtral", "set": MOE, "keep_special": False}, "--no-keep-special has no effect"),
        ("llama", {"model_type": "mixtral", "set": MOE, "donor": "x"}, "donor has no effect"),
        ("llama", {"model_type": "mixtral", "set": MOE, "omp_k": 8}, "omp_k has no effect"),
        (
            "llama",
            {"expert": 1, "set": {"hidden_size": 128}},
            "it chooses the expert that becomes the feed-forward layer",
        ),
        ("mixtral", {"model_type": "llama"}, "llama has no experts"),
    ],
)
def test_what_is_asked_wrongly_is_an_error(kind: str, asked: dict[str, Any], error: str, source: Saved) -> None:
    with pytest.raises((cs.ConfigError, cs.PlanError), match=error):
        cs.resize(source(kind), **asked)
