"""Shapes of single tensors against config.json, by model type: models of transformers get no note, changed ones one."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest

from ckptsurgeon.api.model_folder.folder import ModelFolder
from ckptsurgeon.api.model_folder.folder_checks import weights_notes
from ckptsurgeon.api.model_folder.weights.shape_checks import DescribedTensor
from ckptsurgeon.planning.target import Companion

SMALL = {
    "hidden_size": 16, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 50,
    "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
ENCODER = {one: SMALL[one] for one in SMALL if one != "num_key_value_heads"}
SOUND = {
    **ENCODER, "conv_dim": [12, 10, 8], "conv_kernel": [5, 3, 2], "conv_stride": [2, 2, 2], "num_conv_pos_embeddings": 6,
    "num_conv_pos_embedding_groups": 4, "num_feat_extract_layers": 3, "codevector_dim": 12, "proj_codevector_dim": 14,
    "num_codevectors_per_group": 5,
}  # fmt: skip
IMAGES = {
    "hidden_size": 12, "intermediate_size": 20, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 12,
    "patch_size": 4, "projection_dim": 6,
}  # fmt: skip
TEXTS = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 30,
    "max_position_embeddings": 9, "projection_dim": 6, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
BART = {
    "d_model": 16, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2, "decoder_attention_heads": 2,
    "vocab_size": 50, "encoder_ffn_dim": 20, "decoder_ffn_dim": 24, "max_position_embeddings": 20, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2, "forced_eos_token_id": 2,
}  # fmt: skip
SMALL_MODELS: dict[str, dict[str, Any]] = {
    "LlamaForCausalLM": {**SMALL, "head_dim": 6},
    "MistralForCausalLM": SMALL,
    "Qwen2ForCausalLM": SMALL,
    "Qwen3ForCausalLM": {**SMALL, "head_dim": 8},
    "GemmaForCausalLM": {**SMALL, "head_dim": 8},
    "Gemma2ForCausalLM": {**SMALL, "head_dim": 8},
    "Gemma3ForCausalLM": {**SMALL, "head_dim": 8},
    "MixtralForCausalLM": {**SMALL, "num_local_experts": 2},
    "Qwen2MoeForCausalLM": {**SMALL, "num_experts": 4, "moe_intermediate_size": 10},
    "Phi3ForCausalLM": SMALL,
    "GPT2LMHeadModel": {"n_embd": 16, "n_head": 4, "n_layer": 2, "n_positions": 20, "vocab_size": 50, "n_inner": 24,
                        "add_cross_attention": True, "bos_token_id": 1, "eos_token_id": 1},
    "OPTForCausalLM": {"hidden_size": 16, "ffn_dim": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 50,
                       "word_embed_proj_dim": 12, "max_position_embeddings": 20, "do_layer_norm_before": False},
    "GPTNeoXForCausalLM": ENCODER,
    "FalconForCausalLM": {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 50,
                          "bos_token_id": 1, "eos_token_id": 2},
    "AlbertForPreTraining": {**ENCODER, "embedding_size": 10},
    "DistilBertForMaskedLM": {"dim": 16, "hidden_dim": 40, "n_layers": 2, "n_heads": 4, "vocab_size": 50},
    "T5ForConditionalGeneration": {"d_model": 16, "d_kv": 6, "num_heads": 2, "d_ff": 24, "num_layers": 2, "vocab_size": 50},
    "MT5EncoderModel": {"d_model": 16, "d_kv": 6, "num_heads": 2, "d_ff": 24, "num_layers": 2, "vocab_size": 50,
                        "feed_forward_proj": "gated-gelu"},
    "BartForConditionalGeneration": BART,
    "MBartForConditionalGeneration": BART,
    "MarianMTModel": {**BART, "decoder_start_token_id": 0},
    "PegasusForConditionalGeneration": BART,
    "BertForPreTraining": ENCODER,
    "RobertaForMaskedLM": ENCODER,
    "ElectraForMaskedLM": {**ENCODER, "embedding_size": 10},
    "ElectraForPreTraining": {**ENCODER, "embedding_size": 10},
    "WhisperForConditionalGeneration": {
        "d_model": 16, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2, "vocab_size": 50,
        "decoder_attention_heads": 2, "encoder_ffn_dim": 20, "decoder_ffn_dim": 24, "num_mel_bins": 10,
        "max_source_positions": 30, "max_target_positions": 12, "pad_token_id": 0, "bos_token_id": 1,
        "eos_token_id": 2, "decoder_start_token_id": 3, "suppress_tokens": None, "begin_suppress_tokens": None,
    },
    "Wav2Vec2ForCTC": SOUND,
    "Wav2Vec2ForPreTraining": SOUND,
    "Wav2Vec2Model": {**SOUND, "add_adapter": True, "feat_extract_norm": "layer", "do_stable_layer_norm": True},
    "HubertForCTC": {**SOUND, "conv_bias": True, "feat_extract_norm": "layer"},
    "WavLMForCTC": SOUND,
    "CLIPModel": {"vision_config": IMAGES, "text_config": TEXTS, "projection_dim": 6},
    "CLIPVisionModel": IMAGES,
    "SiglipModel": {"vision_config": IMAGES, "text_config": {**TEXTS, "projection_size": 12}},
    "ViTForImageClassification": {**IMAGES, "num_channels": 1},
    "LlavaForConditionalGeneration": {
        "vision_config": {**IMAGES, "model_type": "clip_vision_model"}, "image_token_id": 5,
        "text_config": {**SMALL, "model_type": "llama"}, "vision_feature_layer": [-2, -1],
    },
}  # fmt: skip
Shape = tuple[int, ...]


@cache
def small(name: str) -> tuple[dict[str, Shape], dict[str, Any], dict[str, Any]]:
    """The shapes of a small model, and the two forms of its configuration: with and without default values."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    kind = getattr(transformers, name)
    config = kind.config_class(**SMALL_MODELS[name])
    config.architectures = [name]
    with torch.device("meta"):
        model = kind(config)
    tied = getattr(model, "all_tied_weights_keys", {})
    shapes = {key: tuple(one.shape) for key, one in model.state_dict().items() if key not in tied}
    both = (json.loads(model.config.to_json_string(use_diff=one)) for one in (False, True))
    return shapes, *both


