"""``prove``: what two networks compute, and the verdict."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

import ckptsurgeon as cs
from ckptsurgeon.api.prove.blocks import block_names
from ckptsurgeon.api.prove.comparison import MAIN, _pairs
from ckptsurgeon.api.prove.streaming import units_of

pytest.importorskip("transformers")
SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": 96}


def llama(folder: str, dtype: torch.dtype = torch.float32, **fields: Any) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**{**SIZES, "num_key_value_heads": 2, **fields})).to(dtype)
    model.save_pretrained(folder)
    return model


def change(folder: str, key: str, by: float) -> None:
    path = Path(folder, "model.safetensors")
    state = load_file(path)
    state[key] = state[key] + by * torch.randn(state[key].shape)
    save_file(state, path, metadata={"format": "pt"})


@pytest.mark.long
def test_a_copy_is_the_same() -> None:
    llama("a")
    cs.apply(cs.convert("a"), "shards/", max_shard_size="20KB")
    found = cs.prove("a", "shards")
    assert found.verdict == "SAME"
    assert found.differing == 0
    assert all(one.distance.same and math.isnan(one.allowed) for one in (*found.blocks, found.output))
    assert list(dict.fromkeys(one.name for one in found.blocks)) == [
        "model.embed_tokens", "model.rotary_emb", *(f"model.layers.{number}" for number in range(3)), "model.norm", "lm_head"
    ]  # fmt: skip
    assert found.prediction is not None
    assert found.prediction.agreement == 1


@pytest.mark.long
def test_the_output_is_what_transformers_computes() -> None:
    from transformers import AutoModelForCausalLM

    llama("a", torch.bfloat16)
    ids = torch.tensor([[5, 17, 80, 3, 3, 41]])
    save_file({"input_ids": ids}, "ids.safetensors")
    llama("b", torch.bfloat16)
    change("b", "model.layers.1.mlp.down_proj.weight", 0.5)
    found = cs.prove("a", "b", inputs="ids.safetensors")
    logits = [
        AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32)(ids).logits.detach() for name in ("a", "b")
    ]
    error = float((logits[0] - logits[1]).norm() / logits[0].norm())
    assert found.output.distance.error == pytest.approx(error, rel=1e-4)
    assert found.output.distance.largest == pytest.approx(float((logits[0] - logits[1]).abs().max()), rel=1e-4)
    assert found.drift is not None
    assert found.drift.name == "model.layers.1"
    assert found.inputs == "input_ids (1, 6) from ids.safetensors"


@pytest.mark.long
@pytest.mark.costly
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("back", [False, True], ids=["there", "back"])
def test_rounding_is_equivalent(dtype: str, back: bool) -> None:
    llama("a")
    cs.apply(cs.convert("a", dtype=dtype), "b/")
    found = cs.prove("b", "a") if back else cs.prove("a", "b")
    assert found.verdict == "EQUIVALENT"
    assert 0 < found.output.distance.error < found.output.allowed < 0.1
    assert found.drift is None
    assert not found.changed
    assert not found.notes


@pytest.mark.long
def test_more_than_rounding_is_different_in_float32() -> None:
    llama("a")
    llama("b")
    change("b", "model.layers.2.self_attn.v_proj.weight", 1e-3)
    found = cs.prove("a", "b")
    assert found.verdict == "DIFFERENT"
    assert [one.key for one in found.changed] == ["model.layers.2.self_attn.v_proj.weight"]
    assert found.differing == 1


@pytest.mark.long
def test_codes_are_equivalent_to_the_weights_that_they_stand_for() -> None:
    model = llama("a", torch.bfloat16)
    os.mkdir("fp8")
    state: dict[str, torch.Tensor] = {}
    for key, value in model.state_dict().items():
        if key.endswith("proj.weight"):
            scale = value.float().abs().amax() / 448
            state[key] = (value.float() / scale).to(torch.float8_e4m3fn)
            state[f"{key}_scale"] = scale.reshape(1)
        else:
            state[key] = value
    save_file(state, "fp8/model.safetensors", metadata={"format": "pt"})
    weights = {"num_bits": 8, "type": "float", "strategy": "tensor", "symmetric": True, "dynamic": False}
    groups = {"group_0": {"targets": ["Linear"], "weights": weights}}
    settings = {"quant_method": "compressed-tensors", "format": "float-quantized", "config_groups": groups}
    config = json.loads(Path("a/config.json").read_text())
    Path("fp8/config.json").write_text(
        json.dumps({**config, "quantization_config": {**settings, "ignore": ["lm_head"]}})
    )
    found = cs.prove("a", "fp8")
    assert found.verdict == "EQUIVALENT"
    assert found.second.dtypes == ("bfloat16", "float8_e4m3fn codes")
    state["model.layers.1.mlp.up_proj.weight_scale"] *= 1.5
    save_file(state, "fp8/model.safetensors", metadata={"format": "pt"})
    found = cs.prove("a", "fp8")
    assert found.verdict == "DIFFERENT"
    assert found.drift is not None
    assert found.drift.name == "model.layers.1"
    assert found.changed[0].key == "model.layers.1.mlp.up_proj.weight"
    assert found.changed[0].error == pytest.approx(0.5, abs=0.1)


@pytest.mark.long
def test_little_memory_gives_the_same() -> None:
    llama("a", tie_word_embeddings=True)
    llama("b", tie_word_embeddings=True)
    change("b", "model.layers.0.mlp.up_proj.weight", 0.1)
    assert cs.prove("a", "b", memory="9000B") == cs.prove("a", "b")


@pytest.mark.long
def test_tied_tensors_with_other_values_are_an_error_whose_hint_prove_can_follow() -> None:
    llama("a", tie_word_embeddings=False)
    config = Path("a/config.json")
    config.write_text(config.read_text().replace('"tie_word_embeddings": false', '"tie_word_embeddings": true'))
    with pytest.raises(cs.PlanError, match="are not equal, but the destination ties them") as error:
        cs.prove("a", "a")
    assert "tie_word_embeddings: false in the config.json" in error.value.hint
    assert "with --exclude" not in error.value.hint


def test_weights_are_in_memory_only_while_their_module_runs() -> None:
    from ckptsurgeon.api.prove.opening import open_network
    from ckptsurgeon.api.prove.streaming import streamed

    llama("a")
    network = open_network("a", "a/config.json", task=None, root=None)
    module, held = network.module, []

    def count(layer: Any, *_: Any) -> None:
        held.append(sum(one.numel() for one in module.parameters() if not one.is_meta))

    hooks = [layer.register_forward_pre_hook(count) for layer in module.model.layers]
    with streamed(module, network.read, 40_000):
        for hook in hooks:
            hook.remove()
        for layer in module.model.layers:
            layer.register_forward_pre_hook(count)
        module(torch.tensor([[1, 2, 3]]))
    sizes = [sum(one.numel() for one in layer.parameters()) for layer in module.model.layers]
    assert held == sizes
    assert all(one.is_meta for one in module.parameters())
    network.close()


def test_units_are_as_large_as_may_be() -> None:
    model = torch.nn.ModuleDict(
        {"layers": torch.nn.ModuleList(torch.nn.Linear(4, 4) for _ in range(2)), "head": torch.nn.Linear(4, 9)}
    )
    every = [key for key, _ in model.named_parameters()]
    assert units_of(torch.nn.Sequential(model["layers"][0], model["head"]), 10**6) == {
        "": ["0.weight", "0.bias", "1.weight", "1.bias"]
    }
    small = units_of(model, 100)
    assert sorted(key for keys in small.values() for key in keys) == sorted(every)
    assert set(small) == {"layers.0", "layers.1", "head"}


def test_blocks_are_layers_and_what_stands_beside_them() -> None:
    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = torch.nn.Embedding(3, 4)
            self.body = torch.nn.Module()
            self.body.layers = torch.nn.ModuleList(torch.nn.Linear(4, 4) for _ in range(2))
            self.body.norm = torch.nn.LayerNorm(4)
            self.head = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU())

    assert block_names(Net()) == ["embed", "body.layers.0", "body.layers.1", "body.norm", "head"]
    assert block_names(torch.nn.Linear(2, 2)) == [""]


FAMILIES = {
    "BertForMaskedLM": SIZES,
    "GPT2LMHeadModel": {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 96, "n_positions": 64},
    "T5ForConditionalGeneration": {"d_model": 32, "d_ff": 64, "num_layers": 2, "num_heads": 4, "d_kv": 8, "vocab_size": 96},
    "WhisperForConditionalGeneration": {
        "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
        "decoder_attention_heads": 4, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "vocab_size": 96,
        "max_source_positions": 50, "max_target_positions": 20, "num_mel_bins": 8, "decoder_start_token_id": 1,
        "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    },
    "Wav2Vec2ForCTC": {**SIZES, "conv_dim": (8,) * 7, "num_conv_pos_embedding_groups": 4},
    "ViTForImageClassification": {
        **{name: value for name, value in SIZES.items() if name != "vocab_size"}, "image_size": 32, "patch_size": 8
    },
    "AlbertModel": {**SIZES, "embedding_size": 16},
    "ResNetModel": {"hidden_sizes": [8, 16, 32, 64], "depths": [1, 1, 2, 1], "embedding_size": 8},
    "MambaForCausalLM": {"hidden_size": 32, "num_hidden_layers": 2, "vocab_size": 96, "state_size": 4},
}  # fmt: skip


@pytest.mark.long
@pytest.mark.costly
@pytest.mark.parametrize("name", FAMILIES)
def test_inputs_of_many_kinds_are_drawn(name: str) -> None:
    import transformers

    torch.manual_seed(0)
    model_class = getattr(transformers, name)
    model = model_class(model_class.config_class(**FAMILIES[name]))
    model.save_pretrained("a")
    model.half().save_pretrained("b")
    assert cs.prove("a", "a").verdict == "SAME"
    found = cs.prove("a", "b")
    assert found.verdict == "EQUIVALENT"
    assert not found.unused
    assert len(found.blocks) > 3


@pytest.mark.long
def test_random_inputs_that_are_too_large_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    import transformers

    settings = transformers.ViTConfig(**FAMILIES["ViTForImageClassification"])
    transformers.ViTForImageClassification(settings).save_pretrained("a")
    monkeypatch.setattr("ckptsurgeon.api.prove.inputs.MOST", 1000)
    with pytest.raises(
        cs.ConfigError, match="random inputs for this network would have .* numbers, but at most 1,000 are allowed"
    ):
        cs.prove("a", "a")


@pytest.mark.long
def test_weights_that_inputs_do_not_reach_are_named() -> None:
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4, image_size=32, patch_size=8
    )
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(
        LlavaConfig(text_config=LlamaConfig(**SIZES), vision_config=vision, image_token_index=5)
    )
    model.save_pretrained("a")
    cs.apply(cs.convert("a", dtype="float16"), "b/")
    found = cs.prove("a", "b")
    assert found.verdict == "EQUIVALENT"
    assert any("vision_tower" in key for key in found.unused)
    assert not any("language_model" in key for key in found.unused)
    model.model.vision_tower.embeddings.patch_embedding.weight.data.mul_(2)
    model.save_pretrained("c")
    found = cs.prove("a", "c")
    assert found.output.distance.same
    assert found.verdict == "DIFFERENT"
    assert [key.rpartition("vision_tower.")[2] for key in found.unused_differing] == [
        "embeddings.patch_embedding.weight"
    ]


@pytest.mark.long
def test_images_have_the_size_that_an_encoder_asks_for() -> None:
    """As in TrOCR: the configuration of the network of images is ``encoder``."""
    from transformers import TrOCRConfig, VisionEncoderDecoderConfig, VisionEncoderDecoderModel, ViTConfig

    encoder = ViTConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, image_size=32, patch_size=16
    )
    decoder = TrOCRConfig(
        vocab_size=50, d_model=32, decoder_layers=1, decoder_attention_heads=2, decoder_ffn_dim=64,
        max_position_embeddings=40,
    )  # fmt: skip
    config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder)
    config.decoder_start_token_id, config.pad_token_id = 2, 1
    VisionEncoderDecoderModel(config).save_pretrained("a")
    found = cs.prove("a", "a")
    assert found.verdict == "SAME"
    assert "pixel_values (4, 3, 32, 32)" in found.inputs
    plan = cs.stats("a")
    assert plan.steps


@pytest.mark.long
def test_a_difference_that_inputs_do_not_show_is_said() -> None:
    """A bias of the keys moves all scores of a query by the same, and softmax does not see it."""
    llama("a", attention_bias=True)
    llama("b", attention_bias=True)
    change("b", "model.layers.0.self_attn.k_proj.bias", 0.0)
    assert cs.prove("a", "b").verdict == "SAME"
    path = Path("b/model.safetensors")
    state = load_file(path)
    order = torch.randperm(64)
    for name in ("gate_proj", "up_proj"):
        key = f"model.layers.0.mlp.{name}.weight"
        state[key] = state[key][order].contiguous()
    key = "model.layers.0.mlp.down_proj.weight"
    state[key] = state[key][:, order].contiguous()
    save_file(state, path, metadata={"format": "pt"})
    found = cs.prove("a", "b")
    assert found.verdict in ("SAME", "EQUIVALENT")
    said = "3 tensors differ by more than rounding explains, but the outputs for these inputs do not show it"
    assert said in " ".join(found.notes)


@pytest.mark.long
def test_another_vocabulary_is_compared_over_the_shared_tokens() -> None:
    from transformers import BertConfig, BertForMaskedLM

    words = ["[PAD]", "[UNK]", *(f"w{number}" for number in range(30))]
    torch.manual_seed(0)
    model = BertForMaskedLM(BertConfig(**{**SIZES, "vocab_size": len(words), "tie_word_embeddings": False}))
    model.save_pretrained("a")
    Path("a/vocab.txt").write_text("\n".join(words) + "\n")
    order = [*torch.randperm(len(words))[:20].tolist()]
    config = json.loads(Path("a/config.json").read_text())
    os.mkdir("b")
    Path("b/config.json").write_text(json.dumps({**config, "vocab_size": len(order)}))
    Path("b/vocab.txt").write_text("\n".join(words[row] for row in order) + "\n")
    rows = ("word_embeddings.weight", "predictions.decoder.weight", "predictions.bias", "predictions.decoder.bias")
    state = {
        key: value[order].clone() if key.endswith(rows) else value.clone()
        for key, value in load_file("a/model.safetensors").items()
    }
    save_file(state, "b/model.safetensors", metadata={"format": "pt"})
    found = cs.prove("a", "b")
    assert found.verdict in ("SAME", "EQUIVALENT")
    assert found.output.distance.error < 1e-5
    assert "the token lists differ: only the 20 tokens that are in both are compared" in found.notes
    state["bert.encoder.layer.1.output.dense.weight"] += 0.1 * torch.randn(32, 64)
    save_file(state, "b/model.safetensors", metadata={"format": "pt"})
    drift = cs.prove("a", "b").drift
    assert drift is not None
    assert drift.name == "bert.encoder.layer.1"
    Path("b/vocab.txt").unlink()
    with pytest.raises(cs.ConfigError, match="have 32 and 20 tokens, but at least one has no token list"):
        cs.prove("a", "b")


def more_layers() -> dict[str, Any]:
    """Llama b is Llama a and a fourth layer, whose output projections are zero."""
    own, wider = llama("a").state_dict(), llama("b", num_hidden_layers=4).state_dict()
    zero = {key: torch.zeros_like(value) for key, value in wider.items() if "o_proj" in key or "down_proj" in key}
    return {**wider, **zero, **own}


def wider_layers() -> dict[str, Any]:
    """Llama b is Llama a with each neuron twice (HyperCloning, arXiv:2409.12903)."""
    own = llama("a").state_dict()
    llama("b", hidden_size=64, intermediate_size=128, num_attention_heads=8, num_key_value_heads=4)
    return {
        key: torch.cat([one] * 2, one.dim() - 1) if "embed" in key or one.dim() == 1
        else torch.cat([one] * 2, 1) / 2 if key == "lm_head.weight"
        else torch.cat([torch.cat([one] * 2, 1) / 2] * 2)
        for key, one in own.items()
    }  # fmt: skip


@pytest.mark.long
@pytest.mark.costly
@pytest.mark.parametrize(
    ("made", "verdict", "note"),
    [
        (more_layers, "SAME", "only one of the networks has model.layers.3, so it is not compared"),
        (
            wider_layers,
            "EQUIVALENT",
            "blocks that are not compared, because their outputs have different shapes: model.embed_tokens,",
        ),
    ],
)
def test_networks_of_other_sizes_are_compared_by_what_they_share(
    made: Callable[[], dict[str, Any]], verdict: str, note: str
) -> None:
    state = made()
    save_file(
        {key: value.contiguous() for key, value in state.items()}, "b/model.safetensors", metadata={"format": "pt"}
    )
    found = cs.prove("a", "b")
    assert found.verdict == verdict
    assert any(one.startswith(note) for one in found.notes)
    assert found.prediction is not None
    assert found.prediction.agreement == 1
    edit("b", lambda own: own["model.layers.1.mlp.up_proj.weight"].mul_(1.01))
    assert cs.prove("a", "b").verdict == "DIFFERENT"


def edit(folder: str, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    path = Path(folder, "model.safetensors")
    state = load_file(path)
    change(state)
    save_file(state, path, metadata={"format": "pt"})


@pytest.mark.long
def test_a_row_that_no_input_has_is_looked_at() -> None:
    for folder in ("a", "b"):
        llama(folder, eos_token_id=[5, 6], hidden_size=64)
    edit("b", lambda state: state["model.embed_tokens.weight"][5].fill_(100.0))
    found = cs.prove("a", "b")
    assert found.output.distance.same
    assert found.verdict == "DIFFERENT"
    assert found.unused_differing
    assert all(key.startswith("model.embed_tokens.weight") for key in found.unused_differing)
    save_file({"input_ids": torch.tensor([[1, 5, 2]])}, "ids.safetensors")
    drift = cs.prove("a", "b", inputs="ids.safetensors").drift
    assert drift is not None
    assert drift.name == "model.embed_tokens"


@pytest.mark.long
def test_a_row_that_no_input_has_is_looked_at_beside_rounding() -> None:
    llama("a", hidden_size=64, eos_token_id=5)
    cs.apply(cs.convert("a", dtype="bfloat16"), "b/")
    assert cs.prove("a", "b").verdict == "EQUIVALENT"
    edit("b", lambda state: state["model.embed_tokens.weight"][5].fill_(1.0))
    assert cs.prove("a", "b").verdict == "DIFFERENT"


@pytest.mark.long
def test_every_tensor_of_an_output_is_compared() -> None:
    from transformers import BertConfig, BertForPreTraining

    torch.manual_seed(0)
    model = BertForPreTraining(BertConfig(**SIZES))
    model.save_pretrained("a")
    torch.nn.init.normal_(model.cls.seq_relationship.weight)
    model.save_pretrained("b")
    found = cs.prove("a", "b")
    assert found.verdict == "DIFFERENT"
    assert found.drift is not None
    assert (found.drift.name, found.drift.part) == ("cls", 1)


@pytest.mark.long
def test_rounded_statistics_are_equivalent() -> None:
    first = {"_target_": "torch.nn.Linear", "in_features": 3, "out_features": 8}
    second = {"_target_": "torch.nn.BatchNorm1d", "num_features": 8}
    Path("net.yaml").write_text(
        yaml.safe_dump({"model": {"_target_": "torch.nn.Sequential", "_args_": [first, second]}})
    )
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.BatchNorm1d(8))
    net[1].running_mean.normal_()
    net[1].running_var.uniform_(0.5, 2)
    state = net.state_dict()
    save_file({"input": torch.randn(50, 3)}, "in.safetensors")
    torch.save(state, "a.pth")
    torch.save({key: value.bfloat16() if "running" in key else value for key, value in state.items()}, "b.pth")
    given = {"model": "net.yaml", "inputs": "in.safetensors"}
    assert cs.prove("a.pth", "b.pth", **given).verdict == "EQUIVALENT"
    torch.save({**state, "1.running_mean": state["1.running_mean"] + 0.1}, "b.pth")
    assert cs.prove("a.pth", "b.pth", **given).verdict == "DIFFERENT"
    torch.save({**state, "1.num_batches_tracked": torch.tensor(9)}, "b.pth")
    assert cs.prove("a.pth", "b.pth", **given).notes == ()


@pytest.mark.long
def test_outputs_of_nan_prove_nothing() -> None:
    llama("a")
    edit("a", lambda state: state["model.embed_tokens.weight"].fill_(float("nan")))
    with pytest.raises(cs.ConfigError, match="computes only NaN or infinite values for these inputs"):
        cs.prove("a", "a")


@pytest.mark.long
def test_what_the_next_layer_undoes_is_equivalent() -> None:
    """A scale of one matrix that the next one undoes: the blocks between differ, the output does not."""
    llama("a", mlp_bias=False)
    llama("b", mlp_bias=False)

    def scaled(state: dict[str, torch.Tensor]) -> None:
        state["model.layers.1.mlp.up_proj.weight"] *= 3
        state["model.layers.1.mlp.down_proj.weight"] /= 3

    edit("b", scaled)
    found = cs.prove("a", "b")
    assert found.verdict == "EQUIVALENT"
    assert "2 tensors differ by more than rounding explains" in " ".join(found.notes)


@pytest.mark.long
def test_a_checkpoint_that_does_not_load_says_so_with_an_option_that_there_is() -> None:
    llama("a", num_hidden_layers=2)
    llama("b", num_hidden_layers=3)
    Path("a/config.json").write_text(Path("b/config.json").read_text())
    with pytest.raises(cs.PlanError, match=r"a does not load into the network of a.config\.json") as caught:
        cs.prove("a", "b")
    assert "ckpt fits a a" in str(caught.value.hint)


def write_factory(name: str, hidden: int = 4) -> None:
    model = {"_target_": "torch.nn.Sequential", "_args_": []}
    first = {"_target_": "torch.nn.Linear", "in_features": 3, "out_features": hidden}
    second = {"_target_": "torch.nn.Linear", "in_features": hidden, "out_features": 2}
    modules = {"_target_": "torch.nn.ModuleList", "modules": [first, second]}
    Path(name).write_text(yaml.safe_dump({"model": {**model, "_args_": [first, second]} if modules else model}))


@pytest.mark.long
def test_a_factory_runs_on_given_inputs(ckpt: Any) -> None:
    write_factory("net.yaml")
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
    torch.save(net.state_dict(), "a.pth")
    net[1].bias.data += 1
    torch.save(net.state_dict(), "b.pth")
    save_file({"input": torch.randn(5, 3)}, "in.safetensors")
    found = cs.prove("a.pth", "b.pth", model="net.yaml", inputs="in.safetensors")
    assert found.drift is not None
    assert found.drift.name == "1"
    assert [one.key for one in found.changed] == ["1.bias"]
    assert cs.prove("a.pth", "a.pth", model="net.yaml", inputs="in.safetensors").verdict == "SAME"
    done = ckpt("prove", "a.pth", "b.pth", "--model", "net.yaml", "--inputs", "in.safetensors")
    assert done.code == 1
    assert done.out.startswith("DIFFERENT  the networks drift from 1 on")
    done = ckpt("prove", "a.pth", "b.pth", "--model", "net.yaml")
    assert done.code == 2
    assert "no random inputs can be made for Sequential" in done.err


@pytest.mark.long
def test_texts_are_tokenised_by_the_model_s_own_tokeniser() -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    llama("a")
    words = {word: row for row, word in enumerate(["[UNK]", "[PAD]", "the", "cat", "sat", "on", "mat"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]").save_pretrained("a")
    Path("texts.txt").write_text("the cat sat\n\nthe cat sat on the mat\n")
    found = cs.prove("a", "a", inputs="texts.txt")
    assert "input_ids (2, 6)" in found.inputs
    assert found.verdict == "SAME"


@pytest.mark.long
def test_texts_are_padded_if_the_tokeniser_has_neither_padding_nor_an_end() -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    llama("a")
    tokenizer = Tokenizer(models.WordLevel({"the": 0, "cat": 1, "sat": 2}, unk_token="the"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save("a/tokenizer.json")
    Path("texts.txt").write_text("the cat\nthe cat sat\n")
    found = cs.prove("a", "a", inputs="texts.txt")
    assert "attention_mask (2, 3)" in found.inputs
    assert found.verdict == "SAME"


@pytest.mark.long
def test_inputs_without_elements_are_an_error() -> None:
    llama("a")
    save_file({"input_ids": torch.zeros(0, 4, dtype=torch.int64)}, "none.safetensors")
    with pytest.raises(cs.ConfigError, match="none.safetensors has no inputs: input_ids has no elements"):
        cs.prove("a", "a", inputs="none.safetensors")


@pytest.mark.costly
@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("none.safetensors", None, "none.safetensors. does not exist"),
        ("data.csv", "a", "has an unknown suffix"),
        ("texts.txt", "hello\n", "AutoTokenizer cannot prepare these inputs"),
        ("texts.txt", "\n \n", "has no inputs"),
    ],
)
def test_inputs_that_cannot_be_used_are_an_error(name: str, content: str | None, why: str) -> None:
    llama("a")
    if content is not None:
        Path(name).write_text(content)
    with pytest.raises(cs.ConfigError, match=why):
        cs.prove("a", "a", inputs=name)


def test_a_package_that_is_missing_when_the_network_runs_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other inputs would not help; ESPnet imports editdistance only when a model runs."""
    monkeypatch.syspath_prepend(tmp_path)
    Path("late.py").write_text(
        "from torch import nn\n\nclass Late(nn.Linear):\n    def forward(self, x):\n        import absent_one\n"
    )
    Path("late.yaml").write_text("model: {_target_: late.Late, in_features: 2, out_features: 2}\n")
    torch.save(torch.nn.Linear(2, 2).state_dict(), "a.pth")
    save_file({"x": torch.ones(1, 2)}, "in.safetensors")
    with pytest.raises(cs.ConfigError, match="does not run: No module named 'absent_one'") as caught:
        cs.prove("a.pth", "a.pth", model="late.yaml", inputs="in.safetensors")
    assert caught.value.hint == "Install the package absent_one beside the library that builds the network."


