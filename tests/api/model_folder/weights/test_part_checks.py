"""What every model of a type has beside its layers, layers of two sides, experts, routers, rows of classifiers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import ckptsurgeon as cs
from ckptsurgeon.api.model_folder.weights.part_checks import part_notes
from ckptsurgeon.api.model_folder.weights.shape_checks import DescribedTensor

from ....helpers.transformers_models import BERT, MIXTRAL, WAV2VEC2, WHISPER, saved

LLAMA = {
    "model_type": "llama", "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
    "vocab_size": 50,
}  # fmt: skip
T5 = {
    "model_type": "t5", "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2, "vocab_size": 50,
    "decoder_start_token_id": 0,
}  # fmt: skip
MODELS = {
    "llama": (LLAMA, "LlamaForCausalLM"), "mixtral": (MIXTRAL, "MixtralForCausalLM"), "bert": (BERT, "BertForMaskedLM"),
    "t5": (T5, "T5ForConditionalGeneration"), "t5 encoder": (T5, "T5EncoderModel"),
    "wav2vec2": (WAV2VEC2, "Wav2Vec2ForCTC"), "whisper": (WHISPER, "WhisperForConditionalGeneration"),
    "labels": (BERT, "BertForTokenClassification"),
}  # fmt: skip
WORDS = ("every ", "the encoder has", "the decoder has", "expert", "gate", "labels")


def said(notes: Any) -> list[str]:
    return [note for note in notes if any(word in note for word in WORDS)]


def folder(name: str, edit: Callable[[str, torch.Tensor], torch.Tensor | None], **fields: Any) -> None:
    """Save a model of a kind without the tensors that an edit gives None for, and with other fields."""
    pytest.importorskip("transformers")
    from safetensors.torch import load_file

    saved("m", *MODELS[name])
    state = {key: edit(key, value) for key, value in load_file("m/model.safetensors").items()}
    save_file({key: value for key, value in state.items() if value is not None}, "m/model.safetensors")
    config = json.loads(Path("m/config.json").read_text())
    Path("m/config.json").write_text(json.dumps({**config, **fields}))


def without(*parts: str) -> Callable[[str, torch.Tensor], torch.Tensor | None]:
    return lambda key, value: None if any(part in key for part in parts) else value


@pytest.mark.parametrize("name", MODELS)
def test_nothing_is_said_of_models_as_transformers_saves_them(name: str) -> None:
    folder(name, without())
    assert not said(cs.inspect("m").notes)


LACKS = "but this one does not: transformers initialises what is missing"


@pytest.mark.parametrize(
    ("name", "parts", "note"),
    [
        ("llama", ["model.norm."], f"every llama model has the last norm, {LACKS}"),
        ("llama", ["embed_tokens"], f"every llama model has the embedding, {LACKS}"),
        ("llama", ["q_proj"], f"every llama model has self_attn.q_proj, {LACKS}"),
        ("llama", ["post_attention_layernorm"], f"every llama model has post_attention_layernorm, {LACKS}"),
        ("bert", ["cls."], f"every bert model has the output layer (cls.predictions), {LACKS}"),
        ("t5", ["decoder.final_layer_norm"], f"every t5 model has decoder.final_layer_norm, {LACKS}"),
        ("t5", ["encoder.block.1"],
         "config.json says 2 (num_layers), but the encoder has 1 layer: transformers initialises the others"),
        ("wav2vec2", ["lm_head"], f"every wav2vec2 model has the output layer, {LACKS}"),
        ("wav2vec2", ["pos_conv_embed"], f"every wav2vec2 model has encoder.pos_conv_embed, {LACKS}"),
        ("whisper", ["encoder.conv1"], f"every whisper model has encoder.conv1, {LACKS}"),
        ("mixtral", ["gate.weight"], f"every mixtral model has the router (gate), {LACKS}"),
        ("mixtral", ["layers.1.block_sparse_moe.gate.weight"],
         "model.layers.1.block_sparse_moe.gate.weight is missing, although the other layers have it: transformers initialises "
         "what is missing"),
        ("mixtral", ["layers.1.block_sparse_moe.experts.1."],
         "model.layers.1.block_sparse_moe.experts lacks expert 1, which the other layers have: transformers initialises "
         "what is missing"),
        ("mixtral", ["experts.1.w2"],
         "model.layers.0.block_sparse_moe.experts.1 lacks w2, which the other experts have: transformers initialises what "
         "is missing"),
    ],
)  # fmt: skip
def test_what_every_model_of_a_type_has_is_said_if_it_lacks(name: str, parts: list[str], note: str) -> None:
    folder(name, without(*parts))
    for notes in (cs.inspect("m").notes, cs.convert("m").notes):
        assert said(notes) == [note]


def test_a_layer_with_a_wrong_number_is_noted() -> None:
    folder("t5", without())
    from safetensors.torch import load_file

    state = load_file("m/model.safetensors")
    save_file(
        {key.replace("encoder.block.1.", "encoder.block.4."): one for key, one in state.items()}, "m/model.safetensors"
    )
    note = "config.json says 2 (num_layers), but the encoder has no layer 1: transformers initialises it, and ignores layer 4"
    assert note in cs.inspect("m").notes


@pytest.mark.parametrize(
    ("name", "fields", "edit", "note"),
    [
        ("mixtral", {"num_local_experts": 9}, without(),
         "config.json says 9 (num_local_experts), but model.layers.0.block_sparse_moe.experts has {} experts: "
         "transformers cannot load this model"),
        ("mixtral", {}, lambda key, value: value[:1] if "gate" in key else value,
         "model.layers.0.block_sparse_moe.gate.weight has 1 row, but there are {} experts"),
        ("labels", {"id2label": {"0": "a", "1": "b", "2": "c"}}, without(),
         "config.json has 3 labels (id2label), but classifier.weight has 2 rows: transformers cannot load this model"),
    ],
)  # fmt: skip
def test_numbers_that_no_tensor_has_are_said(name: str, fields: dict[str, Any], edit: Any, note: str) -> None:
    folder(name, edit, **fields)
    assert said(cs.inspect("m").notes) == [note.format(MIXTRAL["num_local_experts"])]


def test_a_layer_with_more_experts_than_the_others_is_named_itself() -> None:
    sizes = {0: 4, 1: 8, 2: 4}
    tensors = [
        DescribedTensor(f"model.layers.{layer}.mlp.experts.{n}.up_proj.weight", "float32", (4, 4))
        for layer, size in sizes.items() for n in range(size)
    ]  # fmt: skip
    (note,) = (one for one in part_notes(tensors, {"model_type": "qwen3_moe", "num_experts": 4}) if "experts" in one)
    assert note.startswith("config.json says 4 (num_experts), but model.layers.1.mlp.experts has 8 experts, unlike the")


@pytest.mark.parametrize(("zero", "said"), [(2, False), (None, True), (1, True)])
def test_experts_that_compute_nothing_count_too(zero: int | None, said: bool) -> None:
    tensors = [DescribedTensor(f"model.layers.0.mlp.experts.{n}.up_proj.weight", "float32", (4, 4)) for n in range(6)]
    fields = {"model_type": "longcat_flash", "n_routed_experts": 4, "zero_expert_num": zero}
    assert any("has 6 experts" in note for note in part_notes(tensors, fields)) is said


def stacked(sizes: dict[str, int], rows: int = 4, end: str = "") -> list[DescribedTensor]:
    return [
        one for n, size in sizes.items()
        for one in (
            DescribedTensor(f"model.layers.{n}.mlp.experts.down_proj{end}", "uint8" if end else "bfloat16", (size, 8, 8)),
            DescribedTensor(f"model.layers.{n}.mlp.experts.down_proj_bias", "bfloat16", (size, 8)),
            DescribedTensor(f"model.layers.{n}.mlp.router.weight", "bfloat16", (rows, 8)),
        )
    ]  # fmt: skip


@pytest.mark.parametrize("end", ["", "_blocks"])
@pytest.mark.parametrize(
    ("sizes", "fields", "said"),
    [
        ({"0": 4, "1": 4}, {"num_local_experts": 4}, ""),
        ({"0": 4, "1": 4}, {}, ""),
        ({"0": 4, "1": 3}, {"num_local_experts": 4}, "says 4 (num_local_experts), but model.layers.1.mlp.experts.down_proj"),
        ({"0": 3, "1": 3}, {"num_local_experts": 4}, "says 4 (num_local_experts), but model.layers.0.mlp.experts.down_proj"),
        ({"0": 4, "1": 4, "2": 3}, {}, "_proj{end} has 3 experts, but other layers have 4: transformers cannot load"),
        ({"0": 3, "1": 3}, {}, "model.layers.0.mlp.router.weight has 4 rows, but there are 3 experts"),
        ({"0": 3, "1": 3}, {"vision_config": {}}, ""),
    ],
)  # fmt: skip
def test_stacked_experts_are_as_many_as_declared_and_as_the_router_has(
    sizes: dict[str, int], fields: dict[str, Any], said: str, end: str
) -> None:
    notes = list(part_notes(stacked(sizes, end=end), {"model_type": "gpt_oss", **fields}))
    assert len(notes) == bool(said)
    assert all(said.format(end=end) in note for note in notes)
