"""Adapters that are joined into one: exact sums, recorded by PEFT, and what cannot be joined."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import ckptsurgeon as cs
from fixtures.peft_cases import JOINED

from ...helpers.adapters import base_state, factors, peft_folder

GOLDEN = Path(__file__).parents[3] / "fixtures" / "golden" / "peft"


def config_of(folder: str) -> dict[str, Any]:
    return json.loads(Path(folder, "adapter_config.json").read_text())


def merged(*adapters: str, weights: list[float] | None = None) -> dict[str, torch.Tensor]:
    cs.apply(cs.lora_merge("base.safetensors", list(adapters), weights=weights), "merged.safetensors", force=True)
    return load_file("merged.safetensors")


def layer(name: str, out: int, into: int, rank: int, seed: int, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    a, b = factors(out, into, rank, seed)
    return {f"{name}.lora_A.weight": a.to(dtype), f"{name}.lora_B.weight": b.to(dtype)}


@pytest.mark.costly
@pytest.mark.parametrize("name", JOINED)
def test_the_change_is_that_of_peft_s_cat(name: str) -> None:
    adapters, weights = JOINED[name]
    cs.apply(cs.lora_concat([GOLDEN / one for one in adapters], weights=list(weights)), "joined/")
    assert cs.verify("joined").ok
    cs.apply(cs.lora_merge(GOLDEN / "base.safetensors", "joined"), "out.safetensors")
    base, found = load_file(GOLDEN / "base.safetensors"), load_file("out.safetensors")
    changed = load_file(GOLDEN / "joined" / f"{name}.safetensors")
    assert changed
    for key, value in found.items():
        wanted = changed.get(key, base[key])
        assert torch.linalg.norm(value - wanted) <= 1e-6 * torch.linalg.norm(wanted), key


def test_peft_opens_what_is_joined() -> None:
    peft = pytest.importorskip("peft")
    model = torch.nn.ModuleDict({"q": torch.nn.Linear(8, 8), "up": torch.nn.Linear(8, 20)})
    save_file({key: value.clone() for key, value in model.state_dict().items()}, "base.safetensors")
    peft_folder("one", {**layer("q", 8, 8, 2, 1), **layer("up", 20, 8, 2, 2)}, target_modules=["q", "up"])
    peft_folder("two", layer("q", 8, 8, 3, 3), r=3, use_rslora=True, target_modules=["q"])
    cs.apply(cs.lora_concat(["one", "two"], weights=[0.7, -0.3]), "joined/")
    wanted = merged("one", "two", weights=[0.7, -0.3])
    opened = peft.PeftModel.from_pretrained(model, "joined").merge_and_unload().state_dict()
    for key, value in wanted.items():
        assert torch.allclose(opened[key], value, rtol=0, atol=1e-6), key


def test_factors_are_stacked_and_the_new_scale_is_one() -> None:
    save_file(base_state(), "base.safetensors")
    one = {**layer("layers.0.q", 8, 8, 2, 1), **layer("layers.0.up", 20, 8, 2, 2)}
    two = {**layer("layers.0.q", 8, 8, 3, 3), **layer("layers.1.q", 8, 8, 3, 4)}
    peft_folder("one", one, target_modules=["q", "up"])
    peft_folder("two", two, r=3, lora_alpha=3, target_modules=["q"])
    plan = cs.lora_concat(["one", "two"], weights=[0.5, 0.25])
    assert plan.counts["derived"] == 3  # a factor of one adapter, times 1, is copied
    cs.apply(plan, "joined/")
    found, said = load_file("joined/adapter_model.safetensors"), config_of("joined")
    key = "base_model.model.layers.0.q.lora_{}.weight"
    a, b = (f"layers.0.q.lora_{part}.weight" for part in "AB")
    assert torch.equal(found[key.format("A")], torch.cat([one[a], two[a]]))
    assert torch.equal(found[key.format("B")], torch.cat([one[b], 0.25 * two[b]], 1))  # 0.5 * 4 / 2 is 1
    assert said["target_modules"] == ["q", "up"]
    ranks = {"layers.0.q": 5, "layers.0.up": 2, "layers.1.q": 3}
    assert {said["r"], *said["rank_pattern"].values()} == set(ranks.values())
    for name, rank in ranks.items():
        pattern = "^" + name.replace(".", r"\.")
        assert said["rank_pattern"].get(pattern, said["r"]) == rank
        assert said["alpha_pattern"].get(pattern, said["lora_alpha"]) == rank
    wanted = merged("one", "two", weights=[0.5, 0.25])
    assert all(torch.allclose(value, wanted[name], atol=1e-6) for name, value in merged("joined").items())


def test_bits_of_16_stay_if_the_scale_is_a_power_of_two() -> None:
    for name, rank in (("one", 2), ("two", 4)):
        peft_folder(name, layer("q", 8, 8, rank, rank, torch.bfloat16), r=rank, lora_alpha=2 * rank)
    cs.apply(cs.lora_concat(["one", "two"], weights=[1, 0.25]), "joined/")
    assert {value.dtype for value in load_file("joined/adapter_model.safetensors").values()} == {torch.bfloat16}
    plan = cs.lora_concat(["one", "two"], weights=[0.7, 0.3])
    assert any("the factor B of 1 module becomes float32" in note for note in plan.notes)
    cs.apply(plan, "wide/")
    found = load_file("wide/adapter_model.safetensors")
    assert found["base_model.model.q.lora_A.weight"].dtype == torch.bfloat16
    b = found["base_model.model.q.lora_B.weight"]
    first = load_file("one/adapter_model.safetensors")["base_model.model.q.lora_B.weight"]
    assert torch.equal(b[:, :2], (first.double() * (0.7 * 2)).float())
    cs.apply(cs.lora_concat(["one", "two"], weights=[0.7, 0.3], dtype="bf16"), "narrow/")
    assert {value.dtype for value in load_file("narrow/adapter_model.safetensors").values()} == {torch.bfloat16}
    narrow = cs.lora_concat(["joined", "wide"], weights=[1, 1], dtype="bf16")
    assert not [note for note in narrow.notes if "fewer bits would round" in note]  # the user asked for the dtype


def test_factors_of_different_dtypes_get_their_common_dtype_with_a_note() -> None:
    for name, dtype in (("one", torch.float16), ("two", torch.bfloat16)):
        peft_folder(name, layer("q", 8, 8, 2, 2, dtype), r=2, lora_alpha=2)
    notes = cs.lora_concat(["one", "two"], weights=[1, 1]).notes
    assert "the factor B of 1 module becomes float32: the adapters have different dtypes: q" in notes


def test_a_half_is_float32_even_for_a_power_of_two() -> None:
    """A small number of float16 times 0.5 may be none of float16."""
    peft_folder("one", layer("q", 8, 8, 2, 1, torch.float16), lora_alpha=1)
    cs.apply(cs.lora_concat(["one"]), "joined/")
    found = load_file("joined/adapter_model.safetensors")
    assert {name[-8]: value.dtype for name, value in found.items()} == {"A": torch.float16, "B": torch.float32}


def test_kohya_s_names_need_the_model() -> None:
    save_file(base_state(), "base.safetensors")
    a, b = factors(8, 8)
    save_file(
        {
            "lora_unet_layers_0_q.lora_down.weight": a, "lora_unet_layers_0_q.lora_up.weight": b,
            "lora_unet_layers_0_q.alpha": torch.tensor(1.0), "lora_te_x.lora_down.weight": a.clone(), "lora_te_x.lora_up.weight": b.clone(),
        },
        "style.safetensors",
    )  # fmt: skip
    peft_folder("one", layer("layers.0.q", 8, 8, 3, 1), r=3)
    with pytest.raises(cs.PlanError, match="underscores where the names of its model have dots"):
        cs.lora_concat(["one", "style.safetensors"])
    with pytest.raises(cs.PlanError, match="for another model|lacks"):
        cs.lora_concat(["one", "style.safetensors"], base="base.safetensors")
    plan = cs.lora_concat(["one", "style.safetensors"], base="base.safetensors", exclude=["lora_te_*"])
    assert plan.excluded == 2
    cs.apply(plan, "joined/")
    assert cs.verify("joined").ok
    cs.apply(
        cs.lora_merge("base.safetensors", ["one", "style.safetensors"], exclude=["lora_te_*"]), "wanted.safetensors"
    )
    wanted = load_file("wanted.safetensors")
    assert all(torch.allclose(value, wanted[name], atol=1e-6) for name, value in merged("joined").items())


def test_biases_of_one_adapter_go_along() -> None:
    for name in ("lora-bias", "bias-lora"):
        cs.apply(cs.lora_concat([GOLDEN / "plain", GOLDEN / name], weights=[0.5, 1]), f"joined-{name}/")
        cs.apply(cs.lora_merge(GOLDEN / "base.safetensors", f"joined-{name}"), "ours.safetensors", force=True)
        both = cs.lora_merge(GOLDEN / "base.safetensors", [GOLDEN / "plain", GOLDEN / name], weights=[0.5, 1])
        cs.apply(both, "theirs.safetensors", force=True)
        wanted = load_file("theirs.safetensors")
        for key, value in load_file("ours.safetensors").items():
            assert torch.allclose(value, wanted[key], atol=1e-6), key
    assert config_of("joined-lora-bias")["lora_bias"] is True
    assert config_of("joined-bias-lora")["bias"] == "lora_only"


@pytest.mark.parametrize(
    ("adapters", "weights", "why"),
    [
        (["plain", "dora"], None, "is a DoRA"),
        (["plain", "saved"], None, "modules_to_save"),
        (["lora-bias", "lora-bias"], None, "both have a bias"),
        (["bias-all", "bias-lora"], None, "two adapters have the bias"),
        (["plain", "bias-lora"], [1, 0.5], "With the weight 0.5"),
        (["plain", "conv1d-hf"], None, "fan_in_fan_out"),
    ],
    ids=str,
)
def test_what_cannot_be_joined_is_an_error(adapters: list[str], weights: list[float] | None, why: str) -> None:
    with pytest.raises(cs.PlanError, match=why):
        cs.lora_concat([GOLDEN / one for one in adapters], weights=weights)


def embedding_adapter(folder: str, seed: int) -> None:
    """An adapter of an embedding and an output layer, next to which PEFT saves the weights of the base."""
    base = load_file("base.safetensors")
    a, b = factors(8, 11, 2, seed)
    state = {"embed.lora_embedding_A": a, "embed.lora_embedding_B": b, **layer("lm_head", 11, 8, 2, seed + 1)}
    weights = {f"{name}.base_layer.weight": base[f"{name}.weight"] for name in ("model.embed_tokens", "lm_head")}
    state = {key.replace("embed.", "model.embed_tokens."): value for key, value in state.items()}
    peft_folder(folder, {**state, **weights}, target_modules=["embed_tokens", "lm_head"])


def test_weights_of_the_base_next_to_factors_are_copied_once() -> None:
    weights = {"model.embed_tokens.weight": torch.randn(11, 8), "lm_head.weight": torch.randn(11, 8)}
    save_file({**weights, "q.weight": torch.randn(8, 8)}, "base.safetensors")
    embedding_adapter("one", 1)
    embedding_adapter("two", 3)
    peft_folder("three", layer("q", 8, 8, 2, 5), target_modules=["q"])
    plan = cs.lora_concat(["three", "one", "two"], weights=[1, 0.5, -2])
    (note,) = (note for note in plan.notes if "base_layer" in note)
    assert note.startswith("two: 2 weights of the base that PEFT saved next to factors (base_layer) are taken from an")
    cs.apply(plan, "joined/")
    assert cs.verify("joined").ok
    found = load_file("joined/adapter_model.safetensors")
    kept = {key for key in found if "base_layer" in key}
    assert kept == {f"base_model.model.{name}.base_layer.weight" for name in ("model.embed_tokens", "lm_head")}
    wanted = merged("three", "one", "two", weights=[1, 0.5, -2])
    for key, value in merged("joined").items():
        assert torch.allclose(value, wanted[key], atol=1e-5), key
        assert key == "q.weight" or not torch.allclose(value, weights[key], atol=0.1), key
    part = cs.lora_concat(["one", "two"], exclude=["lm_head"])
    assert not any("lm_head" in step.key for step in part.steps)
    assert any("base_layer" in step.key for step in part.steps)


@pytest.mark.parametrize("method", ["sum", "knots"])
def test_weights_that_are_all_zero_are_an_error(method: str) -> None:
    with pytest.raises(cs.ConfigError, match="the weights of all adapters are zero"):
        cs.lora_concat([GOLDEN / "plain", GOLDEN / "plain"], weights=[0, 0], method=method)


def test_an_adapter_that_cancels_is_said_to() -> None:
    one = GOLDEN / "plain"
    for weights, end in (([1, -1], "and cancels in the sum"), ([1, -0.5], "so its weights count twice")):
        assert any(
            note.endswith(f" is given twice, {end}") for note in cs.lora_concat([one] * 2, weights=weights).notes
        )


def test_adapters_of_different_models_are_an_error() -> None:
    peft_folder("one", layer("q", 8, 8, 2, 1), base_model_name_or_path="me/this")
    peft_folder("two", layer("q", 8, 8, 2, 2), base_model_name_or_path="me/other")
    peft_folder("three", layer("q", 8, 6, 2, 3))
    peft_folder("four", layer("q", 8, 8, 2, 4), base_model_name_or_path="/models/This/")
    with pytest.raises(cs.PlanError, match="me/other"):
        cs.lora_concat(["one", "two"])
    with pytest.raises(cs.PlanError, match="different models: the factors of q are"):
        cs.lora_concat(["one", "three"])
    cs.apply(cs.lora_concat(["one", "four"]), "joined/")
    assert config_of("joined")["base_model_name_or_path"] == "me/this"


def test_models_of_a_pipeline_whose_modules_have_the_same_names_are_named() -> None:
    state = layer("text_encoder.q", 8, 8, 2, 0) | layer("text_encoder_2.q", 8, 8, 2, 1)
    save_file(state, "both.safetensors")
    said = r"several models of a pipeline \(text_encoder in both.safetensors, text_encoder_2 in both.safetensors\)"
    with pytest.raises(cs.PlanError, match=said):
        cs.lora_concat(["both.safetensors"])
    cs.apply(cs.lora_concat(["both.safetensors"], exclude=["text_encoder.*"]), "one/")
    assert torch.equal(
        load_file("one/adapter_model.safetensors")["base_model.model.q.lora_A.weight"],
        state["text_encoder_2.q.lora_A.weight"],
    )


def test_an_edited_plan_that_contradicts_itself_is_an_error() -> None:
    peft_folder("one", layer("q", 8, 8, 2, 1))
    text = json.dumps(cs.lora_concat(["one", "one"]).to_json())
    data = json.loads(text)
    config = data["target"]["companions"][0]
    config["text"] = config["text"].replace('"r": 4', '"r": 5')
    config["sha256"] = hashlib.sha256(config["text"].encode()).hexdigest()
    Path("plan.json").write_text(json.dumps(data))
    with pytest.raises(cs.PlanError, match="contradicts itself"):
        cs.apply("plan.json", "out/")
    Path("plan.json").write_text(text)
    cs.apply("plan.json", "out/")
    assert cs.verify("out", plan="plan.json").ok


def test_the_output_must_be_a_folder() -> None:
    peft_folder("one", layer("q", 8, 8, 2, 1))
    with pytest.raises(cs.ConfigError, match="cannot be an adapter"):
        cs.apply(cs.lora_concat(["one"]), "out.safetensors")
    with pytest.raises(cs.ConfigError, match="not a valid dtype"):
        cs.lora_concat(["one"], dtype="float8_e4m3fn")
    with pytest.raises(cs.ConfigError, match="no adapter given"):
        cs.lora_concat([])


def test_the_command_writes_what_the_function_plans(ckpt: Any) -> None:
    peft_folder("one", layer("q", 8, 8, 2, 1))
    peft_folder("two", layer("q", 8, 8, 2, 2))
    assert ckpt("lora", "concat", "one", "two", "--weights", "0.7,0.3", "-o", "out/").code == 0
    cs.apply(cs.lora_concat(["one", "two"], weights=[0.7, 0.3]), "again/")
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert Path("out", name).read_bytes() == Path("again", name).read_bytes()
    assert ckpt("verify", "out").code == 0
    assert ckpt("lora", "concat", "one", str(GOLDEN / "dora"), "-n").code == 4