def test_an_argument_that_the_network_lacks_is_an_error() -> None:
    write_factory("net.yaml")
    torch.save(torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2)).state_dict(), "a.pth")
    save_file({"waves": torch.randn(5, 3)}, "in.safetensors")
    with pytest.raises(cs.ConfigError, match="in.safetensors has an entry waves, but the forward of"):
        cs.prove("a.pth", "a.pth", model="net.yaml", inputs="in.safetensors")
    save_file({"input": torch.randn(5, 4)}, "in.safetensors")
    with pytest.raises(cs.ConfigError, match=r"the network of a\.pth does not run: mat1 and mat2"):
        cs.prove("a.pth", "a.pth", model="net.yaml", inputs="in.safetensors")


@pytest.mark.long
def test_a_checkpoint_without_a_network_or_a_tensor_is_an_error() -> None:
    llama("a")
    os.mkdir("b")
    state = load_file("a/model.safetensors")
    save_file(state, "b/x.safetensors")
    assert cs.prove("a", "b/x.safetensors").verdict == "SAME"  # the network of the other
    with pytest.raises(cs.ConfigError, match=r"no config\.json in the folder of b"):
        cs.prove("b/x.safetensors", "b/x.safetensors")
    del state["model.norm.weight"]
    save_file(state, "b/x.safetensors")
    with pytest.raises(cs.PlanError, match=r"model\.norm\.weight"):
        cs.prove("a", "b/x.safetensors")


