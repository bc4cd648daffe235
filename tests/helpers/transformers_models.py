"""Models of transformers that are small enough to test with, and their folders."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

BERT = {
    "model_type": "bert", "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
    "vocab_size": 50, "max_position_embeddings": 20,
}  # fmt: skip
WAV2VEC2 = {
    "model_type": "wav2vec2", "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 32, "vocab_size": 12, "conv_dim": [8, 8], "conv_stride": [5, 2], "conv_kernel": [10, 3],
    "num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2,
}  # fmt: skip
WHISPER = {
    "model_type": "whisper", "d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "vocab_size": 50, "pad_token_id": 0,
    "bos_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 1, "max_source_positions": 20,
    "max_target_positions": 20,
}  # fmt: skip
GPT2 = {
    "model_type": "gpt2", "n_embd": 16, "n_layer": 2, "n_head": 2, "vocab_size": 50, "n_positions": 20,
    "bos_token_id": 1, "eos_token_id": 1,
}  # fmt: skip
T5 = {"model_type": "t5", "d_model": 16, "d_ff": 32, "d_kv": 8, "num_layers": 1, "num_heads": 2, "vocab_size": 50}
MIXTRAL = {
    "model_type": "mixtral", "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 2, "intermediate_size": 24, "vocab_size": 50, "num_local_experts": 12,
}  # fmt: skip

ESM = {
    "model_type": "esm", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32,
    "vocab_size": 50, "max_position_embeddings": 20, "pad_token_id": 1, "mask_token_id": 2,
}  # fmt: skip
MOBILEBERT = {
    "model_type": "mobilebert", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
    "intermediate_size": 32, "embedding_size": 8, "intra_bottleneck_size": 8, "vocab_size": 50,
    "max_position_embeddings": 20,
}  # fmt: skip
PARAKEET = {
    "model_type": "parakeet_ctc", "vocab_size": 50, "pad_token_id": 49,
    "encoder_config": {
        "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32,
        "subsampling_conv_channels": 4, "num_mel_bins": 16,
    },
}  # fmt: skip
CLIP = {
    "model_type": "clip", "projection_dim": 8,
    "text_config": {
        "vocab_size": 50, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
        "max_position_embeddings": 10, "bos_token_id": 2, "eos_token_id": 3,
    },
    "vision_config": {
        "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 8,
        "patch_size": 4,
    },
}  # fmt: skip


def config(fields: dict[str, Any], architecture: str = "", **more: Any) -> dict[str, Any]:
    listed = {"architectures": [architecture]} if architecture else {}
    return {**fields, **listed, **more}


def write_config(path: str | Path, fields: dict[str, Any], architecture: str = "", **more: Any) -> Path:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(json.dumps(config(fields, architecture, **more)))
    return Path(path)


def section(text: str, path: str = "dst.yaml") -> str:
    Path(path).write_text(f"model: {{{text}}}\n")
    return path


def same(model: Any, other: Any, prefix: str = "", theirs: str = "") -> None:
    import torch

    state = other.state_dict()
    for key, value in model.state_dict().items():
        if key.startswith(prefix):
            assert torch.equal(value, state[theirs + key.removeprefix(prefix)]), key


def model_of(fields: dict[str, Any], architecture: str, **more: Any) -> Any:
    """The model as transformers itself makes it, quietly."""
    import transformers

    quiet()
    loaded = transformers.CONFIG_MAPPING[fields["model_type"]].from_dict({**fields, **more})
    return getattr(transformers, architecture)._from_config(loaded)


def saved(folder: str, fields: dict[str, Any], architecture: str, **more: Any) -> Any:
    """A model saved as transformers saves it."""
    model = model_of(fields, architecture, **more)
    model.save_pretrained(folder)
    return model


def opened(architecture: str, folder: str) -> tuple[Any, set[str]]:
    """The model that from_pretrained makes of a folder, and every key that it found fault with."""
    import transformers

    quiet()
    model, info = getattr(transformers, architecture).from_pretrained(folder, output_loading_info=True)
    return model, {str(key) for found in info.values() for key in found}


def quiet() -> None:
    from transformers.utils import logging as ours

    ours.set_verbosity(logging.ERROR)
    ours.disable_progress_bar()
