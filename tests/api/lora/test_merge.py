"""Merging adapters: what float64 gives, wherever blocks begin; every spelling; nothing left out unsaid."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import ckptsurgeon as cs
from ckptsurgeon.engine.compute import adding_lora as adapting

from ...helpers.adapters import base_state, factors, peft_folder


def q_adapter(folder: str, seed: int = 1, rank: int = 2, **config: Any) -> torch.Tensor:
    """Write an adapter of the first q; return B A in double precision."""
    a, b = factors(8, 8, rank, seed)
    peft_folder(folder, {"layers.0.q.lora_A.weight": a, "layers.0.q.lora_B.weight": b}, **{"r": rank, **config})
    return b.double() @ a.double()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_several_adapters_are_summed_in_double_precision_and_rounded_once(dtype: torch.dtype) -> None:
    base = base_state(dtype)
    save_file(base, "base.safetensors")
    exact = base["layers.0.q.weight"].double()
    for number in range(5):
        exact = exact + 0.01 * (4 / 2) * q_adapter(f"a{number}", seed=number)
    plan = cs.lora_merge("base.safetensors", [f"a{i}" for i in range(5)], weights=[0.01] * 5)
    cs.apply(plan, "out.safetensors")
    found = load_file("out.safetensors")
    assert plan.counts == {"copied": 8, "merged": 1}
    assert found["layers.0.q.weight"].dtype == dtype
    assert torch.allclose(found["layers.0.q.weight"], exact.to(dtype), rtol=1e-15, atol=0)
    assert cs.verify("out.safetensors").ok


def test_the_dtype_that_is_asked_for_is_rounded_to_once() -> None:
    base = base_state()
    save_file(base, "base.safetensors")
    exact = base["layers.0.q.weight"].double() + 2 * q_adapter("a")
    cs.apply(cs.lora_merge("base.safetensors", "a", dtype="bf16"), "out.safetensors")
    found = load_file("out.safetensors")
    assert torch.equal(found["layers.0.q.weight"], exact.bfloat16())
    assert torch.equal(found["embed.weight"], base["embed.weight"].bfloat16())


@pytest.mark.parametrize("elements", [1, 40, 1 << 17])
@pytest.mark.parametrize("dora", [False, True])
def test_blocks_change_nothing(elements: int, dora: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    save_file(base_state(torch.bfloat16), "base.safetensors")
    a, b = factors(20, 8)
    tensors = {"layers.1.up.lora_A.weight": a, "layers.1.up.lora_B.weight": b}
    if dora:
        tensors["layers.1.up.lora_magnitude_vector"] = torch.rand(20)
    peft_folder("a", tensors, use_dora=dora)
    cs.apply(cs.lora_merge("base.safetensors", "a"), "whole.safetensors")
    monkeypatch.setattr(adapting, "ADAPTING_ELEMENTS", elements)
    cs.apply(cs.lora_merge("base.safetensors", "a"), "out.safetensors")
    assert Path("whole.safetensors").read_bytes() == Path("out.safetensors").read_bytes()
    assert cs.verify("out.safetensors").ok


@pytest.mark.parametrize("shape", [(0, 6), (6, 0)])
def test_a_tensor_without_elements_stays_one(shape: tuple[int, int]) -> None:
    save_file({**base_state(), "empty.weight": torch.zeros(shape)}, "base.safetensors")
    a, b = factors(*shape)
    peft_folder("a", {"empty.lora_A.weight": a, "empty.lora_B.weight": b})
    cs.apply(cs.lora_merge("base.safetensors", "a"), "out.safetensors")
    assert load_file("out.safetensors")["empty.weight"].shape == shape
    assert cs.verify("out.safetensors").ok


def test_pytorch_files_and_pt_adapters_go_together() -> None:
    base = base_state()
    torch.save({"state_dict": base, "epoch": 3}, "base.pt")
    exact = base["layers.0.q.weight"].double() + 2 * q_adapter("a")
    torch.save(load_file("a/adapter_model.safetensors"), "a/adapter_model.bin")
    Path("a/adapter_model.safetensors").unlink()
    cs.apply(cs.lora_merge("base.pt", "a"), "out.pth")
    assert torch.equal(torch.load("out.pth")["layers.0.q.weight"], exact.float())
    assert cs.verify("out.pth").ok


def test_kohya_s_names_are_matched_with_the_base_s() -> None:
    base = base_state()
    save_file({f"model.diffusion_model.{key}": value for key, value in base.items()}, "base.safetensors")
    (a, b), (down, up) = factors(8, 8), factors(5, 3 * 3 * 2)
    save_file(
        {
            "lora_unet_layers_0_q.lora_down.weight": a, "lora_unet_layers_0_q.lora_up.weight": b,
            "lora_unet_layers_0_q.alpha": torch.tensor(1.0),
            "lora_unet_conv.lora_down.weight": down.view(2, 3, 3, 2), "lora_unet_conv.lora_up.weight": up.view(5, 2, 1, 1),
        },
        "style.safetensors",
    )  # fmt: skip
    plan = cs.lora_merge("base.safetensors", "style.safetensors")
    assert "names in the base begin with model_diffusion_model_, names in the adapter do not" in plan.notes[0]
    cs.apply(plan, "out.safetensors")
    found = load_file("out.safetensors")
    exact = base["layers.0.q.weight"].double() + 0.5 * b.double() @ a.double()
    assert torch.equal(found["model.diffusion_model.layers.0.q.weight"], exact.float())
    exact = base["conv.weight"].double() + (up.double() @ down.double()).view(5, 3, 3, 2)
    assert torch.equal(found["model.diffusion_model.conv.weight"], exact.float())
    assert cs.verify("out.safetensors").ok


@pytest.mark.parametrize(
    ("module", "down", "up"),
    [
        ("layers.0.q", "unet.layers.0.q.lora_A.weight", "unet.layers.0.q.lora_B.weight"),
        ("layers.0.q", "unet.layers.0.q.lora.down.weight", "unet.layers.0.q.lora.up.weight"),
        ("layers.0.q", "layers.0.q.lora_linear_layer.down.weight", "layers.0.q.lora_linear_layer.up.weight"),
        ("layers.0.q", "layers.0.processor.q_lora.down.weight", "layers.0.processor.q_lora.up.weight"),
    ],
)
def test_diffusers_names_are_recognised(module: str, down: str, up: str) -> None:
    base = base_state()
    save_file(base, "base.safetensors")
    a, b = factors(8, 8)
    save_file({down: a, up: b}, "style.safetensors")
    cs.apply(cs.lora_merge("base.safetensors", "style.safetensors"), "out.safetensors")
    exact = base[f"{module}.weight"].double() + b.double() @ a.double()
    assert torch.equal(load_file("out.safetensors")[f"{module}.weight"], exact.float())


def test_the_scale_that_diffusers_writes_into_a_file_counts() -> None:
    base = base_state()
    save_file(base, "base.safetensors")
    a, b = factors(8, 8)
    said = {"unet.r": 2, "unet.lora_alpha": 6, "unet.alpha_pattern": {"q": 10}}
    save_file(
        {"unet.layers.0.q.lora_A.weight": a, "unet.layers.0.q.lora_B.weight": b}, "style.safetensors",
        metadata={"lora_adapter_metadata": json.dumps(said)},
    )  # fmt: skip
    cs.apply(cs.lora_merge("base.safetensors", "style.safetensors"), "out.safetensors")
    exact = base["layers.0.q.weight"].double() + 5 * b.double() @ a.double()
    assert torch.equal(load_file("out.safetensors")["layers.0.q.weight"], exact.float())


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ({"peft_type": "BOFT", "r": 2}, "has the peft_type 'BOFT'; only LORA"),
        ({"peft_type": "LORA", "r": 2, "alora_invocation_tokens": [1]}, "sets alora_invocation_tokens"),
    ],
)
def test_metadata_of_a_kind_that_cannot_be_merged_are_not_called_damaged(said: dict[str, Any], why: str) -> None:
    save_file(base_state(), "base.safetensors")
    a, b = factors(8, 8)
    pair = {"layers.0.q.lora_A.weight": a, "layers.0.q.lora_B.weight": b}
    save_file(pair, "style.safetensors", metadata={"lora_adapter_metadata": json.dumps(said)})
    with pytest.raises(cs.ConfigError, match=why) as raised:
        cs.lora_merge("base.safetensors", "style.safetensors")
    assert "damaged" not in str(raised.value)
    assert "merge_and_unload" in raised.value.hint


def test_the_hint_on_pissa_names_the_metadata_that_say_so() -> None:
    save_file(base_state(), "base.safetensors")
    a, b = factors(8, 8)
    said = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "init_lora_weights": "pissa"}
    pair = {"layers.0.q.lora_A.weight": a, "layers.0.q.lora_B.weight": b}
    save_file(pair, "style.safetensors", metadata={"lora_adapter_metadata": json.dumps(said)})
    with pytest.raises(cs.ConfigError, match="has init_lora_weights pissa") as raised:
        cs.lora_merge("base.safetensors", "style.safetensors")
    assert raised.value.hint.endswith("init_lora_weights to true in lora_adapter_metadata of style.safetensors.")


def test_modules_that_are_excluded_are_named() -> None:
    save_file(base_state(), "base.safetensors")
    a, b = factors(8, 8)
    pairs = {"lora_unet_layers_0_q": (a, b), "lora_te_text_q": (a, b)}
    save_file(
        {
            f"{key}.lora_{side}.weight": t.clone()
            for key, two in pairs.items()
            for side, t in zip(("down", "up"), two, strict=True)
        },
        "style.safetensors",
    )
    with pytest.raises(cs.PlanError, match="style.safetensors has 1 module that base.safetensors lacks: text_q"):
        cs.lora_merge("base.safetensors", "style.safetensors")
    plan = cs.lora_merge("base.safetensors", "style.safetensors", exclude=["lora_te_*"])
    assert [key for _, key in plan.unexpected] == [f"lora_te_text_q.lora_{side}.weight" for side in ("down", "up")]
    assert plan.counts["merged"] == 1
    with pytest.raises(cs.PatternError, match="exclude=.lora_tx_."):
        cs.lora_merge("base.safetensors", "style.safetensors", exclude=["lora_tx_*"])


def test_a_tie_that_an_adapter_breaks_is_said() -> None:
    state = base_state()
    state["head.weight"], state["again.weight"] = state["embed.weight"], state["embed.weight"]
    torch.save(state, "base.pth")
    a, b = factors(8, 11)
    peft_folder("a", {"embed.lora_embedding_A": a, "embed.lora_embedding_B": b})
    plan = cs.lora_merge("base.pth", "a")
    assert any("head.weight and embed.weight were one tensor" in note for note in plan.notes)
    cs.apply(plan, "out.pth")
    found = torch.load("out.pth")
    assert torch.equal(found["head.weight"], state["head.weight"])
    assert not torch.equal(found["embed.weight"], state["embed.weight"])
    with cs.open_checkpoint("out.pth") as out:
        assert out.ties == {"again.weight": "head.weight"}
    assert cs.verify("out.pth").ok


def test_what_is_saved_replaces_adds_and_resizes() -> None:
    save_file(base_state(torch.float16), "base.safetensors")
    saved = {"norm.weight": torch.rand(8), "score.weight": torch.rand(3, 8), "embed_tokens.weight": torch.rand(13, 8)}
    peft_folder("a", saved, modules_to_save=["norm", "score"])
    plan = cs.lora_merge("base.safetensors", "a")
    cs.apply(plan, "out.safetensors")
    found = load_file("out.safetensors")
    assert torch.equal(found["norm.weight"], saved["norm.weight"].half())
    assert torch.equal(found["score.weight"], saved["score.weight"])
    assert torch.equal(found["embed_tokens.weight"], saved["embed_tokens.weight"])
    with pytest.raises(cs.PlanError, match="only a single adapter with the weight 1 can add or resize it") as caught:
        cs.lora_merge("base.safetensors", "a", weights=[0.5])
    assert caught.value.hint == "Give that adapter the weight 1, or merge it alone."
    peft_folder("b", {"layers.0.q.lora_A.weight": torch.rand(2, 8), "layers.0.q.lora_B.weight": torch.rand(8, 2)})
    assert cs.lora_merge("base.safetensors", ["a", "b"], weights=[1, 0.5])


def test_modules_before_the_training_are_left_out_by_all_verbs() -> None:
    """PEFT 0.21 saves them next to modules_to_save if the vocabulary has grown, and does not load them."""
    save_file(base_state(), "base.safetensors")
    a, b = factors(8, 8, 2, 1)
    saved = {"norm.weight": torch.rand(8), "norm.modules_to_save.weight": torch.rand(8)}
    original = {"norm.original_module.weight": torch.rand(8)}
    pair = {"layers.0.q.lora_A.weight": a, "layers.0.q.lora_B.weight": b}
    peft_folder("a", {**pair, **saved, **original}, modules_to_save=["norm"])
    merged, converted = cs.lora_merge("base.safetensors", "a"), cs.lora_convert("a", to="peft")
    for plan in (merged, converted, cs.lora_resize("a", rank=1)):
        assert not any("original_module" in step.key for step in plan.steps)
        assert any("1 tensor of modules before the training (original_module)" in note for note in plan.notes)
    assert {step.key for step in merged.steps} == set(base_state())
    with pytest.raises(cs.PlanError, match="has 1 tensor of modules_to_save"):
        cs.lora_concat(["a", "a"])
    peft_folder("b", {**pair, **original}, modules_to_save=["norm"])
    with pytest.raises(cs.FormatError, match="no LoRA adapter has: .*original_module"):
        cs.lora_merge("base.safetensors", "b")


@pytest.mark.parametrize("names", [("a", "b"), ("b", "a")])
def test_an_adapter_that_changes_what_another_resizes_is_an_error(names: tuple[str, str]) -> None:
    """The change of the second adapter was lost in silence."""
    save_file({**base_state(), "embed_tokens.weight": torch.rand(11, 8)}, "base.safetensors")
    for name, rows in (("a", 13), ("b", 11)):
        peft_folder(name, {"embed_tokens.weight": torch.rand(rows, 8)}, modules_to_save=["embed_tokens"])
    with pytest.raises(cs.PlanError, match=r"an adapter resizes embed_tokens.weight, and b.* also adds a change to it"):
        cs.lora_merge("base.safetensors", list(names))


def test_a_name_in_modules_to_save_selects_every_module_whose_name_ends_with_it() -> None:
    names = ("norm.weight", "layers.0.input_layernorm.weight", "layers.0.input_layernorm.inner.bias")
    base = base_state() | {name: torch.ones(8) for name in names}
    save_file(base, "base.safetensors")
    saved = {name: torch.rand(8) for name in names}
    peft_folder("a", saved, modules_to_save=["norm"])
    plan = cs.lora_merge("base.safetensors", "a")
    assert not any("modules_to_save" in note for note in plan.notes)
    cs.apply(plan, "out.safetensors")
    found = load_file("out.safetensors")
    assert all(torch.equal(found[name], saved.get(name, value)) for name, value in base.items())
    peft_folder("b", saved, modules_to_save=["base_model.model.norm"])
    with pytest.raises(cs.FormatError, match="has 2 keys that no LoRA adapter has: .*input_layernorm"):
        cs.lora_merge("base.safetensors", "b")


def test_a_folder_of_transformers_stays_one() -> None:
    Path("base").mkdir()
    save_file(base_state(), "base/model.safetensors")
    Path("base/config.json").write_text('{"model_type": "x", "dtype": "float32"}')
    Path("base/tokenizer.json").write_text("{}")
    Path("base/train.py").write_text("")
    q_adapter("a")
    cs.apply(cs.lora_merge("base", "a", dtype="bf16"), "out/")
    assert json.loads(Path("out/config.json").read_text())["dtype"] == "bfloat16"
    assert Path("out/tokenizer.json").read_text() == "{}"
    assert not Path("out/train.py").exists()
    assert cs.verify("out").ok


def test_a_plan_on_disk_gives_the_same_bytes_and_the_command_too(ckpt: Any) -> None:
    save_file(base_state(torch.bfloat16), "base.safetensors")
    q_adapter("a")
    q_adapter("b", seed=2)
    said = ["lora", "merge", "base.safetensors", "a", "b", "--weights", "0.7,-0.3"]
    Path("plan.json").write_text(ckpt("--json", *said, "-n").out)
    assert ckpt(*said, "-o", "x.safetensors").code == 0
    assert ckpt("apply", "plan.json", "-o", "y.safetensors").code == 0
    cs.apply(cs.lora_merge("base.safetensors", ["a", "b"], weights=[0.7, -0.3]), "z.safetensors")
    x, y, z = (Path(f"{name}.safetensors").read_bytes() for name in "xyz")
    assert x == y == z


def test_verify_finds_one_changed_value() -> None:
    save_file(base_state(), "base.safetensors")
    q_adapter("a")
    plan = cs.lora_merge("base.safetensors", "a")
    cs.apply(plan, "out.safetensors")
    state = load_file("out.safetensors")
    state["layers.0.q.weight"][3, 3] += 1e-5
    save_file(state, "other.safetensors")
    (fault,) = cs.verify("other.safetensors", plan=plan).failed
    where = f"at byte {4 * (3 * 8 + 3)}"
    assert fault.why == f"differs from what layers.0.q.weight of base.safetensors and 2 other tensors give, {where}"


def test_an_edited_plan_cannot_be_what_its_shapes_are_not() -> None:
    save_file(base_state(), "base.safetensors")
    q_adapter("a")
    data = json.loads(json.dumps(cs.lora_merge("base.safetensors", "a").to_json()))
    step = next(step for step in data["steps"] if step["op"] == "lora")
    step["lora"][0]["kind"] = "saved"
    Path("plan.json").write_text(json.dumps(data))
    with pytest.raises(cs.PlanError, match="the operation lora cannot make the tensor layers.0.q.weight"):
        cs.apply("plan.json", "out.safetensors")


@pytest.mark.parametrize("module", ["lora_unet_{}", "lycoris_{}", "unet.{}"])
@pytest.mark.parametrize("key", ["layers.0.q", "layers.1.up", "conv"])
def test_a_dora_of_lycoris_rescales_rows(module: str, key: str) -> None:
    """``lycoris/functional``: m (W + s B A) / |W + s B A|, the norm over all but the outputs."""
    base = base_state()
    save_file(base, "base.safetensors")
    weight = base[f"{key}.weight"].double()
    a, b = factors(len(weight), weight[0].numel())
    magnitude = torch.rand(len(weight)) + 0.5
    ones = [1] * (weight.dim() - 1)
    name = module.format(key if "." in module else key.replace(".", "_"))
    tensors = {
        f"{name}.lora_down.weight": a.reshape(2, *weight.shape[1:]), f"{name}.lora_up.weight": b.reshape(-1, 2, *ones[1:]),
        f"{name}.alpha": torch.tensor(1.0), f"{name}.dora_scale": magnitude.reshape(-1, *ones),
    }  # fmt: skip
    save_file(tensors, "a.safetensors")
    cs.apply(cs.lora_merge("base.safetensors", "a.safetensors"), "out.safetensors")
    adapted = weight.flatten(1) + 0.5 * (b.double() @ a.double())
    wanted = magnitude[:, None] * adapted / adapted.norm(dim=1, keepdim=True)
    found = load_file("out.safetensors")[f"{key}.weight"]
    assert torch.allclose(found.flatten(1).double(), wanted, atol=1e-6)


@pytest.mark.parametrize("output", ["merged", "made/merged.safetensors"])
def test_an_adapter_that_a_base_has_already_is_said(output: str) -> None:
    q_adapter("one"), q_adapter("two", seed=2)
    Path("made").mkdir()
    save_file(base_state(), "b.safetensors")
    cs.apply(cs.lora_merge("b.safetensors", "one"), output)
    note = "one/adapter_model.safetensors is added a second time: according to the recipe in"
    assert f"{note} {output}, this adapter is already merged" in cs.lora_merge(output, ["two", "one"]).notes
    assert not any("already" in said for said in cs.lora_merge(output, "two").notes)
    assert not any("already" in said for said in cs.lora_merge("b.safetensors", "one").notes)


@pytest.mark.parametrize("field", ["r", "lora_alpha"])
def test_an_adapter_that_does_not_say_what_it_counts_is_an_error_in_plain_words(field: str) -> None:
    q_adapter("one")
    save_file(base_state(), "b.safetensors")
    said = json.loads(Path("one/adapter_config.json").read_text())
    del said[field]
    Path("one/adapter_config.json").write_text(json.dumps(said))
    with pytest.raises(cs.ConfigError, match=f"adapter_config.json: the field {field} is missing\\.") as caught:
        cs.lora_merge("b.safetensors", "one")
    assert f'Add "{field}": 8' in str(caught.value.hint)