@pytest.mark.long
def test_settings_that_differ_are_named() -> None:
    llama("a")
    llama("b", rms_norm_eps=0.1)
    found = cs.prove("a", "b")
    assert found.drift is not None
    assert found.drift.name == "model.layers.0"
    assert not found.changed
    assert any("rms_norm_eps" in note for note in found.notes)


@pytest.mark.long
def test_values_that_are_not_finite_are_different() -> None:
    llama("a")
    llama("b")
    path = Path("b/model.safetensors")
    state = load_file(path)
    state["model.layers.1.mlp.up_proj.weight"][0, 0] = float("nan")
    save_file(state, path, metadata={"format": "pt"})
    found = cs.prove("a", "b")
    assert found.verdict == "DIFFERENT"
    assert found.drift is not None
    assert found.drift.name == "model.layers.1"
    json.dumps(found.to_json(), allow_nan=False)


def test_the_command_prints_the_verdict_and_json(ckpt: Any) -> None:
    llama("a")
    cs.apply(cs.convert("a", dtype="bfloat16"), "b/")
    done = ckpt("prove", "a", "b")
    assert done.code == 0, done
    assert done.out.startswith("EQUIVALENT  the outputs are 0.")
    done = ckpt("prove", "a", "b", "--json")
    answer = json.loads(done.out)
    assert (answer["kind"], answer["verdict"], answer["drift"]) == ("ckpt.prove", "EQUIVALENT", None)
    assert answer["second"]["dtypes"] == ["bfloat16"]
    assert ckpt("prove", "a", "a").out.startswith("SAME  the outputs of the networks, and of 7 blocks in them, agree")
    every = ckpt("prove", "a", "b", "-v").out
    assert all(f"model.layers.{number}" in every for number in range(3))


