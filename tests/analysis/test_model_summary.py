"""What a model is, in a few words."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import ckptsurgeon as cs
from ckptsurgeon.analysis.model_summary import summary_of_config, summary_of_metadata


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"architectures": ["LlamaForCausalLM"], "num_hidden_layers": 32, "hidden_size": 4096, "num_attention_heads": 32,
          "num_key_value_heads": 8}, "LlamaForCausalLM, 32 layers, 4096 wide, 32 heads (8 of keys and values)"),
        ({"model_type": "gpt2", "n_layer": 12, "n_embd": 768, "n_head": 12}, "gpt2, 12 layers, 768 wide, 12 heads"),
        ({"model_type": "x", "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 4},
         "x, 1 layer, 4 heads"),
        ({"architectures": ["MixtralForCausalLM"], "num_hidden_layers": 2, "num_local_experts": 8,
          "num_experts_per_tok": 2}, "MixtralForCausalLM, 2 layers, 8 experts (2 per token)"),
        ({"architectures": ["WhisperForConditionalGeneration"], "encoder_layers": 4, "decoder_layers": 6, "d_model": 384},
         "WhisperForConditionalGeneration, 4 + 6 layers (encoder, decoder), 384 wide"),
        ({"architectures": ["LlavaForConditionalGeneration"], "text_config": {"num_hidden_layers": 3, "hidden_size": 8}},
         "LlavaForConditionalGeneration, 3 layers, 8 wide"),
        ({"architectures": ["A\x1b[31m"], "hidden_size": "8", "num_hidden_layers": True, "num_attention_heads": -1},
         "A\\x1b[31m"),
    ],
)  # fmt: skip
def test_a_configuration_in_words(config: dict[str, Any], said: str) -> None:
    assert str(summary_of_config(config)) == said


@pytest.mark.parametrize(
    "config", [{}, {"hidden_size": 8}, {"architectures": [3], "model_type": 5}, {"architectures": {}}]
)
def test_a_configuration_that_names_nothing(config: dict[str, Any]) -> None:
    assert summary_of_config(config) is None


def test_the_metadata_of_a_gguf() -> None:
    metadata = {
        "general.architecture": "llama", "llama.block_count": "2", "llama.embedding_length": "64",
        "llama.attention.head_count": "4", "llama.attention.head_count_kv": "2", "general.name": "x",
    }  # fmt: skip
    assert str(summary_of_metadata("gguf", metadata)) == "llama, 2 layers, 64 wide, 4 heads (2 of keys and values)"
    assert summary_of_metadata("gguf", {}) is None


def test_the_sizes_of_another_model_in_a_gguf_are_not_taken() -> None:
    metadata = {"general.architecture": "llama", "llama.block_count": "32", "clip.block_count": "5"}
    assert str(summary_of_metadata("gguf", metadata)) == "llama, 32 layers"
    assert str(summary_of_metadata("gguf", dict(reversed(metadata.items())))) == "llama, 32 layers"


def test_a_number_of_a_gguf_with_thousands_of_digits_is_no_size() -> None:
    metadata = {"general.architecture": "llama", "llama.block_count": "9" * 5000, "llama.embedding_length": "64"}
    assert str(summary_of_metadata("gguf", metadata)) == "llama, 64 wide"


def test_inspect_shows_it(ckpt: Any) -> None:
    os.mkdir("net")
    save_file({"w": torch.ones(2)}, "net/model.safetensors")
    Path("net/config.json").write_text(json.dumps({"model_type": "toy", "num_hidden_layers": 2, "hidden_size": 16}))
    assert "model  toy, 2 layers, 16 wide" in ckpt("inspect", "net").out
    found = cs.inspect("net")
    assert found.model is not None
    assert found.to_json()["model"]["layers"] == 2
    save_file({"w": torch.ones(2)}, "alone.safetensors")
    assert cs.inspect("alone.safetensors").to_json()["model"] is None


GOLDEN = Path(__file__).parents[2] / "fixtures" / "golden"


@pytest.mark.parametrize(
    ("path", "said"),
    [
        (
            "whisper_cpp/tiny.bin",
            "Whisper, 1 + 1 layers (encoder, decoder), 32 wide, 2 heads, 35.6 k parameters, float16, float32",
        ),
        ("ctranslate2/int8", "WhisperSpec, 2 heads, 3.6 k parameters, CTranslate2 8 bits, float32"),
    ],
)
def test_files_of_speech_engines_say_what_they_are(path: str, said: str) -> None:
    assert str(cs.inspect(GOLDEN / path).model) == said
