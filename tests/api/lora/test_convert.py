"""Adapters with the names of another toolkit: what PEFT, diffusers and mlx-lm load has the same change."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import ckptsurgeon as cs

from ...helpers.adapters import factors, peft_folder

GOLDEN = Path(__file__).parents[3] / "fixtures" / "golden"
UNET, MLX, PEFT = (GOLDEN / one for one in ("adapters/unet", "adapters/mlx", "peft"))
State = dict[str, torch.Tensor]


def merged(base: Any, adapter: Any, **options: Any) -> State:
    cs.apply(cs.lora_merge(base, adapter, **options), "merged.safetensors", force=True)
    return load_file("merged.safetensors")


def assert_near(found: State, wanted: State, base: State | None = None) -> None:
    for key, value in found.items():
        there = wanted[key] if base is None else wanted.get(key, base[key])
        assert torch.linalg.norm(value - there) <= 1e-6 * torch.linalg.norm(there), key


# What the toolkits load.


@pytest.mark.parametrize("to", ["diffusers", "kohya"])
def test_diffusers_loads_what_is_written(to: str) -> None:
    """Of a file of kohya, diffusers 0.42.1 ignores the alphas of some modules of attention, and warns."""
    cs.apply(cs.lora_convert(UNET / "adapter", to=to, component="unet"), "out.safetensors")
    assert cs.verify("out.safetensors").ok
    ours, recorded = load_file("out.safetensors"), load_file(UNET / f"{to}.safetensors")
    assert ours.keys() == recorded.keys()  # what diffusers read when it was recorded
    assert all(torch.equal(value, recorded[key]) for key, value in ours.items())
    changed = load_file(UNET / f"merged-{to}.safetensors")
    base, ours = load_file(UNET / "base.safetensors"), merged(UNET / "base.safetensors", UNET / "adapter")
    if to == "kohya":
        assert {key for key in ours if "mid_block" in key and "to_q" in key} <= changed.keys()
        ours = {key: value for key, value in ours.items() if not ("mid_block" in key and "to_q" in key)}
    assert len(ours) > 8
    assert_near(ours, changed, base)


def test_what_diffusers_writes_is_read() -> None:
    cs.apply(cs.lora_convert(UNET / "own.safetensors", to="peft"), "out/")
    assert_near(merged(UNET / "base.safetensors", "out"), merged(UNET / "base.safetensors", UNET / "adapter"))


def test_mlx_loads_what_is_written() -> None:
    plan = cs.lora_convert(MLX / "adapter", to="mlx")
    assert any("filled with zeros up to rank 3" in note for note in plan.notes)
    assert any("2 scales" in note for note in plan.notes)
    cs.apply(plan, "out/")
    assert cs.verify("out").ok
    recorded, ours = load_file(MLX / "ours/adapters.safetensors"), load_file("out/adapters.safetensors")
    assert ours.keys() == recorded.keys()
    assert all(torch.equal(value, recorded[key]) for key, value in ours.items())
    assert Path("out/adapter_config.json").read_bytes() == (MLX / "ours/adapter_config.json").read_bytes()
    wanted = merged(MLX / "base.safetensors", MLX / "adapter")
    assert_near(wanted, load_file(MLX / "merged-ours.safetensors"))


def test_what_mlx_writes_is_read_by_every_verb() -> None:
    wanted = load_file(MLX / "merged-own.safetensors")
    assert_near(merged(MLX / "base.safetensors", MLX / "own"), wanted)
    assert_near(merged(MLX / "base.safetensors", MLX / "own/adapters.safetensors"), wanted)
    cs.apply(cs.lora_convert(MLX / "own", to="peft"), "out/")
    assert cs.verify("out").ok
    assert_near(merged(MLX / "base.safetensors", "out"), wanted)
    cs.apply(cs.lora_concat([MLX / "own", MLX / "adapter"]), "joined/")
    assert cs.verify("joined").ok
    assert_near(
        merged(MLX / "base.safetensors", "joined"), merged(MLX / "base.safetensors", [MLX / "own", MLX / "adapter"])
    )


def test_peft_loads_what_is_written() -> None:
    peft = pytest.importorskip("peft")
    model = torch.nn.ModuleDict({"q": torch.nn.Linear(8, 8), "up": torch.nn.Linear(8, 20)})
    save_file({key: value.clone() for key, value in model.state_dict().items()}, "base.safetensors")
    state: State = {}
    for name, (out, rank, alpha) in {"q": (8, 2, 3.0), "up": (20, 3, 0.7)}.items():
        a, b = factors(out, 8, rank)
        state |= {f"lora_unet_{name}.lora_down.weight": a, f"lora_unet_{name}.lora_up.weight": b}
        state[f"lora_unet_{name}.alpha"] = torch.tensor(alpha)
    save_file(state, "kohya.safetensors")
    cs.apply(cs.lora_convert("kohya.safetensors", to="peft", base="base.safetensors"), "out/")
    opened = peft.PeftModel.from_pretrained(model, "out").merge_and_unload().state_dict()
    assert_near(merged("base.safetensors", "kohya.safetensors"), dict(opened))


# From each spelling to each other.

WAYS = {
    "peft": "out/",
    "mlx": "out/",
    "kohya": "out.safetensors",
    "diffusers": "out.safetensors",
    "comfy": "out.safetensors",
}


@pytest.mark.parametrize("last", WAYS)
@pytest.mark.parametrize("first", WAYS)
def test_a_change_survives_two_conversions(first: str, last: str) -> None:
    base = MLX / "base.safetensors"
    wanted = merged(base, MLX / "adapter")
    one = f"one{WAYS[first][3:]}"
    cs.apply(cs.lora_convert(MLX / "adapter", to=first, component="unet"), one)
    cs.apply(cs.lora_convert(one, to=last, base=base, component="unet"), WAYS[last])
    assert cs.verify(WAYS[last]).ok
    assert_near(merged(base, WAYS[last]), wanted)


def test_names_and_alphas_of_kohya() -> None:
    cs.apply(cs.lora_convert(MLX / "adapter", to="kohya", component="transformer"), "out.safetensors")
    found, given = load_file("out.safetensors"), load_file(MLX / "adapter/adapter_model.safetensors")
    key = "base_model.model.layers.1.q_proj.lora_{}.weight"
    assert torch.equal(found["lora_unet_layers_1_q_proj.lora_down.weight"], given[key.format("A")])
    assert torch.equal(found["lora_unet_layers_1_q_proj.lora_up.weight"], given[key.format("B")])
    assert found["lora_unet_layers_1_q_proj.alpha"].shape == ()
    assert found["lora_unet_layers_1_q_proj.alpha"] == 5
    assert len(found) == 12


def test_two_text_encoders_have_numbers() -> None:
    a, b = factors(8, 8)
    state = {}
    for part in ("unet", "text_encoder", "text_encoder_2"):
        state |= {f"{part}.q.lora_A.weight": a.clone(), f"{part}.q.lora_B.weight": b.clone()}
    save_file(state, "all.safetensors")
    cs.apply(cs.lora_convert("all.safetensors", to="kohya"), "kohya.safetensors")
    prefixes = {key.partition("_q.")[0] for key in load_file("kohya.safetensors")}
    assert prefixes == {"lora_unet", "lora_te1", "lora_te2"}
    with pytest.raises(cs.PlanError, match="several models of a pipeline"):
        cs.lora_convert("all.safetensors", to="peft")
    cs.apply(cs.lora_convert("all.safetensors", to="peft", exclude=["text_encoder*"]), "unet/")
    assert list(load_file("unet/adapter_model.safetensors")) == [
        f"base_model.model.q.lora_{part}.weight" for part in "AB"
    ]


def test_a_rank_stabilised_scale_that_float32_cannot_store_is_folded() -> None:
    a, b = factors(8, 8, 3)
    peft_folder("one", {"q.lora_A.weight": a.half(), "q.lora_B.weight": b.half()}, r=3, use_rslora=True)
    plan = cs.lora_convert("one", to="kohya", component="unet")
    assert any("is multiplied into B; the new scale is 1" in note for note in plan.notes)
    assert any("becomes float32" in note for note in plan.notes)
    cs.apply(plan, "out.safetensors")
    found = load_file("out.safetensors")
    assert found["lora_unet_q.alpha"] == 3
    assert found["lora_unet_q.lora_down.weight"].dtype == torch.float16
    assert torch.equal(found["lora_unet_q.lora_up.weight"], (b.half().double() * (4 / 3**0.5)).float())


def test_metadata_of_diffusers_has_ranks_and_alphas() -> None:
    cs.apply(cs.lora_convert(MLX / "adapter", to="diffusers", component="transformer"), "out.safetensors")
    with safe_open("out.safetensors", "pt") as file:
        said = json.loads(file.metadata()["lora_adapter_metadata"])
    assert said["transformer.r"] == 2
    assert said["transformer.rank_pattern"] == {"^layers\\.1\\.q_proj": 3}


# What cannot be converted.


@pytest.mark.parametrize(
    ("adapter", "options", "why"),
    [
        (PEFT / "dora", {"to": "kohya"}, "is a DoRA"),
        (PEFT / "embedding", {"to": "kohya"}, "no names for adapters of embeddings"),
        (PEFT / "embedding", {"to": "mlx"}, "no names for adapters of embeddings"),
        (PEFT / "saved", {"to": "diffusers", "component": "unet"}, "besides its factors"),
        (PEFT / "lora-bias", {"to": "mlx"}, "besides its factors"),
        (PEFT / "conv", {"to": "mlx"}, "linear layers only"),
        (PEFT / "plain", {"to": "kohya"}, "the adapter does not say which model it is for"),
        (PEFT / "plain", {"to": "diffusers"}, "--component unet|does not say which model it is for"),
        (PEFT / "plain", {"to": "diffusers", "component": "nothing"}, "is not a model of a pipeline"),
        (UNET / "kohya.safetensors", {"to": "peft"}, "underscores where the model's names have dots"),
        (UNET / "kohya.safetensors", {"to": "comfy"}, "underscores where the model's names have dots"),
        (UNET / "kohya.safetensors", {"to": "peft", "base": MLX / "base.safetensors"}, "is for another model"),
    ],
    ids=str,
)
def test_what_a_toolkit_cannot_store_is_an_error(adapter: Path, options: dict[str, Any], why: str) -> None:
    with pytest.raises(cs.PlanError, match=why):
        cs.lora_convert(adapter, **options)


@pytest.mark.long
def test_tensors_besides_the_factors_stay_with_peft() -> None:
    for name in ("saved", "lora-bias", "bias-all", "attention", "conv"):
        cs.apply(cs.lora_convert(PEFT / name, to="peft"), f"{name}/")
        assert cs.verify(name).ok
        base = PEFT / "base.safetensors"
        assert_near(merged(base, name), merged(base, PEFT / name))


def test_weights_of_the_base_next_to_factors_are_left_out_with_a_note() -> None:
    a, b = factors(11, 8)
    save_file({"lm_head.weight": torch.randn(11, 8)}, "base.safetensors")
    weight = load_file("base.safetensors")["lm_head.weight"]
    state = {"lm_head.lora_A.weight": a, "lm_head.lora_B.weight": b, "lm_head.base_layer.weight": weight}
    peft_folder("one", state, target_modules=["lm_head"])
    for to, out in {"mlx": "mlx/", "kohya": "kohya.safetensors", "peft": "peft/"}.items():
        plan = cs.lora_convert("one", to=to, component="unet" if to == "kohya" else "")
        noted = [note for note in plan.notes if "1 weight of the base that PEFT saved next to factors" in note]
        assert len(noted) == (to != "peft")
        cs.apply(plan, out)
        assert cs.verify(out).ok
        assert_near(merged("base.safetensors", out), merged("base.safetensors", "one"))
    peft_folder("two", {**state, "norm.weight": b}, target_modules=["lm_head"], modules_to_save=["norm"])
    with pytest.raises(cs.PlanError, match=r"two has 1 tensor besides its factors .*: norm\.weight\."):
        cs.lora_convert("two", to="mlx")


def test_weights_of_the_base_next_to_factors_are_left_out_with_them() -> None:
    a, b = factors(11, 8)
    head = {"lm_head.lora_A.weight": a, "lm_head.lora_B.weight": b}
    embedding = {"embed_tokens.lora_embedding_A": b.T.contiguous(), "embed_tokens.lora_embedding_B": a.T.contiguous()}
    weights = {f"{name}.base_layer.weight": torch.randn(11, 8) for name in ("lm_head", "embed_tokens")}
    peft_folder("one", {**head, **embedding, **weights}, target_modules=["lm_head", "embed_tokens"])
    plan = cs.lora_convert("one", to="peft", exclude=["lm_head"])
    kept = [step.key for step in plan.steps if "base_layer" in step.key]
    assert kept == ["base_model.model.embed_tokens.base_layer.weight"]
    assert [key for _, key in plan.unexpected if "base_layer" in key] == ["base_model.model.lm_head.base_layer.weight"]


def test_a_module_that_is_left_out_is_no_target() -> None:
    cs.apply(cs.lora_convert(MLX / "adapter", to="peft", exclude=["layers.*"]), "out/")
    said = json.loads(Path("out/adapter_config.json").read_text())
    assert said["target_modules"] == ["head"]
    with pytest.raises(cs.PlanError, match="is left to convert"):
        cs.lora_convert(MLX / "adapter", to="peft", exclude=["**"])


def test_names_with_the_same_underscores_are_an_error() -> None:
    a, b = factors(8, 8)
    tensors = {f"{name}.lora_{part}.weight": value for name in ("a.b", "a_b") for part, value in (("A", a), ("B", b))}
    peft_folder("one", tensors)
    with pytest.raises(cs.PlanError, match="two modules would have the name lora_unet_a_b"):
        cs.lora_convert("one", to="kohya", component="unet")


def test_unknown_toolkits_and_damaged_folders_of_mlx() -> None:
    with pytest.raises(cs.ConfigError, match="lycoris.* is unknown"):
        cs.lora_convert(MLX / "adapter", to="lycoris")
    a, b = factors(8, 8)
    good = {"fine_tune_type": "lora", "lora_parameters": {"rank": 2, "scale": 2.0}}
    for number, (config, tensors, error) in enumerate((
        ({**good, "fine_tune_type": "dora"}, {"q.lora_a": a, "q.lora_b": b}, cs.ConfigError),
        ({**good, "lora_parameters": {"rank": 2}}, {"q.lora_a": a, "q.lora_b": b}, cs.ConfigError),
        (good, {"q.lora_a": a, "q.lora_b": b, "q.weight": b}, cs.FormatError),
        (good, {"q.lora_a": a}, cs.FormatError),
        (good, {"q.lora_a": a.T, "q.lora_b": b}, cs.FormatError),
    )):  # fmt: skip
        Path(f"{number}").mkdir()
        Path(f"{number}/adapter_config.json").write_text(json.dumps(config))
        save_file({key: value.clone().contiguous() for key, value in tensors.items()}, f"{number}/adapters.safetensors")
        with pytest.raises(error):
            cs.lora_convert(f"{number}", to="peft")


def test_a_plan_from_a_file_makes_the_alphas_again() -> None:
    plan = cs.lora_convert(MLX / "adapter", to="comfy")
    Path("plan.json").write_text(json.dumps(plan.to_json()))
    cs.apply("plan.json", "again.safetensors")
    cs.apply(plan, "out.safetensors")
    assert Path("again.safetensors").read_bytes() == Path("out.safetensors").read_bytes()
    assert cs.verify("again.safetensors", plan="plan.json").ok
    assert "diffusion_model.layers.1.q_proj.lora_up.weight" in load_file("out.safetensors")


def test_the_command_writes_what_the_function_plans(ckpt: Any) -> None:
    assert ckpt("lora", "convert", str(MLX / "adapter"), "--to", "mlx", "-o", "out/").code == 0
    assert Path("out/adapters.safetensors").stat().st_size
    assert ckpt("verify", "out").code == 0
    assert ckpt("lora", "convert", str(PEFT / "plain"), "--to", "kohya", "-n").code == 4
    assert ckpt("lora", "convert", str(PEFT / "plain"), "--to", "nothing", "-n").code == 2


def test_names_of_diffusers_are_noted_for_comfy() -> None:
    said = "names of diffusers' layout"
    assert any(said in note for note in cs.lora_convert(UNET / "adapter", to="comfy").notes)
    assert not any(said in note for note in cs.lora_convert(MLX / "adapter", to="comfy").notes)
    assert not any(said in note for note in cs.lora_convert(UNET / "adapter", to="kohya", component="unet").notes)


SD = "model.diffusion_model."


def of_modules(*names: str) -> str:
    """Write a PEFT folder with factors for these modules, and return its path."""
    a, b = factors(8, 8)
    peft_folder("one", {f"{name}.lora_{part}.weight": side for name in names for part, side in (("A", a), ("B", b))})
    return "one"


@pytest.mark.parametrize(
    ("name", "to", "wanted"),
    [
        (f"{SD}input_blocks.4.1.q", "comfy", "diffusion_model.input_blocks.4.1.q"),
        (f"{SD}input_blocks.4.1.q", "kohya", "lora_unet_input_blocks_4_1_q"),
        ("unet.mid_block.q", "comfy", "diffusion_model.mid_block.q"),
        ("unet.mid_block.q", "kohya", "lora_unet_mid_block_q"),
        ("unet.mid_block.q", "diffusers", "unet.mid_block.q"),
        ("transformer.transformer_blocks.0.q", "diffusers", "transformer.transformer_blocks.0.q"),
        ("cond_stage_model.transformer.text_model.q", "kohya", "lora_te_text_model_q"),
        ("cond_stage_model.transformer.text_model.q", "diffusers", "text_encoder.text_model.q"),
        ("transformer.h.0.q", "comfy", "diffusion_model.transformer.h.0.q"),  # of a language model
    ],
)
def test_the_prefix_of_a_pipeline_s_model_is_replaced(name: str, to: str, wanted: str) -> None:
    cs.apply(cs.lora_convert(of_modules(name), to=to), "out.safetensors")
    assert {key.rpartition(".lora_")[0] or key.removesuffix(".alpha") for key in load_file("out.safetensors")} == {
        wanted
    }


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("text_encoder.encoder.layers.0.mlp.fc1", "lora_te_text_model_encoder_layers_0_mlp_fc1"),
        ("text_encoder.text_model.text_model.final_layer_norm", "lora_te_text_model_final_layer_norm"),
        ("text_encoder.text_model.encoder.layers.0.mlp.fc1", "lora_te_text_model_encoder_layers_0_mlp_fc1"),
        ("text_encoder_2.encoder.block.0.layer.0.SelfAttention.q", "lora_te2_encoder_block_0_layer_0_SelfAttention_q"),
        ("text_encoder.encoder.layers.0.mlp.dense_h_to_4h", "lora_te_encoder_layers_0_mlp_dense_h_to_4h"),
    ],
)
def test_text_model_is_once_in_kohya_s_names_of_clip(name: str, wanted: str) -> None:
    """Transformers 5.6 leaves it out of the names of CLIPTextModel; the names of T5 never had it."""
    plan = cs.lora_convert(of_modules(name), to="kohya")
    assert {step.key.partition(".")[0] for step in plan.steps} == {wanted}
    said = "1 module of text encoders has text_model. once in the new names, as in kohya's"
    changes = wanted.replace("_", ".").count("text.model") != name.replace("_", ".").count("text.model")
    assert any(note.startswith(said) for note in plan.notes) == changes


@pytest.mark.parametrize(
    ("names", "options", "why"),
    [
        ((f"{SD}input_blocks.4.1.q",), {"to": "diffusers", "component": "unet"}, "names of the original code"),
        (("double_blocks.0.q",), {"to": "diffusers", "component": "transformer"}, "names of the original code"),
        (("conditioner.embedders.1.model.transformer.resblocks.0.q",), {"to": "kohya"}, "names of the original code"),
        (("first_stage_model.decoder.q",), {"to": "kohya", "component": "unet"}, "the VAE.* first_stage_model.decoder"),
        (("unet.mid_block.q",), {"to": "kohya", "component": "text_encoder"}, "does not fit unet.mid_block.q"),
        ((f"{SD}out.2", "model.other"), {"to": "comfy"}, "1 module of the adapter is not in it: model.other"),
    ],
)
def test_names_that_no_loader_has_are_an_error(names: tuple[str, ...], options: dict[str, Any], why: str) -> None:
    with pytest.raises(cs.PlanError, match=why):
        cs.lora_convert(of_modules(*names), **options)


def test_kohya_s_scripts_have_other_names_for_stable_diffusion_1() -> None:
    said = "but not kohya's scripts"
    notes = cs.lora_convert(of_modules(f"{SD}input_blocks.1.1.q"), to="kohya").notes
    assert any(said in note for note in notes)
    assert cs.lora_convert("one", to="comfy").notes == ()


def test_factors_must_fit_the_weights_of_the_model() -> None:
    a, b = factors(8, 8)
    for name, into in (("fits", 8), ("other", 6)):
        save_file({"x.q.weight": torch.ones(8, into)}, f"{name}.safetensors")
    save_file({"lora_unet_x_q.lora_down.weight": a, "lora_unet_x_q.lora_up.weight": b}, "flat.safetensors")
    square = {"lora_unet_x_q.lora_down.weight": a[..., None, None], "lora_unet_x_q.lora_up.weight": b[..., None, None]}
    save_file({key: value.contiguous() for key, value in square.items()}, "conv.safetensors")
    assert cs.lora_convert("flat.safetensors", to="peft", base="fits.safetensors").steps
    with pytest.raises(cs.PlanError, match="does not fit x.q.weight"):
        cs.lora_convert("flat.safetensors", to="peft", base="other.safetensors")
    with pytest.raises(cs.PlanError, match="do not load into a linear layer"):
        cs.lora_convert("conv.safetensors", to="peft", base="fits.safetensors")