@pytest.mark.long
@pytest.mark.costly
@pytest.mark.parametrize("scheme", ["mxfp4", "fp8-block", "nvfp4", "int8"])
def test_codes_with_scales_of_any_dtype_are_compared(scheme: str) -> None:
    """Those of mxfp4 are exponents, float8_e8m0fnu, and not codes."""
    llama("a")
    cs.apply(cs.convert("a", quantize=scheme), "b")
    assert cs.prove("a", "b").verdict == "EQUIVALENT"


@pytest.mark.long
def test_tensors_of_other_shapes_are_not_said_to_hide_a_difference() -> None:
    llama("a", hidden_size=128, intermediate_size=256, num_attention_heads=4, head_dim=32)
    plan = cs.resize("a", set={"hidden_size": 256})
    cs.apply(plan, "b")
    found = cs.prove("a", "b")
    assert found.verdict == "EQUIVALENT"
    assert not [note for note in found.notes if "do not show it" in note]


def test_a_source_that_does_not_exist_is_said_before_its_configuration() -> None:
    save_file({"a": torch.ones(2)}, "m.safetensors")
    with pytest.raises(cs.SourceError, match=r"^none\.safetensors does not exist"):
        cs.prove("none.safetensors", "m.safetensors")
    with pytest.raises(cs.ConfigError, match="no config.json in the folder of m.safetensors"):
        cs.prove("m.safetensors", "none.safetensors")


