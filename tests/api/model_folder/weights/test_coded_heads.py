"""An output layer that is stored as codes, though the configuration says that the embedding is the output layer."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

import ckptsurgeon as cs

from ..test_model_folders import model

PACKED = {
    "lm_head.weight_packed": torch.zeros(8, 1, dtype=torch.int32),
    "lm_head.weight_scale": torch.ones(8, 2),
    "lm_head.weight_shape": torch.tensor([8, 4]),
}
GPTQ = {
    "lm_head.qweight": torch.zeros(1, 8, dtype=torch.int32),
    "lm_head.qzeros": torch.zeros(2, 1, dtype=torch.int32),
    "lm_head.scales": torch.ones(2, 8, dtype=torch.float16),
    "lm_head.g_idx": torch.zeros(4, dtype=torch.int32),
}
NF4 = {
    "lm_head.weight": torch.zeros(16, 1, dtype=torch.uint8),
    "lm_head.weight.absmax": torch.ones(1),
    "lm_head.weight.quant_map": torch.ones(16),
    "lm_head.weight.quant_state.bitsandbytes__nf4": torch.zeros(90, dtype=torch.uint8),
}
FP8 = {
    "lm_head.weight": torch.zeros(8, 4).to(torch.float8_e4m3fn),
    "lm_head.weight_scale_inv": torch.ones(1, 1),
}
SAID = (
    "config.json says that model.embed_tokens.weight is the output layer (tie_word_embeddings), but lm_head.weight "
    "is stored too: if the two differ, transformers versions before 5 use only the embedding"
)


@pytest.mark.parametrize("head", [PACKED, GPTQ, NF4, FP8, {}], ids=["packed", "gptq", "nf4", "fp8", "none"])
@pytest.mark.parametrize("tied", [True, False])
def test_codes_of_an_output_layer_beside_a_tied_one_are_said(head: dict[str, torch.Tensor], tied: bool) -> None:
    model("m", tie_word_embeddings=tied)
    tensors = {key: value for key, value in load_file("m/model.safetensors").items() if not key.startswith("lm_head")}
    save_file(tensors | head, "m/model.safetensors", {"format": "pt"})
    for found in (cs.inspect("m").notes, cs.convert("m").notes):
        assert [one for one in found if "is stored too" in one] == ([SAID] if tied and head else [])


def test_quantised_layers_and_a_tied_embedding_are_not() -> None:
    model("m", tie_word_embeddings=True)
    tensors = {key: value for key, value in load_file("m/model.safetensors").items() if not key.startswith("lm_head")}
    coded = {key.replace("lm_head", "model.layers.0.mlp"): value for key, value in PACKED.items()}
    save_file(tensors | coded, "m/model.safetensors", {"format": "pt"})
    assert not [one for one in cs.inspect("m").notes if "is stored too" in one]
