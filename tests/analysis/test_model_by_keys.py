"""What keys and shapes alone show of a model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import ckptsurgeon as cs
from ckptsurgeon.analysis.family_by_keys import family_by_keys
from ckptsurgeon.analysis.model_by_keys import summary_of_keys
from ckptsurgeon.tensors.info import TensorInfo

SMALL = {
    "vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0,
}  # fmt: skip
PICO = {"num_experts": 4, "num_local_experts": 4, "moe_intermediate_size": 16, "decoder_sparse_step": 1}
SPEECH = {"d_model": 32, "encoder_layers": 2, "decoder_layers": 3, "encoder_attention_heads": 4}


@pytest.mark.parametrize(
    ("kind", "fields", "said"),
    [
        ("llama", SMALL, "Llama (by its keys), 3 layers, 32 wide"),
        ("mistral", SMALL, "Llama (by its keys), 3 layers, 32 wide"),
        ("qwen2", SMALL, "Qwen2 (by its keys), 3 layers, 32 wide"),
        ("qwen3", SMALL, "Qwen3 (by its keys), 3 layers, 32 wide"),
        ("gemma2", SMALL, "Gemma 2 (by its keys), 3 layers, 32 wide"),
        ("phi3", SMALL, "Phi-3 (by its keys), 3 layers, 32 wide"),
        ("gpt2", {"n_layer": 2, "n_embd": 32, "n_head": 4, "vocab_size": 96}, "GPT-2 (by its keys), 2 layers, 32 wide"),
        ("gpt_neox", SMALL, "GPT-NeoX (by its keys), 3 layers, 32 wide"),
        ("bert", SMALL, "BERT (by its keys), 3 layers, 32 wide"),
        ("vit", SMALL, "ViT (by its keys), 3 layers, 32 wide"),
        ("t5", {"d_model": 32, "d_ff": 48, "num_layers": 2, "num_decoder_layers": 3, "num_heads": 4, "d_kv": 8,
                "vocab_size": 96}, "T5 (by its keys), 2 + 3 layers (encoder, decoder), 32 wide"),
        ("whisper", {**SPEECH, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "decoder_attention_heads": 4,
                     "vocab_size": 96, "pad_token_id": 0},
         "Whisper (by its keys), 2 + 3 layers (encoder, decoder), 32 wide"),
        ("opt", {**SMALL, "ffn_dim": 48, "word_embed_proj_dim": 32}, "OPT (by its keys), 3 layers, 32 wide"),
        ("wav2vec2", {**SMALL, "num_conv_pos_embedding_groups": 4}, "wav2vec 2.0 or HuBERT (by its keys), 3 layers, 32 wide"),
    ],
)  # fmt: skip
def test_models_of_transformers(kind: str, fields: dict[str, Any], said: str) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.AutoConfig.for_model(kind, **fields)
    with torch.device("meta"):
        module = transformers.AutoModel.from_config(config)
    found = {key: TensorInfo("float32", tuple(value.shape)) for key, value in module.state_dict().items()}
    assert str(summary_of_keys(found, found)) == said


@pytest.mark.parametrize("head", ["PreTraining", "XVector", "CTC", "SequenceClassification"])
def test_the_heads_of_wav2vec_2_leave_its_name(head: str) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.Wav2Vec2Config(num_hidden_layers=2, vocab_size=96, pad_token_id=0)
    with torch.device("meta"):
        module = getattr(transformers, f"Wav2Vec2For{head}")(config)
    assert family_by_keys(module.state_dict()) == "wav2vec 2.0 or HuBERT"


GOLDEN = Path(__file__).resolve().parents[2] / "fixtures" / "golden" / "layouts"
NAMED = {
    "deepseek": "DeepSeek", "glm-moe": "GLM-4.5 or dots.llm1", "gpt-neox": "GPT-NeoX", "gpt2": "GPT-2",
    "llama": "Llama", "llama.qwen2": "Qwen2", "llama.qwen3": "Qwen3", "mamba2": "Mamba 2", "mixtral": "Mixtral",
    "qwen-moe": "Qwen3-MoE or OLMoE", "qwen-moe.qwen2": "Qwen2-MoE", "qwen3-next": "Qwen3-Next",
    "stable-diffusion": "Stable Diffusion", "stable-diffusion-ema": "Stable Diffusion",
    "stable-diffusion.unet": "Stable Diffusion's U-Net", "stable-diffusion.upscaler": "Stable Diffusion's U-Net",
    "stable-diffusion.vae": "", "wav2vec2": "wav2vec 2.0 or HuBERT", "wavlm": "WavLM", "whisper": "Whisper",
}  # fmt: skip
"""The families of the recorded networks, by folder; those of a folder without an entry are those of its first name."""
FILES = sorted(path for path in GOLDEN.glob("*/*.safetensors") if path.name != "outputs.safetensors")


def recorded(path: Path) -> Mapping[str, TensorInfo]:
    return cs.open_checkpoint(path)


@pytest.mark.parametrize("path", FILES, ids=[f"{path.parent.name}/{path.stem}" for path in FILES])
def test_a_recorded_network_is_named_right_or_not_at_all(path: Path) -> None:
    folder = path.parent.name
    name = NAMED.get(folder, NAMED.get(folder.partition(".")[0], ""))
    found = family_by_keys(recorded(path))
    own = path.stem in ("transformers", "diffusers") and folder != "whisper.speechbrain-encoder"
    assert found in ((name,) if own else (name, ""))


@pytest.mark.costly
@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("olmo2", {}), ("siglip", {}), ("trocr", {}), ("pegasus", {}), ("mbart", {}), ("glm4", {}), ("cohere", {}),
        ("stablelm", {}), ("exaone4", {}), ("granite_swa", {}), ("data2vec-audio", {}), ("moonshine", {}),
        ("switch_transformers", {}), ("deit", {}), ("yolos", {}), ("layoutlm", {}), ("jamba", {}), ("owlvit", {}),
        ("gpt_neox_japanese", {"num_hidden_layers": 2}), ("clap", {}), ("align", {}), ("blip-2", {}), ("led", {}),
        ("bigbird_pegasus", {}), ("roformer", {}), ("electra", {}), ("rembert", {}), ("lxmert", {}), ("vilt", {}),
        ("roberta-prelayernorm", {}), ("visual_bert", {}), ("roc_bert", {}), ("imagegpt", {}), ("udop", {}),
        ("qwen2_vl", {}), ("xcodec", {}),
    ],
)  # fmt: skip
def test_a_family_that_is_not_known_has_no_name(kind: str, fields: dict[str, Any]) -> None:
    """Their keys contain those of a known family, and others."""
    transformers = pytest.importorskip("transformers")
    config = transformers.AutoConfig.for_model(kind, **fields)
    with torch.device("meta"):
        try:
            module = transformers.AutoModel.from_config(config)
        except ValueError:
            module = transformers.AutoModelForCausalLM.from_config(config)
    assert family_by_keys(module.state_dict()) == ""


@pytest.mark.parametrize(
    ("more", "name"),
    [
        ("lm_head.weight", "Llama"),
        ("mtp.layers.0.mlp.up_proj.weight", "Llama"),  # it predicts further tokens
        ("value_head.0.weight", "Llama"),
        ("visual.blocks.0.norm1.weight", ""),  # the encoder of another kind of inputs
        ("model.cross_attn_layers.0.norm.weight", ""),
        ("model.inputs_embeds_projector.weight", ""),
        ("model.linear.weight", ""),  # projectors, of inputs of another kind
        ("model.audio_projector.linear.weight", ""),
        ("model.project_in.weight", ""),
        ("tdnn.0.kernel.weight", ""),
    ],
)
def test_a_network_with_other_lists_of_layers_is_of_no_known_family(more: str, name: str) -> None:
    assert family_by_keys([*llama(2), "model.norm.weight", more]) == name


@pytest.mark.parametrize("tower", [False, True])
def test_gemma_3_has_its_name_with_and_without_images(tower: bool) -> None:
    norms = ("input", "post_attention", "pre_feedforward", "post_feedforward")
    keys = [*(f"{one}_layernorm.weight" for one in norms), "self_attn.q_norm.weight"]
    names = [f"model.language_model.layers.{n}.{key}" for n in range(2) for key in keys]
    images = ["model.vision_tower.vision_model.encoder.layers.0.mlp.fc1.weight"] if tower else []
    assert family_by_keys([*names, *images]) == "Gemma 3"


@pytest.mark.parametrize(
    ("more", "name"),
    [
        ((), "Mixtral"),
        (("self_attn.q_proj.bias",), ""),  # Phi-3.5-MoE
        (("self_attn.qkv_proj.weight",), ""),  # MiniMax
        (("self_attn.q_norm.weight", "block_sparse_moe.e_score_correction_bias"), ""),  # MiniMax-M2
    ],
)
def test_layers_with_other_tensors_are_no_mixtral(more: tuple[str, ...], name: str) -> None:
    keys = ("self_attn.q_proj.weight", "block_sparse_moe.gate.weight", "block_sparse_moe.experts.0.w1.weight", *more)
    assert family_by_keys([f"model.layers.{n}.{key}" for n in range(2) for key in keys]) == name


@pytest.mark.parametrize(
    ("file", "width"),
    [
        ("mamba2/transformers", 16), ("mamba2/mlx", 16), ("flux/bfl", None), ("flux/diffusers", None),
        ("qwen3-next/transformers", 16), ("deepseek/transformers", 16),
    ],
)  # fmt: skip
def test_norms_of_parts_of_a_layer_do_not_show_its_width(file: str, width: int | None) -> None:
    tensors = recorded(GOLDEN / f"{file}.safetensors")
    found = summary_of_keys(tensors, tensors)
    assert found is not None
    assert found.width == width


def llama(layers: int) -> dict[str, torch.Tensor]:
    tensors = {"model.embed_tokens.weight": torch.ones(6, 4, dtype=torch.bfloat16)}
    for layer in range(layers):
        at = f"model.layers.{layer}"
        tensors |= {f"{at}.self_attn.{one}_proj.weight": torch.ones(4, 4, dtype=torch.bfloat16) for one in "qkvo"}
        tensors |= {f"{at}.mlp.gate_proj.weight": torch.ones(8, 4, dtype=torch.bfloat16)}
        tensors |= {f"{at}.{one}_layernorm.weight": torch.ones(4) for one in ("input", "post_attention")}
    return tensors


def test_inspect_shows_what_the_keys_show(ckpt: Any) -> None:
    save_file(llama(2), "alone.safetensors")
    assert (
        "model  Llama (by its keys), 2 layers, 4 wide, 232 parameters, bfloat16, float32"
        in ckpt("inspect", "alone.safetensors").out
    )
    model = cs.inspect("alone.safetensors").to_json()["model"]
    assert model["is_by_keys"]
    assert (model["parameters"], model["types"]) == (232, ("bfloat16", "float32"))
    part = cs.inspect("alone.safetensors", include=["model.layers.0.**"])
    assert part.model is not None
    assert part.model.parameters == 232  # of the model, not of what was selected
    Path("config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"], "num_hidden_layers": 2}))
    Path("alone.safetensors").rename("model.safetensors")
    assert "model  LlamaForCausalLM, 2 layers, 232 parameters, bfloat16, float32" in ckpt("inspect", ".").out


@pytest.mark.parametrize(
    "tensors",
    [
        {"w": torch.ones(2)},
        {"0.weight": torch.ones(2, 2), "2.weight": torch.ones(2, 2)},
        {f"base.model.layers.{n}.q.lora_A.weight": torch.ones(2, 4) for n in range(3)},
        {f"state.{n}.exp_avg": torch.ones(3) for n in range(4)},
    ],
)
def test_what_is_no_network_of_layers_is_not_described(tensors: dict[str, torch.Tensor]) -> None:
    save_file(tensors, "x.safetensors")
    assert cs.inspect("x.safetensors").model is None


def test_an_unknown_family_has_sizes_alone() -> None:
    save_file({f"net.blocks.{n}.norm.weight": torch.ones(3) for n in range(2)}, "x.safetensors")
    assert str(cs.inspect("x.safetensors").model) == "2 layers, 3 wide, 6 parameters, float32"


def test_few_blocks_of_a_convolutional_network_are_not_its_layers() -> None:
    tensors = {f"layer{stage}.{n}.{part}": torch.ones(2) for stage in (1, 2) for n in range(3)
               for part in ("conv1.weight", "bn1.weight")}  # fmt: skip
    save_file(tensors | {"fc.weight": torch.ones(2, 2)}, "x.safetensors")
    assert str(cs.inspect("x.safetensors").model) == "ResNet (by its keys), 28 parameters, float32"


def test_parameters_of_an_adapter_are_not_those_of_its_model() -> None:
    at = "base_model.model.model.layers.{}.self_attn.q_proj.lora_{}.weight"
    save_file({at.format(n, one): torch.ones(2, 8) for n in range(2) for one in "AB"}, "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]}
    Path("adapter_config.json").write_text(json.dumps(settings))
    sizes = {"architectures": ["LlamaForCausalLM"], "num_hidden_layers": 2, "hidden_size": 8}
    Path("config.json").write_text(json.dumps(sizes))
    assert str(cs.inspect(".").model) == "LlamaForCausalLM, 2 layers, 8 wide"


def test_one_shard_does_not_show_the_whole_model() -> None:
    state = llama(3)
    parts = [{key: value for key, value in state.items() if (".2." in key) == last} for last in (False, True)]
    names = [f"model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    for name, part in zip(names, parts, strict=True):
        save_file(part, name)
    shards = {key: name for name, part in zip(names, parts, strict=True) for key in part}
    Path("model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": shards}))
    assert cs.inspect(names[0]).model is None
    assert "by its keys" not in cs.open_checkpoint(names[0])._repr_html_()
    assert str(cs.inspect(".").model) == "Llama (by its keys), 3 layers, 4 wide, 336 parameters, bfloat16, float32"
    Path("config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"], "num_hidden_layers": 3}))
    assert cs.inspect(names[0]).model is None


@pytest.mark.parametrize("layout", ["ldm", "diffusers"])
def test_the_blocks_of_a_u_net_or_autoencoder_are_no_layers(layout: str) -> None:
    for network in ("unet", "vae", "refiner"):
        found = recorded(GOLDEN / f"stable-diffusion.{network}" / f"{layout}.safetensors")
        name = {"unet": "Stable Diffusion's U-Net (by its keys)", "refiner": "Stable Diffusion (by its keys)"}
        assert str(summary_of_keys(found, found) or "") == name.get(network, "")
    unet = {key: info for key, info in found.items() if "output_blocks." in key or "up_blocks." in key}
    assert summary_of_keys(unet, unet) is None


def test_other_networks_with_blocks_of_the_original_u_net_have_no_name() -> None:
    unet = recorded(GOLDEN / "stable-diffusion.unet" / "ldm.safetensors")
    control = {**unet, **{key.replace("model.diffusion_model.", "control_model."): unet[key] for key in unet}}
    video = {**unet, "model.diffusion_model.input_blocks.1.1.time_stack.0.norm1.weight": TensorInfo("float32", (2,))}
    assert [summary_of_keys(one, one) for one in (control, video)] == [None, None]
