"""Which way round weights lie: as transformers' Conv1D where a config.json tells, else by shapes, else as was said."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import ckptsurgeon as cs
from fixtures.peft_cases import GPT2_CASES, GPT2_EXTRACTED

from ...helpers.adapters import factors, peft_folder

GOLDEN = Path(__file__).parents[3] / "fixtures" / "golden" / "peft" / "gpt2"


def model(folder: str, state: dict[str, torch.Tensor], **config: Any) -> None:
    """Write a model with its config.json."""
    Path(folder).mkdir()
    save_file(state, f"{folder}/model.safetensors")
    Path(folder, "config.json").write_text(json.dumps(config))


def adapter(folder: str, *modules: tuple[str, int, int], **config: Any) -> dict[str, torch.Tensor]:
    """Write an adapter of (name, out, in) with a scale of 1; return the product of each."""
    pairs = {name: factors(out, into, seed=seed) for seed, (name, out, into) in enumerate(modules)}
    named = {f"{name}.lora_{side}.weight": t for name, two in pairs.items() for side, t in zip("AB", two, strict=True)}
    peft_folder(folder, named, lora_alpha=2, **config)
    return {name: b @ a for name, (a, b) in pairs.items()}


def merged(base: str, *adapters: str) -> dict[str, torch.Tensor]:
    cs.apply(cs.lora_merge(base, adapters), "out.safetensors", force=True)
    return load_file("out.safetensors")


@pytest.mark.parametrize("base", ["base", "base/model.safetensors"])
@pytest.mark.parametrize("name", GPT2_CASES)
def test_an_adapter_of_a_gpt2_is_merged_as_peft_merges_it(name: str, base: str) -> None:
    """PEFT takes each layer for what it is: here ``fan_in_fan_out`` is false."""
    state, found = load_file(GOLDEN / "base/model.safetensors"), merged(str(GOLDEN / base), str(GOLDEN / name))
    changed = load_file(GOLDEN / name / "merged.safetensors")
    assert changed
    for key, value in found.items():
        if key in changed:
            assert torch.linalg.norm(value - changed[key]) <= 1e-6 * torch.linalg.norm(changed[key]), key
        else:
            assert torch.equal(value, state[key]), key


def test_what_is_merged_otherwise_than_the_adapter_says_is_noted() -> None:
    plan = cs.lora_merge(GOLDEN / "base", GOLDEN / "score")
    assert plan.notes == (
        "score: fan_in_fan_out is false, but 2 modules are merged as (in, out), as PEFT does: config.json has the "
        "model type gpt2, in which these modules are Conv1D: transformer.h.0.attn.c_proj, transformer.h.1.attn.c_proj",
    )


def test_a_model_that_is_made_of_others_is_known_by_them() -> None:
    state = {"decoder.h.0.attn.c_proj.weight": torch.zeros(8, 8), "encoder.c.weight": torch.zeros(8, 8)}
    model("base", state, model_type="vision-encoder-decoder", decoder={"model_type": "gpt2"})
    products = adapter("a", ("decoder.h.0.attn.c_proj", 8, 8), ("encoder.c", 8, 8), fan_in_fan_out=True)
    found = merged("base", "a")
    assert torch.allclose(found["decoder.h.0.attn.c_proj.weight"], products["decoder.h.0.attn.c_proj"].T)
    assert torch.allclose(found["encoder.c.weight"], products["encoder.c"])


def test_shapes_are_followed_where_the_configuration_says_otherwise() -> None:
    state = {"h.0.attn.c_attn.weight": torch.zeros(24, 8), "h.0.attn.c_proj.weight": torch.zeros(8, 8)}
    model("base", state, model_type="gpt2")
    products = adapter("a", ("h.0.attn.c_attn", 24, 8), ("h.0.attn.c_proj", 8, 8))
    found = merged("base", "a")
    assert all(torch.allclose(found[f"{name}.weight"], product) for name, product in products.items())
    assert cs.lora_merge("base", "a").notes == (
        "a: config.json has the model type gpt2, but 1 module has another layout, as its shape shows: h.0.attn.c_attn",
    )


UNKNOWN = [None, {"model_type": "x", "auto_map": {"AutoModel": "x.X"}}, {"architectures": ["X"]}, "no JSON", [1]]


@pytest.mark.parametrize("said", [False, True])
@pytest.mark.parametrize("config", UNKNOWN)
def test_an_adapter_is_believed_where_nothing_tells(said: bool, config: Any) -> None:
    model("base", {"q.weight": torch.zeros(8, 8)})
    Path("base/config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    if config is None:
        Path("base/config.json").unlink()
    product = adapter("a", ("q", 8, 8), fan_in_fan_out=said)["q"]
    assert torch.allclose(merged("base/model.safetensors", "a")["q.weight"], product.T if said else product)
    note = "a: 1 module is merged as (in, out), since fan_in_fan_out is true, and nothing else shows the layout: q"
    notes = cs.lora_merge("base/model.safetensors", "a").notes
    assert [one for one in notes if one.startswith("a: ")] == ([note] if said else [])


def test_a_model_without_a_conv1d_is_not_merged_transposed() -> None:
    model("base", {"q.weight": torch.zeros(8, 8), "up.weight": torch.zeros(16, 8)}, model_type="llama")
    products = adapter("a", ("q", 8, 8), fan_in_fan_out=True)
    assert torch.allclose(merged("base", "a")["q.weight"], products["q"])
    assert cs.lora_merge("base", "a").notes == (
        "a: fan_in_fan_out is true, but 1 module is merged as (out, in), as PEFT does, since config.json has the model "
        "type llama, which has no Conv1D: q",
    )


def test_a_linear_layer_says_nothing_of_what_is_named_as_a_conv1d() -> None:
    state = {
        "h.c_attn.weight": torch.zeros(8, 24),
        "h.c_proj.weight": torch.zeros(8, 8),
        "score.weight": torch.zeros(3, 8),
    }
    save_file(state, "base.safetensors")
    products = adapter("a", ("h.c_attn", 24, 8), ("h.c_proj", 8, 8), ("score", 3, 8))
    found = merged("base.safetensors", "a")
    assert torch.allclose(found["h.c_proj.weight"], products["h.c_proj"].T)
    assert torch.allclose(found["score.weight"], products["score"])


def test_factors_that_fit_only_the_other_way_are_noted() -> None:
    save_file({"up.weight": torch.zeros(24, 16), "q.weight": torch.zeros(16, 16)}, "base.safetensors")
    products = adapter("a", ("up", 16, 24), ("q", 16, 16))
    assert torch.allclose(merged("base.safetensors", "a")["up.weight"], products["up"].T)
    assert cs.lora_merge("base.safetensors", "a").notes == (
        "a: fan_in_fan_out is false, but 1 module is merged as (in, out), as the shapes show: up",
        "a: fan_in_fan_out is false, but 1 module is merged as (in, out), as others whose shapes show it (these are "
        "square): q",
    )
    adapter("b", ("up", 16, 25))
    with pytest.raises(cs.PlanError, match="b does not fit up.weight"):
        cs.lora_merge("base.safetensors", "b")


def test_what_is_named_as_a_conv1d_and_nothing_tells_is_noted() -> None:
    shutil.copytree(GOLDEN / "base", "base")
    Path("base/part").mkdir()
    save_file({"attn.c_proj.weight": torch.zeros(8, 8)}, "base/part/model.safetensors")
    product = adapter("a", ("attn.c_proj", 8, 8))["attn.c_proj"]
    assert torch.allclose(merged("base/part/model.safetensors", "a")["attn.c_proj.weight"], product)
    assert cs.lora_merge("base/part/model.safetensors", "a").notes == (
        "a: 1 module is named like GPT-2's Conv1D, but merged as (out, in) by a guess (a config.json next to the base "
        "would show the layout): attn.c_proj",
    )


def lay(folder: str) -> dict[str, Any]:
    """What an adapter's folder says of how weights lie."""
    said: dict[str, Any] = json.loads(Path(folder, "adapter_config.json").read_text())
    return said


