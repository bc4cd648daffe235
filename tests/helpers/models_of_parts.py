"""Configurations of small models of several parts, such as a language model and an image tower."""

from __future__ import annotations

from typing import Any

from .transformers_models import BERT

TEXT = {
    "vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 32,
}  # fmt: skip
IMAGE = {
    "hidden_size": 12, "intermediate_size": 20, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 8,
    "patch_size": 4,
}  # fmt: skip
OF_TEXT = {**TEXT, "model_type": "llama"}
OF_IMAGE = {**IMAGE, "model_type": "clip_vision_model"}
SMALL = {name: size for name, size in TEXT.items() if name != "head_dim"}
QWEN = {"depth": 2, "embed_dim": 16, "hidden_size": 16, "num_heads": 2, "patch_size": 4, "mlp_ratio": 1}
PARTS: dict[str, dict[str, Any]] = {
    "LlavaForConditionalGeneration": {"model_type": "llava", "text_config": OF_TEXT, "vision_config": OF_IMAGE},
    "LlavaNextForConditionalGeneration": {
        "model_type": "llava_next", "text_config": {**OF_TEXT, "model_type": "mistral"}, "vision_config": OF_IMAGE,
        "image_grid_pinpoints": [[8, 16]],
    },
    "VipLlavaForConditionalGeneration": {
        "model_type": "vipllava", "text_config": OF_TEXT, "vision_config": OF_IMAGE, "vision_feature_layers": [-1, -2],
    },
    "PaliGemmaForConditionalGeneration": {
        "model_type": "paligemma", "projection_dim": 16, "text_config": {**TEXT, "model_type": "gemma"},
        "vision_config": {**IMAGE, "model_type": "siglip_vision_model", "projection_dim": 16},
    },
    "Idefics3ForConditionalGeneration": {
        "model_type": "idefics3", "scale_factor": 2, "text_config": OF_TEXT, "pad_token_id": 0,
        "vision_config": {**IMAGE, "model_type": "idefics3_vision"},
    },
    "Qwen2VLForConditionalGeneration": {
        "model_type": "qwen2_vl", "text_config": {**SMALL, "model_type": "qwen2_vl_text"},
        "vision_config": {**QWEN, "model_type": "qwen2_vl"},
    },
    "EncoderDecoderModel": {
        "model_type": "encoder-decoder", "encoder": BERT,
        "decoder": {**BERT, "is_decoder": True, "add_cross_attention": True},
    },
}  # fmt: skip
