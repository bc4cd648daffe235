"""Small models of many families of transformers, with the values that their own initialisation draws."""

from __future__ import annotations

from pathlib import Path
from typing import Any

__all__ = ["FAMILIES", "SAMPLE", "save_small"]

SIZES: dict[str, Any] = {
    "hidden_size": 32, "d_model": 32, "n_embd": 32, "dim": 32, "embedding_size": 32, "intermediate_size": 48,
    "ffn_dim": 48, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "d_ff": 48, "hidden_dim": 48, "n_inner": 48,
    "ffn_hidden_size": 48, "d_kv": 8, "head_dim": 8, "num_attention_heads": 4, "num_heads": 4, "n_head": 4,
    "n_heads": 4, "num_key_value_heads": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
    "num_hidden_layers": 4, "num_layers": 4, "n_layer": 4, "n_layers": 4, "encoder_layers": 2, "decoder_layers": 2,
    "num_decoder_layers": 4, "vocab_size": 96, "max_position_embeddings": 64, "n_positions": 64,
    "max_source_positions": 64, "max_target_positions": 64, "moe_intermediate_size": 16, "num_experts": 4,
    "num_local_experts": 4, "num_experts_per_tok": 2, "n_routed_experts": 4, "shared_expert_intermediate_size": 16,
    "image_size": 32, "patch_size": 8, "state_size": 4, "word_embed_proj_dim": 32, "rotary_dim": 4, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1, "layer_types": None, "attention_types": None,
    "mamba_d_state": 4, "mamba_expand": 2, "mamba_dt_rank": 4, "rotary_pct": 0.5, "conv_dim": (16, 16),
    "conv_stride": (5, 2), "conv_kernel": (10, 3), "num_feat_extract_layers": 2, "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2, "forced_eos_token_id": 2, "type_vocab_size": 2, "expand_ratio": 2,
    "sep_token_id": 2, "cls_token_id": 1, "mask_token_id": 3, "projection_dim": 32,
}  # fmt: skip
"""Sizes of small models, by the names that configurations give them."""
OWN: dict[str, dict[str, Any]] = {
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "mamba": {"conv_kernel": 4, "intermediate_size": 64},
    "t5": {"decoder_start_token_id": 0},
    "whisper": {"begin_suppress_tokens": None, "suppress_tokens": None},
    "swin": {"embed_dim": 16, "depths": [2, 2, 4], "num_heads": [2, 4, 4], "window_size": 2, "patch_size": 4},
    "swinv2": {"embed_dim": 16, "depths": [2, 2, 4], "num_heads": [2, 4, 4], "window_size": 2, "patch_size": 4},
    "convnext": {"hidden_sizes": [16, 32, 64, 128], "depths": [2, 2, 3, 2], "patch_size": 4},
    "convnextv2": {"hidden_sizes": [16, 32, 64, 128], "depths": [2, 2, 3, 2], "patch_size": 4},
    "segformer": {
        "hidden_sizes": [16, 32, 32, 64],
        "num_attention_heads": [1, 2, 2, 4],
        "decoder_hidden_size": 32,
        "patch_sizes": [7, 3, 3, 3],
    },
    "dpt": {"backbone_out_indices": [0, 1, 2, 3], "neck_hidden_sizes": [16, 16, 32, 32], "fusion_hidden_size": 16},
    "resnet": {"embedding_size": 16, "hidden_sizes": [16, 32, 64], "depths": [2, 2, 2]},
    "vit_mae": {
        "decoder_hidden_size": 32,
        "decoder_num_hidden_layers": 3,
        "decoder_num_attention_heads": 4,
        "decoder_intermediate_size": 48,
    },
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1},
}
FAMILIES = {
    "llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM", "mixtral": "MixtralForCausalLM",
    "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM", "qwen2_moe": "Qwen2MoeForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM", "gemma": "GemmaForCausalLM", "gemma2": "Gemma2ForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM", "phi": "PhiForCausalLM", "phi3": "Phi3ForCausalLM",
    "gpt2": "GPT2LMHeadModel", "gpt_neo": "GPTNeoForCausalLM", "gpt_neox": "GPTNeoXForCausalLM",
    "gptj": "GPTJForCausalLM", "opt": "OPTForCausalLM", "bloom": "BloomForCausalLM", "falcon": "FalconForCausalLM",
    "stablelm": "StableLmForCausalLM", "olmo": "OlmoForCausalLM", "olmo2": "Olmo2ForCausalLM",
    "cohere": "CohereForCausalLM", "starcoder2": "Starcoder2ForCausalLM", "granite": "GraniteForCausalLM",
    "mamba": "MambaForCausalLM", "jamba": "JambaForCausalLM", "gpt_oss": "GptOssForCausalLM",
    "bert": "BertForMaskedLM", "roberta": "RobertaForMaskedLM", "electra": "ElectraForMaskedLM",
    "distilbert": "DistilBertForMaskedLM", "albert": "AlbertForMaskedLM", "xlm-roberta": "XLMRobertaForMaskedLM",
    "modernbert": "ModernBertForMaskedLM", "t5": "T5ForConditionalGeneration", "bart": "BartForConditionalGeneration",
    "marian": "MarianMTModel", "whisper": "WhisperForConditionalGeneration", "vit": "ViTForImageClassification",
    "wav2vec2": "Wav2Vec2ForCTC", "clip_text_model": "CLIPTextModel", "smollm3": "SmolLM3ForCausalLM",
    "nemotron": "NemotronForCausalLM",
    "clip_vision_model": "CLIPVisionModel", "siglip_vision_model": "SiglipVisionModel",
    "siglip_text_model": "SiglipTextModel", "dinov2": "Dinov2ForImageClassification",
    "dinov2_with_registers": "Dinov2WithRegistersModel", "deit": "DeiTForImageClassification",
    "beit": "BeitForImageClassification", "swin": "SwinForImageClassification",
    "swinv2": "Swinv2ForImageClassification", "convnext": "ConvNextForImageClassification",
    "convnextv2": "ConvNextV2ForImageClassification", "segformer": "SegformerForSemanticSegmentation",
    "dpt": "DPTForDepthEstimation", "resnet": "ResNetForImageClassification", "vit_mae": "ViTMAEForPreTraining",
}  # fmt: skip
"""Model types, and the class that is built of each."""
SAMPLE = ("llama", "mixtral", "gemma2", "gpt2", "bert", "t5", "bart", "whisper", "vit", "wav2vec2", "opt", "falcon")
"""The families of the tests that always run."""


def save_small(kind: str, folder: Path) -> Path:
    """Build a small model of a family, initialised as transformers does, and save it with a card."""
    import torch
    import transformers

    made_by = getattr(transformers, FAMILIES[kind])
    default = vars(made_by.config_class())
    sizes = {name: value for name, value in SIZES.items() if name in default and value is not None}
    torch.manual_seed(0)
    made_by(made_by.config_class(**{**sizes, **OWN.get(kind, {})})).eval().save_pretrained(folder)
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    return folder