@pytest.mark.costly
@pytest.mark.parametrize("name", GPT2_EXTRACTED)
@pytest.mark.parametrize("configured", ["base", "tuned"])
def test_peft_opens_what_is_extracted_of_a_gpt2(name: str, configured: str) -> None:
    """The recorded folder was made from the same two, without --fan-in-fan-out."""
    opened = json.loads((GOLDEN / "opened.json").read_text())[name]
    assert max(opened["apart"].values()) < 1e-6
    assert bool(opened["warnings"]) == (name == "extracted-mixed")  # no one value is right for both kinds of layers
    for folder, weights in (
        ("base", GOLDEN / "base/model.safetensors"),
        ("tuned", GOLDEN / name / "tuned.safetensors"),
    ):
        Path(folder).mkdir()
        shutil.copy(weights, f"{folder}/model.safetensors")
    shutil.copy(GOLDEN / "base/config.json", configured)
    cs.apply(cs.lora_extract("tuned", "base", **GPT2_EXTRACTED[name].options), "a/")
    ours, theirs = (load_file(f"{one}/adapter_model.safetensors") for one in ("a", GOLDEN / name))
    assert {key: value.shape for key, value in ours.items()} == {key: value.shape for key, value in theirs.items()}
    assert lay("a")["fan_in_fan_out"] is lay(str(GOLDEN / name))["fan_in_fan_out"] is True
    found, tuned = merged("base", "a"), load_file("tuned/model.safetensors")
    assert all(torch.linalg.norm(found[key] - value) <= 1e-5 * torch.linalg.norm(value) for key, value in tuned.items())
    assert cs.verify("a").ok