@pytest.mark.long
def test_weights_of_other_shapes_are_named_and_counted(ckpt: Any) -> None:
    llama("a")
    cs.apply(cs.resize("a", set={"intermediate_size": 48}), "b/")
    found = cs.prove("a", "b")
    assert found.drift is not None
    assert found.drift.name == "model.layers.0"
    own = {one.key: one.shapes for one in found.changed}
    assert own["model.layers.0.mlp.down_proj.weight"] == ((32, 64), (32, 48))
    names = ("gate_proj", "up_proj", "down_proj")
    assert {*own} == {f"model.layers.0.mlp.{name}.weight" for name in names}
    assert {*found.changed_elsewhere} == {f"model.layers.{at}.mlp.{name}.weight" for at in (1, 2) for name in names}
    said = " ".join(ckpt("prove", "a", "b").out.split())
    assert "model.layers.0.mlp.down_proj.weight has another shape: (32, 64) and (32, 48)" in said
    assert "6 weights of other blocks differ, too" in said
    assert "∞" not in said


@pytest.mark.long
def test_the_largest_difference_of_the_logits_is_printed(ckpt: Any) -> None:
    llama("a")
    llama("b")
    edit("b", lambda state: state["lm_head.weight"].mul_(1.5))
    found = cs.prove("a", "b")
    said = " ".join(ckpt("prove", "a", "b").out.split())
    assert f"apart, a single value by at most {found.output.distance.largest:.2g}" in said


