"""Recipes of mergekit: what ``fixtures/golden/mergekit/yaml`` records of them, and every rule of how they are read."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

import ckptsurgeon as cs
from ckptsurgeon.engine import apply_settings
from ckptsurgeon.engine.compute import aligning as filling
from ckptsurgeon.planning.mergekit.tokenizer import TEMPLATES
from fixtures.mergekit_cases import GOLDEN

Run = Callable[..., Any]

RECIPES = sorted(path.parent.name for path in (GOLDEN / "yaml").glob("*/recipe.yml"))
COPIED = {"block_expansion", "frankenmerge"}
DRAWN = {"dare_ties", "della"}
BY_ROWS = {"padded_base", "padded_union", "task_tokens", "token_rows", "union_tokenizer"}
THINNED = {"ties": 0.5, "breadcrumbs_ties": 0.9}
"""Of equal magnitudes mergekit keeps those that torch's unstable sort puts first."""
COMPUTED_IN_BFLOAT16 = {"model_stock"}
"""Where mergekit's dtype is what it computes in; ours is float32, rounded once."""


def golden(name: str) -> tuple[str, dict[str, torch.Tensor], dict[str, Any]]:
    folder = GOLDEN / "yaml" / name
    wanted = load_file(folder / "expected.safetensors")
    return str(folder / "recipe.yml"), wanted, json.loads((folder / "expected_config.json").read_text())