def tune(folder: str, *keys: str) -> None:
    """Write the base's weights with a change of rank 1 in some, without a config.json."""
    state = load_file(GOLDEN / "base/model.safetensors")
    Path(folder).mkdir()
    save_file({key: value + (key in keys) for key, value in state.items()}, f"{folder}/model.safetensors")


C_PROJ, SCORE = "transformer.h.0.attn.c_proj", "score"


@pytest.mark.parametrize(
    ("base", "asked", "note"),
    [
        (
            "base",
            False,
            f"config.json has the model type gpt2, so fan_in_fan_out is true for 1 Conv1D layer: {C_PROJ}",
        ),
        (
            "base",
            True,
            "config.json has the model type gpt2, so --fan-in-fan-out does not apply to 1 Linear layer: score",
        ),
        (
            "plain",
            False,
            f"1 module is named like GPT-2's Conv1D, but treated as (out, in), because --fan-in-fan-out was not given: {C_PROJ}",
        ),
    ],
)
def test_which_way_round_weights_are_extracted_is_said(base: str, asked: bool, note: str) -> None:
    tune("tuned", f"{C_PROJ}.weight", f"{SCORE}.weight")
    Path("plain").mkdir()
    shutil.copy(GOLDEN / "base/model.safetensors", "plain")
    source = GOLDEN / "base" if base == "base" else Path(base)
    plan = cs.lora_extract("tuned", source, rank=1, fan_in_fan_out=asked)
    assert plan.notes == (note,)


def test_of_another_model_names_that_are_gpt2_s_are_not_noted() -> None:
    tune("tuned", f"{C_PROJ}.weight")
    Path("tuned/config.json").write_text('{"model_type": "gpt_bigcode"}')
    shutil.copytree(GOLDEN / "base", "base")
    Path("base/config.json").unlink()
    assert cs.lora_extract("tuned", "base", rank=1).notes == ()