@pytest.mark.long
def test_nan_is_named_and_not_an_infinite_share(ckpt: Any) -> None:
    llama("a")
    llama("b")
    edit("b", lambda state: state["model.layers.1.mlp.up_proj.weight"][0].fill_(float("nan")))
    said = " ".join(ckpt("prove", "a", "b").out.split())
    assert "the networks drift from model.layers.1 on: values there are NaN or infinite in only one of the two" in said
    assert "model.layers.1.mlp.up_proj.weight has values that are NaN or infinite in only one of the two" in said
    assert "the most likely answers cannot be compared" in said
    assert "∞" not in said


@pytest.mark.long
def test_settings_are_no_cause_if_no_network_drifts() -> None:
    llama("a")
    cs.apply(cs.resize("a", set={"num_key_value_heads": 4}), "b/")
    found = cs.prove("a", "b")
    assert found.verdict == "SAME"
    assert not found.notes
    llama("c", rope_parameters={"rope_type": "default", "rope_theta": 10000.0}, max_position_embeddings=64)
    llama(
        "d", rope_parameters={"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}, max_position_embeddings=64
    )
    found = cs.prove("c", "d")
    assert found.verdict == "SAME"
    [note] = found.notes
    assert note.startswith("the config.json files differ in settings that do not change the outputs for these inputs: ")


@pytest.mark.long
def test_most_likely_answers_of_gpt_2_are_compared() -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=96)).save_pretrained("a")
    cs.apply(cs.convert("a", dtype="bfloat16"), "b/")
    found = cs.prove("a", "b")
    assert found.prediction is not None
    assert found.prediction.places == 4 * 32


