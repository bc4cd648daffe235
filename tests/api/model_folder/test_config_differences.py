"""Models that differ in config.json though their shapes agree: a note that names each field and both values."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import ckptsurgeon as cs
from ckptsurgeon.util.notes import is_serious

BASE = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 6, "hidden_size": 8,
    "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2, "tie_word_embeddings": True,
    "rope_theta": 10000.0, "rope_scaling": None, "hidden_act": "silu", "rms_norm_eps": 1e-6, "torch_dtype": "float32",
}  # fmt: skip


def model(name: str, scale: float = 1.0, **more: Any) -> str:
    Path(name).mkdir()
    generator = torch.Generator().manual_seed(int(scale))
    state = {
        "model.embed_tokens.weight": torch.randn(6, 8, generator=generator),
        "model.layers.0.self_attn.q_proj.weight": torch.randn(8, 8, generator=generator),
        "model.norm.weight": torch.ones(8) * scale,
    }
    save_file(state, f"{name}/model.safetensors")
    Path(name, "config.json").write_text(json.dumps({**BASE, **more}))
    return name


def recipe(a: str, b: str) -> cs.Plan:
    sources = [{"model": b, "parameters": {"weight": 0.5}}, {"model": a, "parameters": {"weight": 0.5}}]
    Path("recipe.yaml").write_text(json.dumps({"merge_method": "linear", "models": sources}))
    return cs.merge("recipe.yaml")


VERBS: dict[str, Callable[[str, str], cs.Plan]] = {
    "average": lambda a, b: cs.average([b, a]),
    "merge": lambda a, b: cs.merge([b, a], method="linear", weights=[1, 1]),
    "merge-base": lambda a, b: cs.merge([a], base=b, method="task_arithmetic", weights=[1]),
    "merge-recipe": recipe,
    "transplant": lambda a, b: cs.transplant(a, b),
    "lora_extract": lambda a, b: cs.lora_extract(a, b, rank=2, save_modules=True),
}


def said(plan: cs.Plan) -> list[str]:
    return [note for note in plan.notes if "compute different results" in note]


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_that_puts_models_together_says_so(verb: str) -> None:
    a, b = model("a", 2.0, num_attention_heads=4, rope_theta=5e5, torch_dtype="bfloat16"), model("b")
    (note,) = said(VERBS[verb](a, b))
    assert "num_attention_heads is 4 in a, 2 in b; rope_theta is 500000.0 in a, 10000.0 in b" in note
    assert is_serious(note)
    assert not said(VERBS[verb](model("c", 3.0, torch_dtype="bfloat16", transformers_version="5", use_cache=False), b))


@pytest.mark.parametrize(
    ("fields", "differ"), [({}, False), ({"feat_proj_layer_norm": False}, True), ({"conv_pos_batch_norm": True}, True)]
)
def test_hubert_and_wav2vec2_compute_the_same_unless_a_field_says_otherwise(
    fields: dict[str, Any], differ: bool
) -> None:
    plan = cs.transplant(model("a", model_type="hubert", **fields), model("b", model_type="wav2vec2"))
    assert bool(said(plan)) == differ


@pytest.mark.parametrize(
    ("fields", "is_warning"),
    [
        ({"rope_theta": 5e5}, True),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, True),
        ({"num_attention_heads": 4}, False),
    ],
)
def test_another_base_of_rotary_embeddings_is_shown_with_q_too(
    fields: dict[str, Any], is_warning: bool, ckpt: Any
) -> None:
    for name, more in (("a", {"rope_theta": 10000.0}), ("b", fields)):
        model(name, 2.0 + len(name), model_type="llama", **more)
    done = ckpt("merge", "a", "b", "--method", "linear", "--weights", "1,1", "-o", "out", "-q")
    assert done.code == 0
    assert ("warning: equal weights compute different results" in " ".join(done.err.split())) == is_warning


@pytest.mark.parametrize("verb", VERBS)
def test_token_ids_are_no_part_of_what_weights_compute(verb: str) -> None:
    ids = {"task_to_id": {"transcribe": 3}, "lang_to_id": {"<|en|>": 4}, "pad_index": 1, "vocabulary_map": {"a": 1}}
    moved = {"task_to_id": {"transcribe": 5}, "lang_to_id": {"<|en|>": 0}, "pad_index": 2, "vocabulary_map": {"a": 2}}
    assert not said(VERBS[verb](model("a", 2.0, **ids), model("b", **moved)))


CLIP = {"model_type": "clip_text_model", "eos_token_id": 49407}
OF_TEXTS = {"model_type": "clip_text_model", "eos_token_id": 5, "vocab_size": 6}


@pytest.mark.parametrize("verb", [*VERBS, "diff"])
@pytest.mark.parametrize(
    ("one", "other", "said_of"),
    [
        ({"image_token_id": 4}, {"image_token_id": 5}, "image_token_id is 5 in a, 4 in b"),
        ({"vision_start_token_id": 1}, {"vision_start_token_id": 2}, "vision_start_token_id is 2 in a, 1 in b"),
        ({"text_config": OF_TEXTS}, {"text_config": {**OF_TEXTS, "eos_token_id": 3}},
         "text_config.eos_token_id is 3 in a, 5 in b"),
        ({"text_config": OF_TEXTS}, {"text_config": {**OF_TEXTS, "eos_token_id": 2}}, ""),  # an old one
        ({"text_config": {**OF_TEXTS, "vocab_size": 8}}, {"text_config": {**OF_TEXTS, "vocab_size": 8, "eos_token_id": 2}},
         "text_config.eos_token_id is 2 in a, 5 in b"),
        ({"text_config": CLIP}, {"text_config": {**CLIP, "eos_token_id": 2}}, ""),  # its end is the last by default
        ({"text_config": OF_TEXTS}, {"text_config": {**OF_TEXTS, "eos_token_id": [2]}},
         "text_config.eos_token_id is [2] in a, 5 in b"),
        ({"eos_token_id": 5}, {"eos_token_id": 3}, ""),
        ({"decoder_start_token_id": 5}, {"decoder_start_token_id": 3}, "decoder_start_token_id is 3 in a, 5 in b"),
        ({"decoder_start_token_id": 5}, {}, ""),
        ({"image_token_id": 4}, {"image_token_id": 4, "audio_token_id": 3}, ""),
        ({"audio_stream_bos_id": 4}, {"audio_stream_bos_id": 3}, ""),
    ],
)  # fmt: skip
def test_ids_that_a_network_computes_with_are_compared(verb: str, one: Any, other: Any, said_of: str) -> None:
    a, b = model("a", 2.0, **other), model("b", **one)
    notes = cs.diff(a, b).notes if verb == "diff" else VERBS[verb](a, b).notes
    found = [note for note in notes if "compute different results" in note]
    assert len(found) == bool(said_of)
    assert said_of in "".join(found)


def test_first_ids_of_decoders_are_compared_if_only_the_settings_of_generation_have_them() -> None:
    a, b = model("a", 2.0, decoder_start_token_id=3), model("b")
    (here := Path("b/generation_config.json")).write_text(json.dumps({"decoder_start_token_id": 5}))
    (note,) = said(cs.average([b, a]))
    assert note.endswith("decoder_start_token_id is 3 in a, 5 in b")
    here.write_text(json.dumps({"decoder_start_token_id": 3}))
    assert not said(cs.average([b, a]))


def test_ids_are_not_compared_if_rows_are_mapped_by_token() -> None:
    """Another id of a token is right then, because the token has another row."""
    a, b = model("a", 2.0, image_token_id=4), model("b", image_token_id=5)
    for path, tokens in ((a, ["a", "b", "c", "d", "<image>", "e"]), (b, ["b", "a", "c", "d", "e", "<image>"])):
        Path(path, "vocab.json").write_text(json.dumps({token: row for row, token in enumerate(tokens)}))
    assert said(cs.transplant(a, b, vocab="place")) != []
    assert said(cs.transplant(a, b, vocab="a/vocab.json:b/vocab.json", vocab_keys=("**.embed_tokens.*",))) == []


@pytest.mark.parametrize("verb", VERBS)
def test_a_configuration_that_cannot_be_compared_is_said(verb: str) -> None:
    a, b = model("a", 2.0), model("b")
    Path("a/config.json").write_text('{"model_type": "llama", "num_hidden')
    (note,) = (note for note in VERBS[verb](a, b).notes if "this file is not compared with that of the output" in note)
    assert note.startswith("a/config.json is not valid JSON")


@pytest.mark.parametrize(
    ("theirs", "note"),
    [
        ({"num_key_value_heads": 1}, "num_key_value_heads is 1 in a, 2 in b"),
        ({"hidden_act": "gelu"}, "hidden_act is gelu in a, silu in b"),
        ({"rms_norm_eps": 1e-5}, "rms_norm_eps is 1e-05 in a, 1e-06 in b"),
        ({"model_type": "mistral"}, "model_type is mistral in a, llama in b"),
        ({"rope_scaling": {"type": "linear", "factor": 4.0}},
         "rope_scaling is {'factor': 4.0, 'rope_type': 'linear'} in a, without scaling in b"),
        ({"rope_theta": None, "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
         "rope_theta is 500000.0 in a, 10000.0 in b"),
        ({"sliding_window": 64, "layer_types": ["sliding_attention"]}, "sliding_window is not set in b, 64 in a"),
        ({"attn_config": {"alibi": True}, "attention_dropout": 0.5, "id2label": {"0": "x"}, "model_type": "x"},
         "model_type is x in a, llama in b"),
    ],
)  # fmt: skip
def test_the_note_has_the_field_and_both_values(theirs: dict[str, Any], note: str) -> None:
    (found,) = said(cs.average([model("b"), model("a", **theirs)]))
    assert found.endswith(f"config.json files differ: {note}")


@pytest.mark.parametrize("field", [{"attn_logit_softcapping": 50.0}, {"clip_qkv": 8.0}, {"adapter_stride": 2}])
def test_of_a_field_that_one_model_does_not_set_the_note_claims_no_more_than_is_known(field: dict[str, Any]) -> None:
    (found,) = said(cs.average([model("b"), model("a", **field)]))
    (name,) = field
    told = f"{name} is not set in b, {field[name]} in a"
    assert found == f"equal weights compute different results, unless these are the defaults of the class: {told}"
    both = said(cs.average(["b", model("c", rms_norm_eps=1e-5, **field)]))
    known = "rms_norm_eps is 1e-05 in c, 1e-06 in b"
    assert [note.partition(": ")[2] for note in both] == [known, told.replace("in a", "in c")]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"use_sliding_window": True}, {"use_sliding_window": False}),
        ({"sliding_window": None, "max_position_embeddings": 64}, {"sliding_window": 63, "max_position_embeddings": 64}),
        ({}, {"model_type": "mistral", "sliding_window": 63, "max_position_embeddings": 64}),
        ({"mlp_bias": True}, {"model_type": "mistral", "sliding_window": None}),
        ({"layer_types": ["full_attention"]}, {"layer_types": ["sliding_attention"]}),
        ({"max_window_layers": 1}, {"max_window_layers": 0, "sliding_window": 4096}),
        ({"rope_local_base_freq": 10000}, {"rope_local_base_freq": 20000}),
        ({"sliding_window_pattern": 6}, {"sliding_window_pattern": 3}),
        ({"n_group": 8}, {"n_group": 1}),
        ({"topk_group": 4}, {"topk_group": 1}),
        ({"scale_attn_by_inverse_layer_idx": False}, {"scale_attn_by_inverse_layer_idx": True}),
        ({}, {"scale_attn_by_inverse_layer_idx": True}),
        ({}, {"do_layer_norm_before": False}),
        ({"scale_attn_weights": True}, {"scale_attn_weights": False}),
        ({"feat_extract_activation": "gelu"}, {"feat_extract_activation": "relu"}),
        ({"feat_extract_norm": "group"}, {"feat_extract_norm": "layer"}),
        ({"conv_stride": [5, 2]}, {"conv_stride": [5, 3]}),
        ({"global_rope_theta": 160000.0}, {"global_rope_theta": 10000.0}),
        ({"local_rope_theta": 160000.0}, {"local_rope_theta": 10000.0}),
        ({"local_attention": 128}, {"local_attention": 64}),
        ({}, {"relative_attention_max_distance": 64}),
        ({"swiglu_limit": None}, {"swiglu_limit": 3.0}),
        ({"no_rope_layers": [1]}, {"no_rope_layers": [0]}),
        ({"rope_interleave": True}, {"rope_interleave": False}),
        ({}, {"scale_emb": 12}),
        ({"window_size": 256}, {"window_size": 16}),
        ({"attention_types": [[["global"], 2]]}, {"attention_types": [[["local"], 2]]}),
        ({"pos_att_type": ["c2p"]}, {"pos_att_type": ["p2c"]}),
        ({"position_buckets": 256}, {"position_buckets": 32}),
        ({"position_embeddings_type": "rotary"}, {"position_embeddings_type": "relative"}),
        ({"attn_config": {"alibi": False}}, {"attn_config": {"alibi": True}}),
    ],
)  # fmt: skip
def test_a_field_that_decides_is_said(one: dict[str, Any], other: dict[str, Any]) -> None:
    (note,) = said(cs.average([model("b", **one), model("a", 2.0, **other)]))
    field = next(iter(other))
    assert f": {field}{'.alibi' if field == 'attn_config' else ''} is " in note


@pytest.mark.costly
@pytest.mark.parametrize(
    ("model_type", "theta", "note"),
    [
        ("llama", 1e6, "rope_theta is not set in norope, 1000000.0 in withrope"),
        ("mixtral", 10000.0, "rope_theta is not set in norope, 10000.0 in withrope"),
        ("llama", 10000, ""),
        ("mixtral", 1e6, ""),
    ],
)
def test_a_base_of_rotary_embeddings_that_one_lacks_is_the_default(model_type: str, theta: float, note: str) -> None:
    (
        model("norope", model_type=model_type, rope_theta=None),
        model("withrope", 2.0, model_type=model_type, rope_theta=theta),
    )
    for pair in (("norope", "withrope"), ("withrope", "norope")):
        for verb in VERBS.values():
            assert [one.partition("files differ: ")[2] for one in said(verb(*pair))] == ([note] if note else [])


ALIKE = {
    "attention_dropout": 0.5, "bos_token_id": 4, "dtype": "bfloat16", "_name_or_path": "x", "use_cache": False,
    "id2label": {"0": "a", "1": "b"}, "label2id": {"a": 0, "b": 1}, "initializer_range": 0.5,
    "transformers_version": "4.1.0", "problem_type": "regression", "classifier_dropout": 0.1, "mask_time_prob": 0.9,
    "layerdrop": 0.3, "ctc_loss_reduction": "mean", "ctc_zero_infinity": True, "hidden_dropout_prob": 0.2,
    "hidden_dropout": 0.2, "resid_pdrop": 0.2, "embd_pdrop": 0.2, "router_aux_loss_coef": 0.5, "eos_token_id": 5,
}  # fmt: skip


@pytest.mark.parametrize(
    "config", ["BertConfig", "GPT2Config", "LlamaConfig", "MixtralConfig", "Qwen2Config", "Gemma2Config", "T5Config",
               "Wav2Vec2Config", "WhisperConfig", "ModernBertConfig", "CLIPConfig"],
)  # fmt: skip
def test_nothing_is_said_of_configurations_of_one_class(config: str) -> None:
    transformers = pytest.importorskip("transformers")
    made = getattr(transformers, config)()
    older = {
        name: value for name, value in made.to_dict().items() if value not in (None, False) and name != "layer_types"
    }
    model("a"), model("b")
    Path("a/config.json").write_text(json.dumps({**made.to_dict(), **ALIKE}, default=str))
    Path("b/config.json").write_text(json.dumps(older, default=str))
    assert not said(cs.average(["a", "b"]))


SHORT = {"max_position_embeddings": 64}


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({}, {"rope_theta": None, "rope_parameters": {"rope_type": "default", "rope_theta": 10000}}),
        ({"rope_scaling": {"type": "linear", "factor": 2}}, {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}),
        ({"hidden_act": "silu"}, {"hidden_act": "swish"}),
        ({"hidden_act": "gelu_new"}, {"hidden_act": "gelu_pytorch_tanh"}),
        ({"head_dim": 4}, {}),
        ({"num_key_value_heads": None}, {}),
        ({"sliding_window": None, "use_sliding_window": False}, {"sliding_window": 4096, "use_sliding_window": False}),
        ({"model_type": "gemma", "hidden_act": "gelu"}, {"model_type": "gemma", "hidden_act": "gelu_pytorch_tanh"}),
        ({}, {"_name_or_path": "x", "max_position_embeddings": 9, "attention_dropout": 0.5, "eos_token_id": 3}),
        ({"text_config": {"model_type": "llama", "rms_norm_eps": 1e-6}, "model_type": "llava", "rms_norm_eps": 1}, {}),
        ({"sliding_window": 64, **SHORT}, {"sliding_window": None, **SHORT}),
        ({"sliding_window": 64, **SHORT}, {"sliding_window": 4096, **SHORT}),
        ({"model_type": "mistral", **SHORT}, {"attention_bias": False, "mlp_bias": False, "pretraining_tp": 1, **SHORT}),
        ({"model_type": "mistral", "sliding_window": None}, {"max_position_embeddings": 131072}),
    ],
)  # fmt: skip
def test_nothing_is_said_of_what_computes_alike(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    assert not said(cs.transplant(model("a", **theirs), model("b", **ours)))
    assert not said(cs.transplant("b", "a"))


def test_parts_are_compared_too() -> None:
    a = model("a", text_config={"rms_norm_eps": 1e-5}, vision_config={"hidden_act": "gelu"})
    b = model("b", text_config={"rms_norm_eps": 1e-6}, vision_config={"hidden_act": "relu"})
    (note,) = said(cs.transplant(a, b))
    assert "text_config.rms_norm_eps is 1e-05 in a, 1e-06 in b; vision_config.hidden_act is gelu" in note


def test_a_source_of_which_nothing_is_taken_is_not_compared() -> None:
    model("a", hidden_act="gelu"), model("b")
    slices = [{"sources": [{"model": name, "layer_range": [0, 1]}]} for name in ("b", "a")]
    Path("recipe.yaml").write_text(json.dumps({"merge_method": "passthrough", "slices": slices}))
    assert len(said(cs.merge("recipe.yaml"))) == 1
    Path("recipe.yaml").write_text(json.dumps({"merge_method": "passthrough", "slices": slices[:1]}))
    assert not said(cs.merge("recipe.yaml"))


def test_a_declared_network_has_no_configuration_to_compare_with() -> None:
    model("a", hidden_act="gelu"), model("b")
    Path("net.yaml").write_text("model: {like: b/model.safetensors}\n")
    assert len(said(cs.transplant("a", "net.yaml"))) == 1
    cs.init_config("b", output="declared.yaml")
    sources = ["a:model.norm:model.norm", "b:model.embed_tokens:model.embed_tokens"]
    assert not said(cs.transplant(sources, "declared.yaml"))


def test_a_live_model_of_transformers_says_how_it_computes() -> None:
    class Live(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.config = type("Config", (), {"to_dict": lambda _: {**BASE, "rms_norm_eps": 1e-5}})()
            self.norm = torch.nn.Linear(8, 1)

    state = {"norm.weight": torch.ones(1, 8), "norm.bias": torch.ones(1)}
    save_file(state, Path(model("a")) / "model.safetensors")
    (note,) = said(cs.load_into(Live(), "a"))
    assert "rms_norm_eps is 1e-06 in a, 1e-05 in Live" in note


def test_a_model_of_transformers_says_how_it_computes() -> None:
    pytest.importorskip("transformers")
    sizes = {"intermediate_size": 2, "num_hidden_layers": 0}
    a, b = model("a", **sizes), model("b", hidden_act="gelu", **sizes)
    (note,) = said(cs.transplant(a, f"{b}/config.json"))
    assert "hidden_act is silu in a, gelu in" in note


SLIDING, FULL = "sliding_attention", "full_attention"
GEMMA = {"model_type": "gemma3_text", "num_hidden_layers": 3}
OLDER = {"rope_theta": None, "rope_local_base_freq": 10000.0}


def rope(full: float, sliding: float) -> dict[str, Any]:
    found = {
        FULL: {"rope_type": "default", "rope_theta": full},
        SLIDING: {"rope_type": "default", "rope_theta": sliding},
    }
    return {"rope_theta": None, "rope_parameters": found}


@pytest.mark.parametrize(
    ("one", "other", "note"),
    [
        ({"model_type": "opt", "hidden_act": None}, {"activation_function": "gelu"}, "activation_function is not set in b"),
        ({"model_type": "opt", "hidden_act": None}, {"activation_function": "relu"}, ""),
        ({"model_type": "gpt2", "hidden_act": None}, {"activation_function": "gelu"}, "activation_function is not set in b"),
        ({"model_type": "gpt2", "hidden_act": None}, {"activation_function": "gelu_new"}, ""),
        ({"hidden_act": None}, {"hidden_act": "gelu"}, "hidden_act is gelu in a, null in b"),
        ({"hidden_act": None}, {"hidden_act": "swish"}, ""),
        (GEMMA, {"sliding_window_pattern": 2}, "sliding_window_pattern is not set in b, 2 in a"),
        (GEMMA, {"sliding_window_pattern": 6}, ""),
        (GEMMA, {"layer_types": [SLIDING] * 3}, ""),
        (GEMMA, {"layer_types": [SLIDING, FULL, SLIDING]}, f"layer_types is not set in b, ['{SLIDING}', '{FULL}', "),
        ({**GEMMA, "sliding_window_pattern": 2}, {"sliding_window_pattern": None, "layer_types": [SLIDING, FULL, SLIDING]}, ""),
        ({"model_type": "qwen3"}, {"layer_types": [FULL]}, ""),
        ({"model_type": "qwen3"}, {"layer_types": [SLIDING]}, "layer_types is not set in b"),
        ({"model_type": "modernbert", "num_hidden_layers": 2}, {"layer_types": [FULL, SLIDING]}, ""),
        ({"model_type": "smollm3"}, {"no_rope_layers": [1]}, ""),
        ({"model_type": "smollm3"}, {"no_rope_layers": [0]}, "no_rope_layers is not set in b, [0] in a"),
        ({"model_type": "smollm3"}, {"no_rope_layer_interval": 1, "no_rope_layers": [0]}, "no_rope_layers is not set in b"),
        ({**GEMMA, **rope(1e6, 1e4)}, rope(1e6, 1e4), ""),
        ({**GEMMA, **rope(1e6, 1e4)}, rope(5e5, 1e4), "rope_theta of full_attention is 500000.0 in a, 1000000.0 in b"),
        ({**GEMMA, **rope(1e6, 1e4)}, {"rope_parameters": None, **OLDER}, ""),
        ({**GEMMA, **rope(1e6, 2e4)}, {"rope_parameters": None, **OLDER},
         "rope_theta of sliding_attention is 10000.0 in a, 20000.0 in b"),
        ({"model_type": "modernbert", **rope(160000, 1e4)}, {"rope_parameters": None}, ""),
        ({"model_type": "modernbert", **rope(160000, 1e4)}, {"rope_parameters": None, "global_rope_theta": 1e4},
         "rope_theta of full_attention is 10000.0 in a, 160000 in b"),
        ({"model_type": "x", **rope(1e6, 1e4)}, {"rope_parameters": None, "rope_theta": 1e6}, ""),
    ],
)  # fmt: skip
def test_what_one_leaves_out_is_what_its_class_has(one: dict[str, Any], other: dict[str, Any], note: str) -> None:
    model("b", **one), model("a", 2.0, **{**one, **other})
    for pair, whole in ((("b", "a"), note), (("a", "b"), note.partition(" is ")[0])):
        found = said(cs.average(list(pair)))
        assert len(found) == bool(note)
        assert all(f"files differ: {whole}" in line for line in found)


@pytest.mark.parametrize("kind", ["gemma2", "gemma3_text", "cohere2", "olmo3", "modernbert", "qwen2", "qwen3", "gpt_oss",
                                  "smollm3", "llama4_text", "opt", "exaone4", "gpt2", "starcoder2", "cwm"])  # fmt: skip
def test_the_order_of_layers_that_is_left_out_is_that_of_transformers(kind: str) -> None:
    transformers = pytest.importorskip("transformers")
    if kind not in transformers.CONFIG_MAPPING:
        pytest.skip("another transformers")
    whole = transformers.CONFIG_MAPPING[kind](num_hidden_layers=9).to_dict()
    less = {name: value for name, value in whole.items() if name not in (
        "layer_types", "no_rope_layers", "activation_function", "hidden_act", "sliding_window_pattern",
        "_sliding_window_pattern")}  # fmt: skip
    model("a"), model("b")
    Path("a/config.json").write_text(json.dumps(whole, default=str))
    Path("b/config.json").write_text(json.dumps(less, default=str))
    assert not said(cs.average(["a", "b"]))


def inputs(plan: cs.Plan) -> list[str]:
    return [note for note in plan.notes if "the models prepare inputs differently" in note]


PICTURES = {"image_mean": [0.5, 0.5], "do_normalize": True, "image_processor_type": "ViTFeatureExtractor", "size": 224}


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize(
    ("theirs", "note"),
    [
        ({"image_mean": [0.4, 0.5]}, "image_mean is [0.4, 0.5] in a, [0.5, 0.5] in b"),
        ({"do_normalize": False, "image_processor_type": "ViTImageProcessor"}, "do_normalize is false in a, true in b"),
        ({"size": {"height": 224, "width": 224}, "do_resize": True}, ""),
        ({"image_mean": None, "processor_class": "X"}, ""),
    ],
)
def test_inputs_that_are_made_otherwise_are_said(verb: str, theirs: dict[str, Any], note: str) -> None:
    model("b"), model("a", 2.0)
    Path("b/preprocessor_config.json").write_text(json.dumps(PICTURES))
    Path("a/preprocessor_config.json").write_text(json.dumps({**PICTURES, **theirs}))
    found = inputs(VERBS[verb]("a", "b"))
    assert found == (
        [f"the models prepare inputs differently, according to preprocessor_config.json: {note}"] if note else []
    )


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize(
    ("theirs", "note"),
    [({"do_lower_case": False}, "do_lower_case is false in a, true in b"), ({"model_max_length": 9}, ""), ({}, "")],
)
def test_texts_that_are_cut_otherwise_are_said(verb: str, theirs: dict[str, Any], note: str) -> None:
    model("b"), model("a", 2.0)
    Path("b/tokenizer_config.json").write_text(json.dumps({"do_lower_case": True, "strip_accents": None}))
    Path("a/tokenizer_config.json").write_text(json.dumps(theirs))
    said = [one for one in VERBS[verb]("a", "b").notes if "texts" in one]
    assert said == (
        [f"the tokenisers normalise texts differently, according to tokenizer_config.json: {note}"] if note else []
    )


BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
METASPACE = {"type": "Metaspace", "replacement": "▁"}
BERT = {"type": "BertNormalizer", "lowercase": False}


@pytest.mark.parametrize(
    ("theirs", "ours", "note"),
    [
        ({"normalizer": {"type": "Lowercase"}}, {"normalizer": None}, "lowercase is true in a, false in b"),
        ({"normalizer": {"type": "Sequence", "normalizers": [{"type": "BertNormalizer", "lowercase": True}]}}, {},
         "lowercase is true in a, false in b"),
        ({"pre_tokenizer": BYTES | {"add_prefix_space": True}}, {"pre_tokenizer": BYTES},
         "add_prefix_space is true in a, false in b"),
        ({"pre_tokenizer": BYTES | {"use_regex": True}}, {"pre_tokenizer": BYTES}, ""),
        ({"pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "Split", "pattern": {"Regex": "x"}}, BYTES]}},
         {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "Split", "pattern": {"Regex": "y"}}, BYTES]}},
         "split pattern is \"{'Regex': 'x'}\" in a, \"{'Regex': 'y'}\" in b"),
        ({"pre_tokenizer": METASPACE, "normalizer": None},
         {"pre_tokenizer": None, "normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}]}},
         ""),  # two versions of one tokeniser
        ({"normalizer": {"type": "NFKC"}}, {"normalizer": None}, "normalizer is {'type': 'NFKC'} in a, null in b"),
        ({"normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}]}}, {"normalizer": {"type": "NFC"}}, ""),
        ({"pre_tokenizer": BYTES | {"trim_offsets": False}}, {"pre_tokenizer": BYTES}, ""),  # as transformers 5 saves Qwen
        ({"normalizer": BERT | {"strip_accents": None}}, {"normalizer": BERT | {"strip_accents": False}}, ""),
        ({"normalizer": BERT | {"strip_accents": True}}, {"normalizer": BERT | {"strip_accents": None}},
         "normalizer.strip_accents (BertNormalizer) is true in a, false in b"),
        ({"pre_tokenizer": {"type": "Split", "pattern": {"Regex": f"{'x' * 80}y{'x' * 80}"}}},
         {"pre_tokenizer": {"type": "Split", "pattern": {"Regex": f"{'x' * 80}z{'x' * 80}"}}},
         f"split pattern is …{'x' * 10}y{'x' * 47} in a, …{'x' * 10}z{'x' * 47} in b"),
    ],
)  # fmt: skip
def test_texts_that_two_tokenizer_json_cut_otherwise_are_said(
    theirs: dict[str, Any], ours: dict[str, Any], note: str
) -> None:
    for name, steps in (("b", ours), ("a", theirs)):
        vocab = {"model": {"type": "WordLevel", "vocab": {"<unk>": 0, "x": 1}}}
        Path(model(name), "tokenizer.json").write_text(json.dumps({"added_tokens": [], **steps, **vocab}))
    said = [one for one in cs.average(["b", "a"]).notes if "texts" in one]
    assert said == (
        [f"the tokenisers normalise texts differently, according to tokenizer.json: {note}"] if note else []
    )


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb != "lora_extract"])
def test_a_step_that_splits_texts_in_one_model_only_is_said(verb: str) -> None:
    digits = {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, BYTES]}
    for name, steps in (("b", BYTES), ("a", digits)):
        whole = {
            "added_tokens": [],
            "pre_tokenizer": steps,
            "model": {"type": "WordLevel", "vocab": {"<unk>": 0, "x": 1}},
        }
        Path(model(name), "tokenizer.json").write_text(json.dumps(whole))
    said = [one for one in VERBS[verb]("b", "a").notes if "texts" in one]
    shown = {"a": "'Sequence' in a", "b": "'ByteLevel' in b"}
    lead = "the tokenisers split texts differently, according to tokenizer.json: pre_tokenizer.type is "
    assert said in ([f"{lead}{shown['a']}, {shown['b']}"], [f"{lead}{shown['b']}, {shown['a']}"])


def around(*tokens: str) -> dict[str, Any]:
    steps = [{"Sequence": {"id": "A", "type_id": 0}} if one == "A" else {"SpecialToken": {"id": one}} for one in tokens]
    return {"type": "TemplateProcessing", "single": steps, "pair": []}


@pytest.mark.parametrize(
    ("theirs", "note"),
    [
        (around("A"), "TEXT in a, <s> TEXT </s> in b"),
        ({"type": "Sequence", "processors": [{"type": "ByteLevel"}, around("<s>", "A")]}, "<s> TEXT in a, <s> TEXT </s> in b"),
        (around("<s>", "A", "</s>"), ""),
        ({"type": "BertProcessing", "sep": ["[SEP]", 1], "cls": ["[CLS]", 0]}, "[CLS] TEXT [SEP] in a, <s> TEXT </s> in b"),
        ({"type": "RobertaProcessing", "sep": ["</s>", 1], "cls": ["<s>", 0]}, ""),
        (None, ""),  # the class of such a tokeniser may add them
    ],
)  # fmt: skip
def test_other_tokens_around_a_text_are_said(theirs: Any, note: str) -> None:
    for name, step in (("b", around("<s>", "A", "</s>")), ("a", theirs)):
        vocab = {"model": {"type": "WordLevel", "vocab": {"<unk>": 0, "x": 1}}}
        head = {"added_tokens": [], "post_processor": step}
        Path(model(name), "tokenizer.json").write_text(json.dumps({**head, **vocab}))
    said = [one.replace("'", "") for one in cs.average(["b", "a"]).notes if "different special tokens" in one]
    told = "the tokenisers add different special tokens to a text, according to tokenizer.json: "
    assert said == ([told + note] if note else [])


@pytest.mark.parametrize(
    ("settings", "is_said"),
    [
        ({"tokenizer_class": "PreTrainedTokenizerFast"}, True),
        ({"tokenizer_class": "TokenizersBackend"}, True),
        ({"tokenizer_class": "TokenizersBackend", "add_bos_token": True}, False),
        ({"tokenizer_class": "LlamaTokenizerFast"}, False),
    ],
)
@pytest.mark.parametrize("theirs", [None, BYTES])
def test_no_tokens_around_a_text_are_said(theirs: Any, settings: dict[str, Any], is_said: bool) -> None:
    for name, step in (("b", around("<s>", "A")), ("a", theirs)):
        vocab = {"model": {"type": "WordLevel", "vocab": {"<unk>": 0, "x": 1}}}
        head = {"added_tokens": [], "post_processor": step}
        Path(model(name), "tokenizer.json").write_text(json.dumps({**head, **vocab}))
        Path(name, "tokenizer_config.json").write_text(json.dumps(settings))
    said = [one for one in cs.average(["b", "a"]).notes if "different special tokens" in one]
    told = "the tokenisers add different special tokens to a text, according to tokenizer.json: "
    told += "'TEXT' in a, '<s> TEXT' in b"
    assert said == ([told] if is_said else [])


OF_LLAMA = {"type": "Sequence", "decoders": [{"type": "Replace", "pattern": {"String": "▁"}, "content": " "}]}
PIECES = {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##"}
UNIGRAM = {"type": "Unigram", "unk_id": 0}


@pytest.mark.parametrize(
    ("theirs", "ours", "note"),
    [
        ({"model": PIECES | {"continuing_subword_prefix": "@@"}}, {"model": PIECES},
         "look up tokens differently, according to tokenizer.json: continuing_subword_prefix is '@@' in a, '##' in b"),
        ({"model": {"type": "BPE", "end_of_word_suffix": "</w>"}}, {"model": {"type": "BPE", "end_of_word_suffix": None}},
         "look up tokens differently, according to tokenizer.json: end_of_word_suffix is '</w>' in a, '' in b"),
        ({"model": {"type": "BPE", "end_of_word_suffix": ""}}, {"model": {"type": "BPE"}}, ""),
        ({"model": UNIGRAM | {"unk_id": 1}}, {"model": UNIGRAM}, "look up tokens differently, according to tokenizer.json: "
         "unk_id is 1 in a, 0 in b"),
        ({"model": UNIGRAM, "decoder": None}, {"model": UNIGRAM, "decoder": METASPACE},
         "decode texts differently, according to tokenizer.json: decoder is null in a, 'Metaspace' in b"),
        ({"model": UNIGRAM, "decoder": OF_LLAMA}, {"model": UNIGRAM, "decoder": METASPACE}, ""),  # two versions of one
        ({"model": UNIGRAM}, {"model": UNIGRAM, "decoder": METASPACE}, ""),
    ],
)  # fmt: skip
def test_tokens_that_two_tokenizer_json_look_up_otherwise_are_said(
    theirs: dict[str, Any], ours: dict[str, Any], note: str
) -> None:
    tokens = ["<unk>", "▁a", "[UNK]", "##b"]
    for name, file in (("b", ours), ("a", theirs)):
        section, steps = file["model"], {step: file[step] for step in file if step != "model"}
        listed = (
            [[one, -1.0] for one in tokens]
            if section["type"] == "Unigram"
            else {one: i for i, one in enumerate(tokens)}
        )
        section = {**section, "vocab": listed, **({"merges": []} if section["type"] == "BPE" else {})}
        Path(model(name), "tokenizer.json").write_text(json.dumps({"added_tokens": [], **steps, "model": section}))
    for plan in (cs.average(["b", "a"]), cs.transplant("a", "b")):
        said = [one for one in plan.notes if one.startswith("the tokenisers")]
        assert said == ([f"the tokenisers {note}"] if note else [])


def test_other_chat_templates_are_said() -> None:
    for name, text in (("b", "{{ bos }}{{ messages }}"), ("a", "{{ bos }}<s>{{ messages }}\n"), ("c", "")):
        Path(model(name), "chat_template.jinja").write_text(text)
    said = [one for one in cs.average(["b", "a", "c"]).notes if "templates" in one]
    assert said == ["the chat templates of a and b differ, first at character 9"]


@pytest.mark.parametrize(
    ("theirs", "ours", "note"),
    [
        ({"layer_types": ["full_attention"] * 40}, {"layer_types": ["full_attention"] * 38 + ["sliding_attention"] * 2},
         "layer_types is full_attention at [38] and 1 more in a, sliding_attention at [38] and 1 more in b"),
        ({"rope_scaling": {"rope_type": "longrope", "short_factor": [1.0] * 40, "long_factor": [1.0] * 40}},
         {"rope_scaling": {"rope_type": "longrope", "short_factor": [1.0] * 39 + [2.5], "long_factor": [1.0] * 40}},
         "rope_scaling.short_factor is 1.0 at [39] in a, 2.5 at [39] in b"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, {"rope_scaling": {"rope_type": "linear", "factor": 4.0}},
         "rope_scaling.factor is 2.0 in a, 4.0 in b"),
    ],
)  # fmt: skip
def test_of_long_values_the_first_difference_is_said(theirs: dict[str, Any], ours: dict[str, Any], note: str) -> None:
    model("b", **ours), model("a", 2.0, **theirs)
    (found,) = said(cs.average(["b", "a"]))
    assert found.endswith(note)


def test_a_processor_of_transformers_5_is_compared_with_an_older_one() -> None:
    model("b"), model("a", 2.0)
    Path("b/preprocessor_config.json").write_text('{"sampling_rate": 16000, "feature_size": 1}')
    Path("a/processor_config.json").write_text('{"feature_extractor": {"sampling_rate": 8000, "feature_size": 1}}')
    assert inputs(cs.average(["b", "a"]))[0].endswith("sampling_rate is 8000 in a, 16000 in b")
    Path("a/processor_config.json").write_text("[]")
    assert not inputs(cs.average(["b", "a"]))


def test_of_long_lists_of_processors_the_first_difference_is_said() -> None:
    model("b"), model("a", 2.0)
    Path("b/preprocessor_config.json").write_text(json.dumps({"norm_means": [0.5] * 20}))
    Path("a/preprocessor_config.json").write_text(json.dumps({"norm_means": [0.5] * 19 + [0.25]}))
    assert inputs(cs.average(["b", "a"]))[0].endswith("norm_means is 0.25 at [19] in a, 0.5 at [19] in b")


def test_another_kind_of_problem_is_said_if_both_say_one() -> None:
    (note,) = said(cs.average([model("b", problem_type="regression"), model("a", 2.0, problem_type="multi_label")]))
    assert note.endswith("problem_type is multi_label in a, regression in b")
    assert not said(cs.average(["b", model("c", 3.0)]))


GENERATED = {"_from_model_config": True, "transformers_version": "5.0", "eos_token_id": 2, "temperature": 0.6,
             "suppress_tokens": [*range(12), 302, 312]}  # fmt: skip


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({**GENERATED, "transformers_version": "4.1", "_from_model_config": False}, ""),
        ({**GENERATED, "eos_token_id": [2, 7]}, "eos_token_id is 2 in a, [2, 7] in b"),
        ({**GENERATED, "top_k": 5, "temperature": 1}, "temperature is 0.6 in a, 1 in b; top_k is not set in a, 5 in b"),
        ({**GENERATED, "suppress_tokens": [*range(12), 300, 310]},
         "suppress_tokens is 302 at [12] and 1 more in a, 300 at [12] and 1 more in b"),
        (None, ""),
    ],
)  # fmt: skip
def test_diff_names_settings_of_generation_that_differ(other: dict[str, Any] | None, said: str) -> None:
    for name, settings in (("a", GENERATED), ("b", other)):
        Path(name).mkdir()
        save_file({"model.embed_tokens.weight": torch.ones(8, 4)}, f"{name}/model.safetensors")
        Path(name, "config.json").write_text(json.dumps({"model_type": "llama", "eos_token_id": 2}))
        if settings is not None:
            Path(name, "generation_config.json").write_text(json.dumps(settings))
    wanted = [f"the models generate text differently, according to generation_config.json: {said}"] if said else []
    assert [one for one in cs.diff("a", "b").notes if "generate" in one] == wanted


def phi(name: str, number: int) -> None:
    rope = {"rope_type": "longrope", "short_factor": [1.0] * number, "long_factor": [2.0] * number}
    Path(name).mkdir()
    save_file({"model.embed_tokens.weight": torch.ones(8, 16)}, f"{name}/model.safetensors")
    config = {"model_type": "phi3", "hidden_size": 64, "num_attention_heads": 4, "rope_parameters": rope}
    Path(name, "config.json").write_text(json.dumps(config))


def test_factors_of_long_texts_of_another_number_are_said() -> None:
    """Lists of which one is the beginning of the other differ, too."""
    phi("a", 8), phi("b", 48)
    assert not [one for one in cs.inspect("a").notes if "factor" in one]
    said = "config.json has 48 numbers in long_factor, but a head rotates 8 pairs of numbers: the model cannot be run"
    assert said in cs.inspect("b").notes
    (note,) = [one for one in cs.diff("a", "b").notes if "config.json files differ" in one]
    assert "long_factor is a list of 8 values in a, a list of 48 values in b" in note
    assert any("a list of 48 values" in one for one in cs.average(["a", "b"]).notes)


@pytest.mark.parametrize(
    "odd",
    [
        {"hidden_size": "64"}, {"hidden_size": [64]}, {"head_dim": 10**400}, {"hidden_size": 10**400}, {"num_attention_heads": 0}, {"num_attention_heads": None},
        {"partial_rotary_factor": "half"}, {"partial_rotary_factor": 1e400}, {"rope_parameters": [1]},
    ],
)  # fmt: skip
def test_sizes_that_are_none_say_nothing_of_factors(odd: dict[str, Any]) -> None:
    phi("a", 8)
    config = json.loads(Path("a/config.json").read_text())
    Path("a/config.json").write_text(json.dumps({**config, **odd}))
    assert not [one for one in cs.inspect("a").notes if "factor" in one and "rotates" in one]


def test_the_older_of_two_sections_on_rotary_embeddings_counts() -> None:
    """As in transformers 5; its ``rope_theta`` alone does not."""
    newer = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}
    older = {"rope_theta": 500000.0, "rope_scaling": {"type": "linear", "factor": 4.0}}
    for name, fields in (("a", newer), ("b", {**newer, **older}), ("c", {**newer, "rope_theta": 500000.0})):
        model(name, model_type="llama", **fields)
    (note,) = said(cs.average(["a", "b"]))
    assert "rope_theta is 10000.0 in a, 500000.0 in b" in note or "rope_theta is 500000.0 in b, 10000.0 in a" in note
    assert "linear" in note
    assert not said(cs.average(["a", "c"]))


@pytest.mark.parametrize(
    ("fields", "pairs"),
    [
        ({"model_type": "llama", "head_dim": 16}, 8),
        ({"model_type": "llama"}, 8),
        ({"model_type": "llama", "head_dim": 96}, 0),
        ({"model_type": "minicpm3", "head_dim": 64, "qk_rope_head_dim": 32}, 16),
        ({"model_type": "llama", "head_dim": 16, "partial_rotary_factor": 0.5}, 4),
    ],
)
def test_factors_of_any_model_of_longrope_are_counted(fields: dict[str, Any], pairs: int) -> None:
    rope = {"rope_type": "longrope", "short_factor": [1.0] * 48, "long_factor": [1.0] * 48}
    model("a", hidden_size=64, num_attention_heads=4, rope_parameters=rope, **fields)
    found = [one for one in cs.inspect("a").notes if "a head rotates" in one]
    assert len(found) == 2 * bool(pairs)
    assert all(f"48 numbers in {one}_factor" in note for one, note in zip(("short", "long"), found, strict=False))
    assert all(f"a head rotates {pairs} pairs" in note for note in found)


def test_the_section_of_transformers_5_has_its_own_name() -> None:
    model("a", rope_parameters={"rope_type": "linear", "factor": 2.0}), model("b", 2.0, rope_parameters={})
    assert any(
        "rope_parameters is {'factor': 2.0, 'rope_type': 'linear'} in a" in one for one in cs.diff("a", "b").notes
    )
