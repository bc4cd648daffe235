"""What a plan read beside its sources is held as its sources are: changed, the plan is refused and verify says so."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import ckptsurgeon as cs
from ckptsurgeon.api.model_folder.config import float_dtypes

from ...helpers.adapters import base_state, factors, peft_folder
from .test_model_folders import TOKENS, model

Other = Callable[[], None]


def tokens_change(name: str) -> None:
    Path(name).write_text(json.dumps({token: i for i, token in enumerate([*TOKENS[:4], *"dcba"])}))


def adapter_changes(**fields: object) -> None:
    path = Path("adapter/adapter_config.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def adapter() -> cs.Plan:
    save_file(base_state(), "base.safetensors")
    a, b = factors(8, 8)
    module = "layers.0.q"
    peft_folder("adapter", {f"{module}.lora_A.weight": a, f"{module}.lora_B.weight": b}, target_modules=["q"])
    return cs.lora_merge("base.safetensors", "adapter")


def two() -> None:
    model("a")
    model("b", seed=1)


def linear(**more: str) -> cs.Plan:
    two()
    return cs.merge(["a", "b"], method="linear", weights=[0.5, 0.5], **more)


def with_list() -> cs.Plan:
    two()
    Path("b/vocab.json").rename("list.json")
    return cs.merge(["a", "b"], method="linear", weights=[0.5, 0.5], vocab="union", tokens=["b=list.json"])


def averaged() -> cs.Plan:
    two()
    return cs.average(["a", "b"])


def copied() -> cs.Plan:
    two()
    return cs.transplant("a", "b")


def mapped() -> cs.Plan:
    two()
    Path("a/vocab.json").rename("list.json")
    keys = ["model.embed_tokens=0", "lm_head=0"]
    return cs.transplant("a", "b", vocab="list.json:b/vocab.json", vocab_keys=keys)


def extracted() -> cs.Plan:
    two()
    return cs.lora_extract("a", "b", rank=2)


def recipe_of_mergekit() -> cs.Plan:
    two()
    Path("r.yaml").write_text(
        "merge_method: linear\nmodels: [{model: a, parameters: {weight: 1}}, {model: b, parameters: {weight: 1}}]\n"
    )
    return cs.merge("r.yaml")


def cast() -> cs.Plan:
    model("a")
    return cs.convert("a", dtype="float16")


def without_tokens() -> cs.Plan:
    two()
    Path("a/vocab.json").unlink()
    return cs.average(["a", "b"])


def added(name: str) -> None:
    Path(name).write_text('{"<new>": 8}')


def config_changes(name: str) -> None:
    Path(name).write_text(json.dumps({**json.loads(Path(name).read_text()), "rope_theta": 3}))


CASES: dict[str, tuple[Callable[[], cs.Plan], Other, str]] = {
    "alpha": (adapter, lambda: adapter_changes(lora_alpha=400), "adapter/adapter_config.json"),
    "rslora": (adapter, lambda: adapter_changes(use_rslora=True), "adapter/adapter_config.json"),
    "gone": (adapter, Path("adapter/adapter_config.json").unlink, "adapter/adapter_config.json"),
    "merge": (linear, lambda: tokens_change("b/vocab.json"), "b/vocab.json"),
    "union": (lambda: linear(vocab="union"), lambda: tokens_change("b/vocab.json"), "b/vocab.json"),
    "average": (averaged, lambda: tokens_change("b/vocab.json"), "b/vocab.json"),
    "transplant": (copied, lambda: tokens_change("a/vocab.json"), "a/vocab.json"),
    "lora extract": (extracted, lambda: tokens_change("b/vocab.json"), "b/vocab.json"),
    "recipe": (recipe_of_mergekit, lambda: tokens_change("b/vocab.json"), "b/vocab.json"),
    "appears": (without_tokens, lambda: tokens_change("a/vocab.json"), "a/vocab.json"),
    "added": (averaged, lambda: added("a/added_tokens.json"), "a/added_tokens.json"),
    "before": (averaged, lambda: added("a/tokenizer.json"), "a/tokenizer.json"),
    "config": (cast, lambda: config_changes("a/config.json"), "a/config.json"),
}


NEW = "did not exist when"
HOW = {"gone": "is missing, but existed when", "appears": NEW, "added": NEW, "before": NEW}
"""What is said of files that have not just changed."""


@pytest.mark.parametrize("case", CASES)
def test_a_kept_plan_is_refused_when_what_lay_beside_has_changed(case: str) -> None:
    made, change, path = CASES[case]
    plan = made()
    Path("p.json").write_text(json.dumps(plan.to_json()))
    cs.apply("p.json", "before/")
    change()
    with pytest.raises(cs.PlanError, match=f"{path} {HOW.get(case, 'has changed since')} the plan was made"):
        cs.apply("p.json", "out/")
    assert not Path("out").exists()


@pytest.mark.costly
@pytest.mark.parametrize("made", [with_list, mapped])
def test_a_plan_holds_the_rows_and_not_the_lists_that_were_named(made: Callable[[], cs.Plan]) -> None:
    Path("p.json").write_text(json.dumps(made().to_json()))
    cs.apply("p.json", "before/")
    Path("list.json").unlink()
    cs.apply("p.json", "out/")
    assert Path("out/model.safetensors").read_bytes() == Path("before/model.safetensors").read_bytes()


@pytest.mark.costly
@pytest.mark.parametrize("case", CASES)
def test_verify_says_what_has_changed_beside_a_source(case: str) -> None:
    made, change, path = CASES[case]
    cs.apply(made(), "out/")
    assert not cs.verify("out").notes
    change()
    found = cs.verify("out")
    folder, name = path.split("/")
    source = "adapter" if folder == "adapter" else folder
    how = f"{HOW.get(case, 'has changed since')} the output was written"
    (note,) = found.notes
    assert f"{note.name} {note.why}" == f"{name} in the folder of {source}, {how}"
    assert found.ok


def test_files_that_planning_does_not_read_may_change() -> None:
    plan = linear()
    Path("p.json").write_text(json.dumps(plan.to_json()))
    Path("b/generation_config.json").write_text("{}")
    Path("b/README.md").write_text("changed")
    cs.apply("p.json", "out/")
    assert not cs.verify("out").notes


def other_tokens() -> None:
    model("a", tokens=[*TOKENS[:4], *"wxyz"])
    model("b", seed=1)


def test_an_extract_does_not_subtract_rows_of_other_tokens() -> None:
    other_tokens()
    said = r"the tokenisers differ \(row 4 is 'a' in b and 'w' in a\), but rows would be copied by position, not by token: lm_head.weight, model"
    with pytest.raises(cs.PlanError, match=said) as error:
        cs.lora_extract("a", "b", rank=2, embeddings=True)
    assert "--vocab place" in error.value.hint
    plan = cs.lora_extract("a", "b", rank=2, embeddings=True, exclude=["lm_head"], vocab="place")
    assert "rows are copied by position, but row 4 is 'a' in b and 'w' in a" in plan.notes
    assert plan.arguments["vocab"] == "place"
    with pytest.raises(cs.ConfigError, match="rows with the same number are subtracted"):
        cs.lora_extract("a", "b", vocab="union")


def test_an_extract_says_whose_tokens_it_is_for() -> None:
    other_tokens()
    without = cs.lora_extract("a", "b", rank=2, exclude=["lm_head"])
    assert "the tokenisers of a and b differ: the adapter is for the tokens of b" in without.notes
    whole = cs.lora_extract("a", "b", rank=2, exclude=["lm_head"], save_modules=True)
    rows = "the embedding rows in the adapter belong to the tokens of a"
    said = f"{rows}: put the tokeniser of a into the adapter's folder"
    assert (said in whole.notes) == any("embed_tokens" in step.key for step in whole.steps)
    assert said in whole.notes
    Path("a/vocab.json").write_text(Path("b/vocab.json").read_text())
    equal = cs.lora_extract("a", "b", rank=2, embeddings=True).notes
    assert not any("tokenisers" in note or "the tokens of" in note for note in equal)


@pytest.mark.parametrize(
    ("key", "dtypes"),
    [
        ("encoder.block.0.layer.1.DenseReluDense.wo.weight", ["float16"]),
        ("model.layers.3.mlp.gate.e_score_correction_bias", ["float16"]),
        ("query_tokens", ["float16"]),
        ("encoder.block.0.layer.1.DenseReluDense.wi.weight", ["float16", "float32"]),
    ],
)
def test_what_transformers_keeps_in_float32_is_no_second_dtype(key: str, dtypes: list[str]) -> None:
    save_file({"shared.weight": torch.ones(4, 4).half(), key: torch.ones(4, 4)}, "m.safetensors")
    assert float_dtypes(cs.convert("m.safetensors"), {}) == dtypes


def test_float32_alone_is_the_dtype() -> None:
    save_file({"query_tokens": torch.ones(4, 4)}, "m.safetensors")
    assert float_dtypes(cs.convert("m.safetensors"), {}) == ["float32"]
