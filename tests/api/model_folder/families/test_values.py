"""Values of config.json that no version of transformers accepts are noted; the tables are those of transformers."""

from __future__ import annotations

from typing import Any

import pytest

from ckptsurgeon.api.model_folder.families.values import ACTIVATIONS, ROPE_TYPES, value_notes

LLAMA = {
    "model_type": "llama",
    "hidden_size": 24,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "hidden_act": "silu",
}
GPT_NEOX = {"model_type": "gpt_neox", "hidden_size": 24, "num_attention_heads": 6}
UNLOADED = "transformers cannot load this model"
UNKNOWN = f"which transformers does not know: {UNLOADED}"
NO_NUMBER = f"which is a string and not a number: {UNLOADED}"


def test_the_tables_are_those_of_transformers() -> None:
    activations = pytest.importorskip("transformers.activations")
    rope = pytest.importorskip("transformers.modeling_rope_utils")
    assert set(activations.ACT2CLS) == ACTIVATIONS
    assert set(rope.ROPE_INIT_FUNCTIONS) <= ROPE_TYPES


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"hidden_act": "sillu"}, f'"sillu" (hidden_act), {UNKNOWN}'),
        ({"rope_scaling": {"type": "yarm", "factor": 2.0}}, f'"yarm" (rope_type of rope_scaling), {UNKNOWN}'),
        ({"rope_parameters": {"rope_type": "Linear"}}, f'"Linear" (rope_type of rope_parameters), {UNKNOWN}'),
        ({"rms_norm_eps": "1e-5"}, f'"1e-5" (rms_norm_eps), {NO_NUMBER}'),
        ({"vocab_size": "32000"}, f'"32000" (vocab_size), {NO_NUMBER}'),
        ({"rms_norm_eps": -1e-5}, "-1e-05 (rms_norm_eps), which is not 0 or more: square roots become NaN"),
        ({"rms_norm_eps": 1},
         "1 (rms_norm_eps), but epsilons of norms are 0.01 or less: the norms shrink what passes through them"),
        ({"hidden_size": -24}, f"-24 (hidden_size), which is not above 0: {UNLOADED}"),
        ({"num_attention_heads": 0}, f"0 (num_attention_heads), which is not above 0: {UNLOADED}"),
        ({"num_attention_heads": 7, "num_key_value_heads": 7},
         f"7 heads (num_attention_heads), which do not divide 24 (hidden_size): {UNLOADED}"),
        ({"num_key_value_heads": 4},
         "4 heads of keys and values (num_key_value_heads), which do not divide 6 heads (num_attention_heads): the model cannot be run"),
        ({"model_type": "roberta", "pad_token_id": None},
         "null (pad_token_id), from which roberta counts positions: the model cannot be run"),
        ({"model_type": "mistral", "sliding_window": 0},
         "0 (sliding_window), which is not above 0 or null: transformers cannot run the model with its cache"),
        ({"model_type": "qwen2", "num_hidden_layers": 2, "use_sliding_window": True, "max_window_layers": 1, "sliding_window": 0},
         "0 (sliding_window), which is not above 0 or null: transformers cannot run the model with its cache"),
        ({"model_type": "gemma2", "num_hidden_layers": 2, "sliding_window": -1},
         "-1 (sliding_window), which is not above 0 or null: transformers cannot run the model with its cache"),
        ({"model_type": "gpt_oss", "num_hidden_layers": 1, "layer_types": ["sliding_attention"], "sliding_window": 0},
         "0 (sliding_window), which is not above 0 or null: transformers cannot run the model with its cache"),
    ],
)  # fmt: skip
def test_a_value_that_is_refused_is_noted(fields: dict[str, Any], said: str) -> None:
    config = {**LLAMA, **fields}
    assert list(value_notes(config)) == [f"config.json says {said}"]
    assert list(value_notes({"model_type": "llava", "text_config": config})) == [f"config.json says {said}"]
    assert not list(value_notes({**config, "auto_map": {"AutoModel": "code.Model"}}))
    assert not list(value_notes({**config, "model_type": "a-model-of-mine"}))


@pytest.mark.parametrize(
    "config",
    [
        LLAMA,
        GPT_NEOX,
        {**LLAMA, "num_hidden_layers": 0, "num_key_value_heads": None, "head_dim": None, "rope_scaling": None},
        {**LLAMA, "rms_norm_eps": 0.001, "assign_eps": 1.0, "label_smoothing_eps": 0.1},
        {**LLAMA, "num_attention_heads": 5, "num_key_value_heads": 5, "head_dim": 8},
        {**LLAMA, "rope_scaling": {"rope_type": "llama3", "factor": 8.0}},
        {**LLAMA, "model_type": "phi3", "rope_scaling": {"type": "su"}},
        {"model_type": "gemma3_text", "rope_parameters": {"full_attention": {"rope_type": "linear"}}},
        {**LLAMA, "max_steps": "1000", "warmup_steps": -1.0, "codebook_size": "12"},
        {"model_type": "deberta", "type_vocab_size": 0, "hidden_act": "gelu"},
        {"model_type": "roberta", "pad_token_id": 1},
        {"model_type": "roberta"},
        {**LLAMA, "pad_token_id": None},
        {**LLAMA, "sliding_window": 0},
        {**LLAMA, "model_type": "mistral", "sliding_window": None},
        {**LLAMA, "model_type": "mistral", "sliding_window": 0, "use_sliding_window": False},
        {**LLAMA, "model_type": "qwen2", "num_hidden_layers": 2, "max_window_layers": 0, "sliding_window": 0},
        {
            **LLAMA,
            "model_type": "gemma2",
            "num_hidden_layers": 1,
            "layer_types": ["full_attention"],
            "sliding_window": 0,
        },
    ],
)
def test_usual_values_are_not(config: dict[str, Any]) -> None:
    assert not list(value_notes(config))


@pytest.mark.parametrize(
    ("new", "old", "is_said"),
    [
        ("float16", "bfloat16", True),
        ("float16", "torch.float16", False),
        ("bfloat16", None, False),
        (None, "float32", False),
        ("auto", "float32", False),
        ("float32", "auto", False),
    ],
)
def test_two_dtypes_are_noted(new: str | None, old: str | None, is_said: bool) -> None:
    config = {"model_type": "a-model-of-mine", "dtype": new, "torch_dtype": old}
    said = f"config.json says {new} (dtype), but {old} (torch_dtype): transformers 4.56 and later read the first"
    for one in (config, {"model_type": "llava", "text_config": config}):
        notes = list(value_notes(one))
        assert [note.startswith(said) for note in notes] == ([True] if is_said else [])