def notes(shapes: dict[str, Shape], config: dict[str, Any]) -> list[str]:
    folder = ModelFolder("", (Companion("config.json", text=json.dumps(config)),))
    tensors = [DescribedTensor(key, "float32", shape) for key, shape in shapes.items()]
    return list(weights_notes(tensors, folder, folder))


@pytest.mark.costly
@pytest.mark.parametrize("name", SMALL_MODELS)
def test_a_model_of_transformers_gets_no_note(name: str) -> None:
    shapes, whole, short = small(name)
    for config in (whole, short):
        assert not [one for one in notes(shapes, config) if "there is no row for these ids" not in one]


def turned(shape: Shape) -> Shape:
    return shape[::-1]


def longer(shape: Shape) -> Shape:
    return (*shape[:-1], shape[-1] + 2)


CHANGED: list[tuple[str, str, Callable[[Shape], Shape]]] = [
    ("LlamaForCausalLM", "lm_head.weight", turned),
    ("LlamaForCausalLM", "model.norm.weight", longer),
    ("Qwen2ForCausalLM", "model.layers.1.mlp.up_proj.weight", turned),
    ("GemmaForCausalLM", "model.layers.1.input_layernorm.weight", longer),
    ("Phi3ForCausalLM", "model.layers.0.self_attn.qkv_proj.weight", turned),
    ("Phi3ForCausalLM", "model.layers.1.mlp.gate_up_proj.weight", longer),
    ("Phi3ForCausalLM", "model.norm.weight", longer),
    ("GPT2LMHeadModel", "transformer.h.1.mlp.c_fc.weight", turned),
    ("GPT2LMHeadModel", "transformer.h.1.attn.c_attn.weight", turned),
    ("GPT2LMHeadModel", "transformer.h.0.mlp.c_proj.weight", turned),
    ("GPT2LMHeadModel", "transformer.ln_f.weight", longer),
    ("BertForPreTraining", "cls.predictions.transform.dense.weight", longer),
    ("BertForPreTraining", "bert.encoder.layer.1.intermediate.dense.weight", turned),
    ("RobertaForMaskedLM", "lm_head.dense.weight", longer),
    ("ElectraForMaskedLM", "generator_predictions.dense.weight", turned),
    ("WhisperForConditionalGeneration", "model.encoder.conv1.weight", longer),
    ("WhisperForConditionalGeneration", "model.encoder.conv2.weight", longer),
    ("WhisperForConditionalGeneration", "model.encoder.embed_positions.weight", turned),
    ("WhisperForConditionalGeneration", "model.decoder.embed_positions.weight", longer),
    ("WhisperForConditionalGeneration", "model.decoder.layers.1.fc2.weight", turned),
    ("Wav2Vec2ForCTC", "wav2vec2.feature_extractor.conv_layers.1.conv.weight", lambda shape: (shape[0], 3, shape[2])),
    ("Wav2Vec2ForCTC", "wav2vec2.feature_projection.projection.weight", turned),
    ("Wav2Vec2ForCTC", "wav2vec2.encoder.pos_conv_embed.conv.parametrizations.weight.original0", longer),
    ("Wav2Vec2ForPreTraining", "project_q.weight", turned),
    ("HubertForCTC", "hubert.feature_extractor.conv_layers.2.layer_norm.weight", longer),
    ("CLIPModel", "vision_model.embeddings.patch_embedding.weight", longer),
    ("CLIPModel", "visual_projection.weight", turned),
    ("CLIPModel", "text_projection.weight", longer),
    ("CLIPModel", "vision_model.embeddings.position_embedding.weight", turned),
    ("CLIPModel", "text_model.embeddings.position_embedding.weight", turned),
    ("CLIPModel", "text_model.embeddings.token_embedding.weight", turned),
    ("SiglipModel", "vision_model.embeddings.position_embedding.weight", turned),
    ("ViTForImageClassification", "vit.embeddings.position_embeddings", longer),
    ("LlavaForConditionalGeneration", "model.multi_modal_projector.linear_1.weight", turned),
    ("LlavaForConditionalGeneration", "model.multi_modal_projector.linear_2.weight", longer),
    ("LlavaForConditionalGeneration", "lm_head.weight", turned),
    ("LlavaForConditionalGeneration", "model.language_model.layers.1.mlp.up_proj.weight", turned),
    ("LlavaForConditionalGeneration", "model.vision_tower.encoder.layers.1.mlp.fc1.weight", turned),
    ("CLIPModel", "text_model.encoder.layers.1.self_attn.q_proj.bias", longer),
    ("Wav2Vec2ForCTC", "wav2vec2.encoder.layers.1.attention.k_proj.weight", longer),
    ("OPTForCausalLM", "model.decoder.layers.1.fc1.weight", turned),
    ("GPTNeoXForCausalLM", "lm_head.weight", turned),
    ("FalconForCausalLM", "transformer.ln_f.bias", longer),
    ("AlbertForPreTraining", "albert.encoder.embedding_hidden_mapping_in.weight", turned),
    ("DistilBertForMaskedLM", "vocab_transform.bias", longer),
    ("T5ForConditionalGeneration", "decoder.block.1.layer.1.EncDecAttention.o.weight", turned),
    ("MT5EncoderModel", "encoder.block.1.layer.1.DenseReluDense.wi_1.weight", turned),
    ("BartForConditionalGeneration", "model.decoder.layers.1.encoder_attn.q_proj.bias", longer),
    ("PegasusForConditionalGeneration", "model.encoder.layer_norm.weight", longer),
]


@pytest.mark.parametrize(("name", "key", "change"), CHANGED)
def test_another_shape_is_noted(name: str, key: str, change: Callable[[Shape], Shape]) -> None:
    shapes, whole, _ = small(name)
    found = notes({**shapes, key: change(shapes[key])}, whole)
    assert [one for one in found if key in one and "transformers cannot load this model" in one], found


def test_a_transposed_matrix_is_called_so() -> None:
    shapes, whole, _ = small("GPT2LMHeadModel")
    key = "transformer.h.0.mlp.c_fc.weight"
    found = notes({**shapes, key: (24, 16)}, whole)
    said = f"config.json says (16, 24) (n_embd, n_inner), but {key} is (24, 16), transposed"
    assert f"{said}: transformers cannot load this model" in found


def test_a_norm_that_is_missing_is_noted() -> None:
    for name, key in (("LlamaForCausalLM", "model.norm.weight"), ("Phi3ForCausalLM", "model.norm.weight"), ("GPT2LMHeadModel", "transformer.ln_f.weight")):  # fmt: skip
        shapes, whole, _ = small(name)
        assert notes({one: shapes[one] for one in shapes if not one.startswith(key.rpartition(".")[0])}, whole)