@pytest.mark.long
def test_a_block_that_is_not_compared_is_named_once() -> None:
    llama("a")
    llama("b", num_attention_heads=2)
    found = cs.prove("a", "b")
    [note] = [one for one in found.notes if one.startswith("blocks that are not compared")]
    assert note.count("model.rotary_emb") == 1


@pytest.mark.long
def test_an_equivalent_output_is_shown_block_by_block_but_not_at_any_length(ckpt: Any) -> None:
    llama("a", num_hidden_layers=2)
    said = ckpt("convert", "a", "--dtype", "bf16", "-o", "b/", "--prove").out
    assert all(f"model.layers.{number} " in said for number in range(2))
    llama("deep", num_hidden_layers=30)
    cs.apply(cs.convert("deep", dtype="bfloat16"), "cast/")
    said = ckpt("prove", "deep", "cast").out
    assert 8 <= said.count("model.layers.") <= 12
    assert "more (-v shows all)" in said


def test_networks_of_one_block_have_no_other_names() -> None:
    notes: list[str] = []
    outputs = {MAIN: torch.ones(2)}
    assert list(_pairs(outputs, outputs, None, notes)) == [MAIN]
    assert not notes


@pytest.mark.long
def test_a_configuration_that_is_not_used_is_said() -> None:
    llama("a")
    said = "both checkpoints have a config.json, so --model is not used"
    assert said in cs.prove("a", "a", model="a/config.json").notes
    assert said not in cs.prove("a", "a/model.safetensors").notes