@pytest.fixture
def models(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Stand where the recorded models are; outputs go to the test's own folder."""
    monkeypatch.chdir(GOLDEN / "models")
    return tmp_path


def test_seven_published_kinds_of_recipes_and_more_are_recorded() -> None:
    assert len(RECIPES) >= 13


@pytest.mark.long
@pytest.mark.costly
@pytest.mark.parametrize("name", sorted({*RECIPES} - BY_ROWS - DRAWN))
def test_tensors_are_mergekits(name: str, models: Path) -> None:
    """In float32, ours round to mergekit's."""
    recipe, wanted, _ = golden(name)
    cs.apply(cs.merge(recipe, dtype="float32"), models / "out.safetensors")
    assert cs.verify(models / "out.safetensors").ok
    found = load_file(models / "out.safetensors")
    assert found.keys() == wanted.keys()
    for key, expected in wanted.items():
        made, exact = found[key].double(), expected.double()
        if name in COPIED:
            assert torch.equal(made, exact), key
        elif name in COMPUTED_IN_BFLOAT16:
            assert (made - exact).norm() <= 0.03 * exact.norm(), key
        else:
            rounding = torch.finfo(expected.dtype).eps / 2 * exact.abs() if expected.dtype != torch.float32 else 0.0
            apart = (made - exact).abs() > rounding + 1e-6 * exact.abs().max()
            assert not (apart & ~of_equal_magnitude(name, key)).any(), key


def of_equal_magnitude(name: str, key: str) -> torch.Tensor:
    """Where a model's change is as large as another element's: which of them is kept nobody says."""
    base, *tuned = (load_file(f"{model}/model.safetensors")[key].double() for model in ("base", "a", "b"))
    found = torch.zeros(base.shape, dtype=torch.bool)
    for one in tuned if name in THINNED else ():
        _, place, number = (one - base).abs().unique(return_inverse=True, return_counts=True)
        found |= number[place] > 1
    return found


@pytest.mark.costly
@pytest.mark.parametrize("name", sorted(DRAWN))
def test_as_many_changes_are_kept_as_mergekit_keeps(name: str, models: Path) -> None:
    recipe, wanted, _ = golden(name)
    cs.apply(cs.merge(recipe), models / "out.safetensors")
    found, base = load_file(models / "out.safetensors"), load_file("base/model.safetensors")
    kept = [
        torch.cat([(state[key] != base[key]).reshape(-1) for key in wanted]).float().mean() for state in (found, wanted)
    ]
    assert found.keys() == wanted.keys()
    assert abs(kept[0] - kept[1]) < 0.03
    assert 0.5 < kept[0] < 0.95


@pytest.mark.costly
@pytest.mark.parametrize("name", sorted({*RECIPES} - BY_ROWS))
def test_the_folder_is_mergekits(name: str, models: Path) -> None:
    recipe, wanted, config = golden(name)
    cs.apply(cs.merge(recipe), models / "out")
    found = load_file(models / "out" / "model.safetensors")
    assert {key: value.dtype for key, value in found.items()} == {key: value.dtype for key, value in wanted.items()}
    said = json.loads((models / "out" / "config.json").read_text())
    assert said["torch_dtype"] == config["dtype"]
    del said["torch_dtype"]  # what transformers 5 writes as dtype
    assert said.items() <= config.items()
    expected = set((GOLDEN / "yaml" / name / "expected_files.txt").read_text().split())
    expected.discard("chat_template.jinja")  # whose template mergekit takes changes from run to run
    assert expected <= set(os.listdir(models / "out"))
    assert cs.verify(models / "out").ok


@pytest.mark.long
def test_transformers_opens_what_is_stacked(models: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    recipe = models / "recipe.yaml"
    recipe.write_text((GOLDEN / "yaml" / "frankenmerge" / "recipe.yml").read_text() + "chat_template: chatml\n")
    cs.apply(cs.merge(recipe), models / "out")
    model, told = AutoModelForCausalLM.from_pretrained(models / "out", output_loading_info=True, dtype="auto")
    assert not any(told.values())
    assert model.config.num_hidden_layers == 6
    assert model.dtype == torch.bfloat16
    assert model(torch.tensor([[3, 4]])).logits.shape == (1, 2, 32)
    tokenizer = AutoTokenizer.from_pretrained(models / "out")
    told = tokenizer.apply_chat_template(
        [{"role": "user", "content": "hi"}], tokenize=False, add_generation_prompt=True
    )
    assert told == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"


def test_duplicates_of_layers_are_copies(models: Path) -> None:
    plan = cs.merge(golden("frankenmerge")[0])
    assert plan.counts == {"copied": 57}
    assert not [step for step in plan.steps if step.tied_to]


# Small models, whose values say which weight each had: the first is 1 everywhere, the second 0.


def write(
    names: str = "ab", layers: int = 3, config: dict[str, Any] | None = None, folder: bool = True, **more: Any
) -> None:
    for i, name in enumerate(names):
        keys = ["model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"]
        keys += [f"model.layers.{n}.{part}.weight" for n in range(layers) for part in ("self_attn.q", "mlp.up")]
        state = {key: torch.full((4, 2), float(i == 0)) for key in keys} | more
        if folder:
            Path(name).mkdir(exist_ok=True)
            said = {"model_type": "llama", "num_hidden_layers": layers, "tie_word_embeddings": False, **(config or {})}
            Path(name, "config.json").write_text(json.dumps(said))
        save_file(state, f"{name}/model.safetensors" if folder else f"{name}.safetensors")


def recipe(**fields: Any) -> str:
    Path("recipe.yaml").write_text(yaml.safe_dump({"merge_method": "linear", **fields}, sort_keys=False))
    return "recipe.yaml"


def weights(**fields: Any) -> dict[str, float]:
    """What the first of two models counts, by key, in a sum."""
    plan = cs.merge(recipe(**fields))
    cs.apply(plan, "out.safetensors", force=True)
    return {key: round(float(value[0, 0]), 6) for key, value in load_file("out.safetensors").items()}


def of_layers(found: dict[str, float], part: str = "self_attn.q") -> list[float]:
    keys = sorted(key for key in found if part in key)
    return [found[key] for key in keys]


def pair(weight: Any, **more: Any) -> dict[str, Any]:
    """A sum of two models, the first with a weight of its own."""
    rows = [{"model": "a", "parameters": {"weight": weight}}, {"model": "b", "parameters": {"weight": 1}}]
    return {"models": rows, "parameters": {"normalize": False}, **more}


def sliced(*ranges: tuple[int, int], weight: Any = 1, **more: Any) -> dict[str, Any]:
    """A sum of the same layers of two models, the weight said for all."""
    slices = [
        {"sources": [{"model": "a", "layer_range": [*one]}, {"model": "b", "layer_range": [*one]}]} for one in ranges
    ]
    return {"slices": slices, "parameters": {"normalize": False, "weight": weight}, **more}


def test_a_gradient_goes_from_the_first_layer_to_the_last_and_begins_before_it() -> None:
    write()
    found = weights(**pair([0.0, 1.0]))
    assert of_layers(found) == [0.0, 0.5, 1.0]
    assert found["model.embed_tokens.weight"] == found["lm_head.weight"] == 0.0


def test_a_gradient_of_a_slice_is_the_slice_s() -> None:
    write()
    found = weights(**sliced((0, 2), (0, 3), (2, 3), weight=[0.0, 1.0]))
    assert of_layers(found) == [0.0, 1.0, 0.0, 0.5, 1.0, 1.0]


def test_the_first_filter_that_a_name_contains_wins() -> None:
    write()
    rows = [{"filter": "layers.1", "value": 0.25}, {"filter": "self_attn", "value": [0, 1]}, {"value": 0.75}]
    found = weights(**pair(rows))
    assert of_layers(found) == [0.0, 0.25, 1.0]
    assert of_layers(found, "mlp.up") == [0.75, 0.25, 0.75]
    assert found["lm_head.weight"] == 0.75


def test_patterns_of_our_own_stand_beside_filters() -> None:
    write()
    rows = [{"keys": "model.layers.*.mlp", "value": 0.25}, {"filter": "*", "value": 0.5}]
    found = weights(**pair(rows))
    assert of_layers(found) == [0.5] * 3
    assert of_layers(found, "mlp.up") == [0.25] * 3


def test_what_is_said_nearer_wins_and_what_has_no_match_is_looked_for_further_out() -> None:
    write()
    asked = sliced((0, 1), (1, 2), (2, 3), weight=0.125)
    asked["slices"][1]["parameters"] = {"weight": [{"filter": "mlp", "value": 0.5}]}
    asked["slices"][2]["parameters"] = {"weight": 0.5}
    asked["slices"][2]["sources"][0]["parameters"] = {"weight": 0.75}
    found = weights(**asked)
    assert of_layers(found) == [0.125, 0.125, 0.75]
    assert of_layers(found, "mlp.up") == [0.125, 0.5, 0.75]
    assert found["model.embed_tokens.weight"] == 0.125  # as the first slice says
    assert found["lm_head.weight"] == found["model.norm.weight"] == 0.75  # as the last


def test_a_filter_is_looked_for_in_the_name_that_the_model_has() -> None:
    write()
    asked = sliced((0, 1), (1, 2))
    asked["slices"][1]["sources"][0]["layer_range"] = [2, 3]
    asked["slices"][1]["sources"][0]["parameters"] = {"weight": [{"filter": "layers.2", "value": 0.5}, {"value": 0}]}
    assert of_layers(weights(**asked)) == [1.0, 0.5]


def test_a_gradient_of_one_value_is_that_value() -> None:
    write()
    assert {*weights(**pair([0.25])).values()} == {0.25}


def test_values_that_are_no_numbers_step() -> None:
    write()
    found = weights(**{**sliced((0, 3), weight=3), "parameters": {"weight": 3, "normalize": ["true", "no", "off"]}})
    assert of_layers(found) == [0.5, 3.0, 3.0]


def test_numbers_may_be_written_as_texts() -> None:
    write()
    Path("recipe.yaml").write_text(
        "merge_method: linear\nparameters: {normalize: 0}\nmodels:\n"
        "- {model: a, parameters: {weight: 5e-1}}\n- {model: b, parameters: {weight: '1'}}\n"
    )
    assert cs.merge("recipe.yaml").steps[0].merge.parameters == {"weight": (0.5, 1.0), "normalize": False}  # type: ignore[union-attr]


def test_layers_are_told_from_other_numbers_by_the_configuration() -> None:
    write(**{"towers.0.weight": torch.ones(4, 2), "towers.1.weight": torch.ones(4, 2)})
    found = weights(**pair([0.0, 1.0]))
    assert found["towers.1.weight"] == 1.0  # outside: 0 of the first and 1 of the second, of equal ones
    assert len(of_layers(weights(**sliced((0, 2))))) == 2


def test_which_of_several_lists_is_meant_has_to_be_said(ckpt: Run) -> None:
    same = {f"towers.{n}.weight": torch.ones(4, 2) for n in range(3)}
    write(**same)
    done = ckpt("merge", recipe(**sliced((0, 1))), "-n")
    assert done.code == 4
    assert "2 lists of layers: model.layers (3), towers (3). Choose one list, for example: layers: " in done.err
    assert len(of_layers(weights(**sliced((0, 1)), layers="model.layers"))) == 1
    assert len(of_layers(weights(**sliced((0, 1)), layers="towers"))) == 3
    assert ckpt("merge", recipe(**sliced((0, 1)), layers="tower"), "-n").code == 2


def test_layers_without_slices_or_a_gradient_are_noted_and_must_exist(ckpt: Run) -> None:
    write()
    note = "note: the field layers changes nothing without slices or a gradient, and is not needed"
    assert note in " ".join(ckpt("merge", recipe(**pair(1), layers="model.layers"), "-n").err.split())
    assert note not in " ".join(ckpt("merge", recipe(**pair([0.0, 1.0]), layers="model.layers"), "-n").err.split())
    done = ckpt("merge", recipe(**pair(1), layers="towers"), "-n")
    assert (done.code, "layers: towers matches none of the" in done.err) == (2, True), done


def test_layers_may_be_said_for_whole_models_too() -> None:
    write(**{f"towers.{n}.weight": torch.ones(4, 2) for n in range(3)})
    found = weights(**pair([0.0, 1.0], layers="towers"))
    assert [found[f"towers.{n}.weight"] for n in range(3)] == [1.0, 1.5, 2.0]
    assert of_layers(found) == [0.0] * 3


def test_a_list_longer_than_the_configuration_says_is_taken_where_it_is_the_only_one() -> None:
    write(config={"num_hidden_layers": 2})
    plan = cs.merge(recipe(**sliced((0, 3))))
    assert "config.json has no field for the number of model.layers, which is now 3" in plan.notes
    assert of_layers(weights(**pair([0.0, 1.0]))) == [0.0, 0.5, 1.0]


def test_files_without_a_configuration_have_one_list_of_layers() -> None:
    write(folder=False)
    asked = sliced((0, 2), (1, 3))
    for one in asked["slices"]:
        for source in one["sources"]:
            source["model"] += ".safetensors"
    assert len(of_layers(weights(**asked))) == 4


def test_modules_are_merged_each_its_own_way() -> None:
    write(**{f"model.vision.blocks.{n}.weight": torch.ones(4, 2) * n for n in range(2)})
    text = {"models": [{"model": "a", "parameters": {"weight": 1}}, {"model": "b", "parameters": {"weight": 1}}]}
    vision = {"slices": [{"sources": [{"model": "a", "layer_range": [1, 2], "parameters": {"weight": 1}}]}] * 3}
    found = weights(
        modules={"vision": {**vision, "layers": "model.vision.blocks"}, "text": {**text, "layers": "model.layers"}}
    )
    assert [found[f"model.vision.blocks.{n}.weight"] for n in range(3)] == [1.0, 1.0, 1.0]
    assert of_layers(found) == [0.5] * 3
    assert found["lm_head.weight"] == 0.5


def test_a_module_or_a_slice_may_be_of_one_of_several_models() -> None:
    write(**{f"model.vision.blocks.{n}.weight": torch.ones(4, 2) for n in range(2)})
    alone = {"models": [{"model": "b", "parameters": {"weight": 1}}]}
    both = {"models": [{"model": one, "parameters": {"weight": 1}} for one in ("a", "b")]}
    found = weights(
        modules={"vision": {**alone, "layers": "model.vision.blocks"}, "text": {**both, "layers": "model.layers"}}
    )
    assert of_layers(found) == [0.5] * 3
    source = {"model": "a", "layer_range": [0, 2], "parameters": {"weight": 1}}
    assert of_layers(weights(slices=[{"sources": [source]}] * 2)) == [1.0] * 4


def test_the_base_is_a_model_where_the_method_takes_none() -> None:
    write("abc")
    plan = cs.merge(recipe(models=[{"model": "a"}, {"model": "b"}], base_model="c", parameters={"weight": 1}))
    assert len(plan.steps[0].inputs) == 3
    assert "base_model is merged like the other models: linear has no base" in plan.notes


@pytest.mark.parametrize("listed", [True, False])
def test_a_base_counts_whether_it_is_listed_or_not(listed: bool) -> None:
    write("abc")
    rows = [{"model": "a"}, {"model": "b"}, *([{"model": "c", "parameters": {"weight": 3}}] if listed else [])]
    plan = cs.merge(recipe(merge_method="task_arithmetic", models=rows, base_model={"model": {"path": "c"}}))
    step = plan.steps[0]
    assert step.merge is not None
    assert step.merge.base
    assert [plan.sources[one.source].name for one in step.inputs] == ["a", "b", "c"]
    assert [note for note in plan.notes if "are not used" in note] == (
        ["models[2].parameters are not used: this model is the base"] if listed else []
    )


def test_slerp_starts_at_the_base() -> None:
    write()
    rows = [{"model": "b"}, {"model": "a"}]
    plan = cs.merge(recipe(merge_method="slerp", models=rows, base_model="a", parameters={"t": 0.25}))
    assert [plan.sources[one.source].name for one in plan.steps[0].inputs] == ["a", "b"]


@pytest.mark.parametrize("method", ["linear", "model_stock", "task_arithmetic"])
def test_what_changes_nothing_in_mergekit_is_said(method: str) -> None:
    write("abc")
    extra = {"int8_mask": True} if method != "task_arithmetic" else {"density": 0.5}
    own = {} if method == "model_stock" else {"weight": 1}
    rows = [{"model": "a", "parameters": own}, {"model": "b", "parameters": own}]
    base = {} if method == "linear" else {"base_model": "c"}
    plan = cs.merge(recipe(merge_method=method, models=rows, parameters=extra, **base))
    assert any(note.startswith(f"{next(iter(extra))} changes nothing in {method}") for note in plan.notes)


# The output: dtype, tied heads, tokenisers, chat templates.


def test_the_output_has_the_dtype_that_is_asked_for_last() -> None:
    write()
    same = pair(0.5)
    for fields, dtype in (
        ({}, "float32"), ({"dtype": "bfloat16"}, "bfloat16"), ({"dtype": "float32", "out_dtype": "float16"}, "float16"),
    ):  # fmt: skip
        plan = cs.merge(recipe(**same, **fields))
        assert {step.dtype for step in plan.steps} == {dtype}
        assert {step.merge.compute for step in plan.steps if step.merge} == {"float32"}
        cs.apply(plan, "out", force=True)
        assert json.loads(Path("out/config.json").read_text())["dtype"] == dtype
    assert cs.merge(recipe(**same, dtype="float16"), dtype="bf16").steps[0].dtype == "bfloat16"


def test_a_tied_model_s_output_layer_is_its_embedding() -> None:
    write()
    state = load_file("b/model.safetensors")
    del state["lm_head.weight"]
    save_file({**state, "model.embed_tokens.weight": torch.full((4, 2), 3.0)}, "b/model.safetensors")
    for kind in ({"model_type": "llama", "tie_word_embeddings": True}, {"model_type": "gemma"}):
        Path("b/config.json").write_text(json.dumps({**kind, "num_hidden_layers": 3}))
        found = weights(**pair(1))
        assert found["lm_head.weight"] == 1 + 3
    rows = [{"model": "b"}, {"model": "a"}]
    plan = cs.merge(recipe(models=rows, parameters={"weight": 1}))
    assert "gets tie_word_embeddings: false" in " ".join(plan.notes)
    cs.apply(plan, "out")
    assert json.loads(Path("out/config.json").read_text())["tie_word_embeddings"] is False
    plan = cs.merge(["b", "a"], method="linear", weights=[1, 1])
    assert (
        next(step for step in plan.steps if step.key == "lm_head.weight").inputs[0].key == "model.embed_tokens.weight"
    )


def test_an_output_layer_that_is_merged_otherwise_is_not_tied() -> None:
    write(config={"tie_word_embeddings": True})
    for weight, tied in ((0.5, True), ([{"filter": "lm_head", "value": 1}, {"value": 0.5}], False)):
        cs.apply(cs.merge(recipe(**pair(weight))), "out", force=True)
        assert json.loads(Path("out/config.json").read_text())["tie_word_embeddings"] is tied


def test_an_untied_model_that_lacks_its_output_layer_is_an_error() -> None:
    write()
    state = load_file("b/model.safetensors")
    del state["lm_head.weight"]
    save_file(state, "b/model.safetensors")
    with pytest.raises(cs.PlanError, match="b lacks lm_head.weight"):
        cs.merge(recipe(**pair(1)))


def test_lists_of_layers_in_the_configuration_follow_the_layers() -> None:
    write(config={"layer_types": ["full", "sliding", "linear"], "text_config": {"num_hidden_layers": 3}})
    cs.apply(cs.merge(recipe(**sliced((0, 2), (1, 3)))), "out")
    config = json.loads(Path("out/config.json").read_text())
    assert config["num_hidden_layers"] == config["text_config"]["num_hidden_layers"] == 4
    assert config["layer_types"] == ["full", "sliding", "sliding", "linear"]


def test_lists_of_layers_that_nobody_knows_are_said_to_be_as_they_were() -> None:
    write(config={"sliding_windows": [4, 4, 8]})
    plan = cs.merge(recipe(**sliced((0, 2), (1, 3))))
    assert (
        "config.json is changed, but a field could not be adapted: sliding_windows still has values for all 3 layers"
        in plan.notes
    )
    assert not any("layers as they were" in note for note in cs.merge(recipe(**sliced((0, 2), (2, 3)))).notes)


def vocabulary(name: str, *tokens: str, template: str = "") -> None:
    words = {token: i for i, token in enumerate(tokens)}
    Path(name, "tokenizer.json").write_text(json.dumps({"model": {"type": "WordLevel", "vocab": words}}))
    Path(name, "tokenizer_config.json").write_text(
        json.dumps({"of": name, **({"chat_template": template} if template else {})})
    )


@pytest.mark.parametrize(
    ("source", "whose"), [("base", "a"), ("union", "a"), ("b", "b"), ("other", "other"), (None, "a")]
)
def test_a_tokeniser_is_whose_it_is_said_to_be(source: str | None, whose: str) -> None:
    write()
    Path("other").mkdir()
    Path("other/config.json").write_text("{}")
    for name in ("a", "b", "other"):
        vocabulary(name, "x", "y")
    fields = {"tokenizer_source": source} if source else {}
    cs.apply(cs.merge(recipe(**pair(1), **fields)), "out")
    assert json.loads(Path("out/tokenizer_config.json").read_text()) == {"of": whose}
    if source:
        cs.apply(cs.merge(recipe(**pair(1), tokenizer={"source": source})), "again")
        assert Path("again/tokenizer_config.json").read_bytes() == Path("out/tokenizer_config.json").read_bytes()


@pytest.mark.costly
@pytest.mark.parametrize(("source", "order"), [("base", "wxyz"), ("union", "wxyz"), ("b", "zyxw")])
def test_rows_go_by_token_where_vocabularies_differ(source: str, order: str) -> None:
    write()
    vocabulary("a", *"wxyz")
    vocabulary("b", *"zyxw")
    state = load_file("b/model.safetensors")
    rows = torch.arange(4.0)[:, None].expand(4, 2).contiguous()
    save_file({**state, "lm_head.weight": rows, "model.norm.weight": rows.clone()}, "b/model.safetensors")
    plan = cs.merge(recipe(**pair(0), tokenizer_source=source))
    cs.apply(plan, "out")
    assert cs.verify("out").ok
    found = load_file("out/model.safetensors")
    assert found["lm_head.weight"][:, 0].tolist() == [float("zyxw".index(token)) for token in order]
    assert torch.equal(found["model.norm.weight"], rows)  # as long, and no vocabulary's


@pytest.mark.costly
@pytest.mark.each_value
@pytest.mark.parametrize("name", sorted(BY_ROWS))
@pytest.mark.parametrize("elements", [7, 1 << 17])
def test_rows_are_mergekits_token_by_token(
    name: str, elements: int, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(apply_settings, "ELEMENTS", elements)
    monkeypatch.setattr(filling, "ELEMENTS", elements)
    recipe, wanted, config = golden(name)
    cs.apply(cs.merge(recipe, dtype="float32"), models / "out")
    assert cs.verify(models / "out").ok
    found = load_file(models / "out" / "model.safetensors")
    ours = numbers(models / "out" / "tokenizer.json")
    theirs = numbers(GOLDEN / "yaml" / name / "expected_tokenizer.json")
    assert ours.keys() == theirs.keys()
    assert json.loads((models / "out" / "config.json").read_text())["vocab_size"] == config["vocab_size"]
    assert {len(found[key]) for key in VOCABULARY} == {config["vocab_size"]}
    for key, expected in wanted.items():
        made, exact = found[key].double(), expected.double()
        if key in VOCABULARY:
            made[: len(theirs)] = made[[ours[token] for token in theirs]]
            exact[: len(theirs)] = exact[[theirs[token] for token in theirs]]
        assert ((made - exact).abs() <= 2**-8 * exact.abs() + 1e-6).all(), key


VOCABULARY = ("model.embed_tokens.weight", "lm_head.weight")


def test_the_chat_template_of_a_recorded_recipe_is_that_of_its_model(models: Path) -> None:
    cs.apply(cs.merge(golden("union_tokenizer")[0]), models / "out")
    assert (models / "out" / "chat_template.jinja").read_text() == Path("a/chat_template.jinja").read_text()


def numbers(path: Path) -> dict[str, int]:
    said = json.loads(path.read_text())
    return {**said["model"]["vocab"], **{one["content"]: one["id"] for one in said["added_tokens"]}}


TEMPLATE = "{% for m in messages %}{{ m.content }}{% endfor %}"


def test_the_chat_template_of_most_models_is_chosen() -> None:
    write("abc")
    vocabulary("a", "x", template="{{ 'of one model only' }}")
    vocabulary("b", "x", template=TEMPLATE)
    vocabulary("c", "x")
    Path("c/chat_template.jinja").write_text(f"{TEMPLATE}\n")
    rows = [{"model": name} for name in "abc"]
    cs.apply(cs.merge(recipe(models=rows, parameters={"weight": 1}, chat_template="auto")), "out")
    assert Path("out/chat_template.jinja").read_text() == TEMPLATE
    assert json.loads(Path("out/tokenizer_config.json").read_text()) == {"of": "a", "chat_template": TEMPLATE}


def test_a_chat_template_is_a_name_or_a_text() -> None:
    write()
    vocabulary("a", "x")
    cs.apply(cs.merge(recipe(**pair(1), chat_template=TEMPLATE)), "out")
    assert Path("out/chat_template.jinja").read_text() == TEMPLATE
    with pytest.raises(
        cs.ConfigError,
        match="chat_template is 'chatmil', which is neither the name nor the text of a template. Use auto, alpaca, chatml",
    ):
        cs.merge(recipe(**pair(1), chat_template="chatmil"))
    plan = cs.merge(recipe(**pair(1), chat_template="auto"))
    assert "chat_template changes nothing: no model has a chat template" in plan.notes


CHATS = json.loads((GOLDEN / "chat_templates.json").read_text())


@pytest.mark.parametrize("name", sorted({row["template"] for row in CHATS}))
def test_a_named_template_writes_what_mergekits_does_but_for_white_space(name: str) -> None:
    """Its own put blanks between turns that the formats have not: of llama3, exaone and alpaca."""
    sandbox = pytest.importorskip("jinja2.sandbox").ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    for row in (one for one in CHATS if one["template"] == name):
        told = sandbox.from_string(TEMPLATES[name]).render(
            messages=row["conversation"],
            add_generation_prompt=row["add_generation_prompt"],
            bos_token="<s>",
            eos_token="</s>",
        )
        if name in ("chatml", "mistral"):
            assert told == row["gives"]
        assert "".join(told.split()) == "".join(row["gives"].split())


def test_a_merge_without_a_recipe_keeps_the_base_s_folder(ckpt: Run) -> None:
    write("abc")
    vocabulary("b", "x")
    assert ckpt("merge", "a", "c", "-m", "ties", "--base", "b", "--dtype", "bf16", "-o", "out/").code == 0
    assert json.loads(Path("out/config.json").read_text())["dtype"] == "bfloat16"
    assert Path("out/tokenizer.json").read_bytes() == Path("b/tokenizer.json").read_bytes()
    assert ckpt("verify", "out/").code == 0


# Recipes on the command line.


def test_paths_are_seen_from_here_and_else_from_the_recipe(ckpt: Run) -> None:
    Path("models").mkdir()
    os.chdir("models")
    write()
    recipe(**pair(1))
    assert ckpt("merge", "recipe.yaml", "-o", "out").code == 0
    os.chdir("..")
    assert ckpt("merge", "models/recipe.yaml", "-o", "out").code == 0
    assert Path("out/model.safetensors").exists()


def test_the_recipe_is_recorded_without_paths() -> None:
    write()
    asked = {**pair(1), "models": [{"model": str(Path(name).resolve()), "parameters": {"weight": 1}} for name in "ab"]}
    plan = cs.merge(recipe(**asked))
    said = plan.arguments["recipe"]
    assert [row["model"] for row in said["models"]] == ["a", "b"]
    assert said["merge_method"] == "linear"
    cs.apply(plan, "out")
    assert str(Path.cwd()) not in Path("out/ckptsurgeon.json").read_text()


def test_a_plan_of_a_recipe_is_carried_out_later(ckpt: Run) -> None:
    write()
    Path("plan.json").write_text(ckpt("merge", recipe(**pair(0.5)), "-n", "--json").out)
    assert ckpt("merge", "recipe.yaml", "-o", "one").code == 0
    assert ckpt("apply", "plan.json", "-o", "two").code == 0
    assert Path("one/model.safetensors").read_bytes() == Path("two/model.safetensors").read_bytes()
    assert Path("one/config.json").read_bytes() == Path("two/config.json").read_bytes()


def test_what_a_recipe_says_is_not_said_beside_it(ckpt: Run) -> None:
    write()
    for flags in (["--method", "linear"], ["--base", "a"], ["--weights", "1,2"], ["--param", "weight=1"]):
        done = ckpt("merge", recipe(**pair(1)), *flags, "-o", "out")
        assert done.code == 2
        assert "cannot be given with a recipe. Write its value into the recipe instead." in done.err
    with pytest.raises(cs.ConfigError, match="a.pth is not a"):
        cs.merge("a.pth")


def test_recipes_of_ours_and_mergekits_are_told_apart(ckpt: Run) -> None:
    write()
    Path("ours.yaml").write_text("verb: merge\nmodels: [a, b]\nmethod: linear\nparameters: {weight: 1}\noutput: out/\n")
    assert "Run ckpt apply ours.yaml" in ckpt("merge", "ours.yaml", "-n").err
    assert "use ckpt merge recipe.yaml" in " ".join(ckpt("apply", recipe(**pair(1)), "-n").err.split())
    assert ckpt("apply", "ours.yaml").code == 0
    assert Path("out/config.json").exists()


BAD: dict[str, tuple[dict[str, Any], int, str]] = {
    "models of a method whose base is left out": (
        {"merge_method": "nuslerp", "models": [{"model": one, "parameters": {"weight": 1}} for one in ("a", "b", "./b")]}, 2,
        "has 3 models, but nuslerp merges 2",
    ),
    "an unknown field": ({**pair(1), "merge_metod": "x"}, 2, "has an unknown field 'merge_metod'. Did you mean merge_method?"),
    "a field of one tool only": ({**pair(1), "name": "x"}, 2, "has an unknown field 'name'"),
    "an unknown field of a model": ({"models": [{"model": "a", "wieght": 1}]}, 2, "models[0] has an unknown field 'wieght'"),
    "an unknown field of a source": (
        {"slices": [{"sources": [{"model": "a", "layer_rang": [0, 1]}]}]}, 2,
        "slices[0].sources[0] has an unknown field 'layer_rang'. Did you mean layer_range?",
    ),
    "no models": ({}, 2, "the configuration has neither models nor slices. Give one of models, slices and modules."),
    "empty models": ({"models": []}, 2, "recipe.yaml: models is empty. List models in it."),
    "nothing in models": ({"models": None}, 2, "recipe.yaml: models is empty. List models in it."),
    "a list of methods": ({**pair(1), "merge_method": ["linear"]}, 2, "recipe.yaml: merge_method is ['linear'], not the name of a method."),
    "models that are texts": ({"models": ["a", "b"]}, 2, "models[0] is 'a', not a map. Its fields are model, parameters, statistics."),
    "a model that is a number": ({"models": [{"model": 3}]}, 2, "models[0].model is 3, not a string"),
    "parameters that are a list": ({"models": [{"model": "a", "parameters": [1]}]}, 2, "models[0].parameters is [1], not a map of parameters"),
    "a model without a name": ({"models": [{"model": ""}]}, 2, "models[0].model is an empty string"),
    "a slice without sources": ({"slices": [{"sources": []}]}, 2, "slices[0].sources is an empty list"),
    "a base that is a list": ({**pair(1), "base_model": ["a"]}, 2, "base_model is ['a'], not a string"),
    "a dtype that is a number": ({**pair(1), "dtype": 16}, 2, "dtype is 16, not a string"),
    "a template that is a number": ({**pair(1), "chat_template": 3}, 2, "chat_template is 3, not a string"),
    "a tokeniser that is a text": ({**pair(1), "tokenizer": "union"}, 2, "tokenizer is 'union', not a map. Its fields are source, tokens"),
    "a range of three": ({"slices": [{"sources": [{"model": "a", "layer_range": [0, 2, 1]}]}]}, 2, "layer_range is [0, 2, 1], not two whole numbers"),
    "a residual weight that is none": ({"slices": [{"sources": [{"model": "a", "layer_range": [0, 2]}], "residual_weight": "x"}]}, 2, "slices[0].residual_weight is 'x', not a number"),
    "models that are no list": ({"models": {"model": "a"}}, 2, "models is {'model': 'a'}, not a list of models"),
    "one model": (
        {"models": [{"model": "a", "parameters": {"weight": 1}}]}, 2,
        "models has one model, but nothing to merge it with. Add others, or use passthrough.",
    ),
    "one model that is its base": (
        {"models": [{"model": "a", "parameters": {"weight": 1}}], "base_model": "a"}, 2, "nothing to merge it with",
    ),
    "one module of one model": (
        {"modules": {"default": {"models": [{"model": "a", "parameters": {"weight": 1}}]}}}, 2, "nothing to merge it with",
    ),
    "both": ({**pair(1), **sliced((0, 1))}, 2, "the configuration has models and slices"),
    "no model in a row": ({"models": [{"parameters": {"weight": 1}}]}, 2, "models[0] has no model"),
    "a model twice": ({"models": [{"model": "a"}, {"model": "a"}]}, 2, "models[1] lists a again"),
    "slices of different lengths": (
        {"slices": [{"sources": [{"model": "a", "layer_range": [0, 2]}, {"model": "b", "layer_range": [0, 1]}]}]}, 2,
        "slices[0] has sources of 2 and 1 layers",
    ),
    "no range": ({"slices": [{"sources": [{"model": "a"}]}]}, 2, "slices[0].sources[0] has no layer_range"),
    "a range of texts": ({"slices": [{"sources": [{"model": "a", "layer_range": "0-3"}]}]}, 2, "is '0-3', not two whole numbers"),
    "a range backwards": (sliced((2, 1)), 2, "layer_range is [2, 1], which is empty"),
    "a range that is empty": (sliced((1, 1)), 2, "layer_range is [1, 1], which is empty"),
    "a range below zero": (sliced((-1, 1)), 2, "layer_range is [-1, 1], below the first layer"),
    "a range outside": (
        sliced((0, 1), (1, 40)), 4,
        "slices[1].sources[0].layer_range asks for layers 1 to 39 of a, which has 3 layers, 0 to 2.",
    ),
    "an empty gradient": (pair([]), 2, "models[0].parameters.weight is an empty list"),
    "a filter that matches nothing": (
        pair([{"filter": "self_atn", "value": 1}, {"value": 2}]), 2,
        "weight with filter self_atn matches none of the 9 output keys. Did you mean model.layers.0.self_attn",
    ),
    "a pattern that matches nothing": (pair([{"keys": "model.layer", "value": 1}, {"value": 2}]), 2, "weight of model.layer matches none"),
    "values that never count": (pair([{"value": 1}, {"filter": "mlp", "value": 2}]), 2, "weight[0] applies to all tensors, so later entries have no effect"),
    "filter and keys": (pair([{"value": 1, "filter": "a", "keys": "b"}]), 2, "has both filter and keys"),
    "a condition without a value": (pair([{"filter": "mlp"}]), 2, "weight[0] has no value"),
    "an unknown condition": (pair([{"fliter": "mlp", "value": 1}]), 2, "Did you mean filter?"),
    "a mixed list": (pair([0.5, {"value": 1}]), 2, "weight[0] is 0.5, not a map"),
    "a word": (pair("heavy"), 2, "weight is 'heavy', not a number"),
    "a list in a list": (pair([[0.5]]), 2, "weight[0] is [0.5], not a number"),
    "an unknown parameter": ({**pair(1), "parameters": {"normalise": True}}, 2, "no parameter normalise. Did you mean normalize?"),
    "an unknown method": ({**pair(1), "merge_method": "liner"}, 2, "there is no merge method liner. Did you mean linear?"),
    "a weight that lacks": ({"models": [{"model": "a"}, {"model": "b"}]}, 2, "linear needs a weight for each model. Set it under parameters, for all models or for each."),
    "no base": ({**pair(1), "merge_method": "ties"}, 2, "models has no base_model, which ties needs"),
    "a base outside a slice": (
        {**sliced((0, 1)), "merge_method": "ties", "base_model": "c"}, 2,
        "slices[0] has base_model c, which is not one of its sources. List it once, with its layer_range.",
    ),
    "too many models": (
        {"models": [{"model": one} for one in "abc"], "merge_method": "slerp", "base_model": "a", "parameters": {"t": 1}}, 2,
        "models has 3 models, but slerp merges 2",
    ),
    "two in a passthrough": ({**sliced((0, 1)), "merge_method": "passthrough", "parameters": {}}, 2, "slices[0] has 2 models, but passthrough merges 1"),
    "an adapter": (
        {"models": [{"model": "a+adapter"}, {"model": "b"}]}, 2,
        "a+adapter is a model with an adapter, which cannot be merged directly: first merge the adapter into the model. Run ckpt lora merge a adapter -o merged/.",
    ),
    "an adapter as a map": ({"models": [{"model": {"model": "a", "lora": "l"}}, {"model": "b"}]}, 2, "ckpt lora merge a l"),
    "a model of the hub": (
        {"models": [{"model": "org/name@main"}, {"model": "b"}]}, 3,
        "the model org/name@main was not found: there is no such file or folder. Give the path of the model's folder or file. If the model is on the hub, download it first: "
        "hf download org/name --revision main --local-dir org/name. Then leave @main out of the recipe.",
    ),
    "an unknown dtype": ({**pair(1), "dtype": "float31"}, 2, "float31"),
    "an integer dtype": ({**pair(1), "dtype": "int64"}, 2, "int64 is not a real floating-point dtype"),
    "two tokenisers": ({**pair(1), "tokenizer_source": "base", "tokenizer": {"source": "base"}}, 2, "tokenizer_source and tokenizer are both given"),
    "a strange tokeniser": ({**pair(1), "tokenizer_source": "c"}, 2, "tokenizer_source is c, which has no tokeniser."),
    "layers beside modules": ({"modules": {"default": pair(1)["models"]}, "layers": "x"}, 2, "modules.default is"),
    "layers that are not there": (
        {"modules": {"vision": {"models": [{"model": "a"}], "layers": "visoin"}}}, 2,
        "modules.vision.layers is 'visoin', which matches no module of the models",
    ),
    "a module that is not there": ({"modules": {"vison": {"models": [{"model": "a"}]}}}, 2, "modules.vison is not the name of a module of the models"),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
def test_what_is_wrong_is_named_with_its_place(what: str, ckpt: Run) -> None:
    write("abc")
    fields, code, why = BAD[what]
    done = ckpt("merge", recipe(**fields), "-o", "out.safetensors")
    assert (done.code, why in " ".join(done.err.split())) == (code, True), done
    assert not Path("out.safetensors").exists()


@pytest.mark.parametrize("tied", [False, True], ids=["plain", "tied"])
def test_a_tensor_that_a_slice_lacks_is_not_taken_from_another_layer(tied: bool) -> None:
    """The key that the tensor has in the slice of another model is that of another layer here."""

    def state(*biases: int) -> dict[str, torch.Tensor]:
        weights = {f"layers.{layer}.up.weight": torch.ones(4, 4) for layer in range(3)}
        embedding = torch.ones(8, 4)
        ends = {"embed.weight": embedding} | ({"head.weight": embedding} if tied else {})
        return ends | weights | {f"layers.{layer}.up.bias": torch.ones(4) for layer in biases}

    torch.save(state(1, 2), "a.pth")
    torch.save(state(0, 1, 2), "b.pth")
    sources = [{"model": "a.pth", "layer_range": [0, 2]}, {"model": "b.pth", "layer_range": [1, 3]}]
    recipe = {"merge_method": "linear", "parameters": {"weight": 0.5}, "slices": [{"sources": sources}]}
    Path("slices.yml").write_text(yaml.safe_dump(recipe))
    with pytest.raises(cs.PlanError, match=r"a\.pth lacks layers\.0\.up\.bias"):
        cs.merge("slices.yml")