@pytest.mark.long
def test_it_is_said_whose_configuration_is_used_for_a_file_without_one() -> None:
    llama("a")
    Path("alone").mkdir()
    Path("a/model.safetensors").rename("alone/m.safetensors")
    llama("a")
    said = "alone/m.safetensors has no config.json: its network is built with the configuration of a"
    for pair in (("a", "alone/m.safetensors"), ("alone/m.safetensors", "a")):
        assert said in cs.prove(*pair).notes
        assert said not in cs.prove(*pair, model="a/config.json").notes
    assert cs.prove("a", "a").notes == ()


@pytest.mark.long
def test_the_configuration_of_a_component_is_found_in_a_pipeline() -> None:
    index = {"_class_name": "Pipeline", "text_encoder": ["transformers", "LlamaForCausalLM"]}
    for folder in ("one", "two"):
        llama(f"{folder}/text_encoder", num_hidden_layers=1)
        Path(folder, "model_index.json").write_text(json.dumps(index))
    found = cs.prove("one", "two", root="text_encoder")
    assert (found.verdict, found.notes) == ("SAME", ())
    assert cs.loss_barrier("one", "two", root="text_encoder", points=3).notes


def test_a_whole_pipeline_names_the_components_that_can_run(ckpt: Any) -> None:
    parts = {"text_encoder": "LlamaForCausalLM", "text_encoder_2": "LlamaForCausalLM", "tokenizer": "LlamaTokenizer"}
    index = {**{name: ["transformers", kind] for name, kind in parts.items()}, "unet": ["diffusers", "UNet"]}
    for name in ("text_encoder", "text_encoder_2"):
        llama(f"p/{name}", num_hidden_layers=1)
    Path("p/unet").mkdir()
    Path("p/unet/config.json").write_text(json.dumps({"_class_name": "UNet", "_diffusers_version": "0.35.0"}))
    save_file({"w": torch.ones(2)}, "p/unet/diffusion_pytorch_model.safetensors")
    Path("p/model_index.json").write_text(json.dumps(index))
    said = "p is a diffusers pipeline of several networks, but one network is run"
    for verb in (
        ["prove", "p", "p"],
        ["prove", "--barrier", "p", "p"],
        ["stats", "p", "--gram", "-o", "o.safetensors"],
    ):
        err = " ".join(ckpt(*verb).err.split())
        assert (said in err, "component of transformers: --root text_encoder or --root text_encoder_2." in err) == (
            True,
            True,
        ), err
    with pytest.raises(
        cs.ConfigError, match=r"unet.config.json is of a network of diffusers \(UNet\), which ckpt cannot"
    ):
        cs.prove("p", "p", root="unet")
    Path("p/unet").rename("p/vae")
    shutil.copytree("p/vae", "p/unet")
    Path("p/model_index.json").write_text(json.dumps(dict.fromkeys(("unet", "vae"), index["unet"])))
    assert "It has no component of transformers" in ckpt("prove", "p", "p").err
