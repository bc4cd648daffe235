"""A model's configuration and the numbers in its keys may be anything: no value of them stops or slows a command."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

import ckptsurgeon as cs
from ckptsurgeon.destinations.torch_module import construction

from ..helpers.depth import FULL
from ..helpers.pace import bounded, in_time, little_memory
from ..promises.clauses import INPUTS, clause

PROJECTIONS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
ODD = (
    "[]", "[[]]", "{}", '{"a": []}', '"x"', "1e999", "-1", "0", "true", "null", "1" + "0" * 400, '[1, "x", null, {}]',
    '{"model_type": [], "vocab_size": 1e9, "num_hidden_layers": 1000000000000}', "1000000000000",
)  # fmt: skip
CONFIG: dict[str, Any] = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 4, "intermediate_size": 4,
    "num_attention_heads": 2, "num_key_value_heads": 2, "num_hidden_layers": 2, "vocab_size": 6, "head_dim": 2,
    "layer_types": ["full_attention", "sliding_attention"], "rope_theta": 1e4, "rope_scaling": {"rope_type": "yarn"},
    "eos_token_id": 2, "bos_token_id": 1, "pad_token_id": 0, "image_token_id": 5, "tie_word_embeddings": False,
    "text_config": {}, "vision_config": {}, "quantization_config": {}, "num_local_experts": 2, "hidden_act": "silu",
    "first_k_dense_replace": 1, "max_position_embeddings": 8, "sliding_window": 4, "id2label": {}, "dtype": "float32",
}  # fmt: skip
T5: dict[str, Any] = {
    "model_type": "t5", "architectures": ["T5ForConditionalGeneration"], "d_model": 4, "d_ff": 4, "d_kv": 2,
    "num_heads": 2, "num_layers": 2, "num_decoder_layers": 2, "vocab_size": 6, "decoder_start_token_id": 0,
    "relative_attention_num_buckets": 4, "feed_forward_proj": "relu",
}  # fmt: skip
BART: dict[str, Any] = {
    "model_type": "bart", "architectures": ["BartForConditionalGeneration"], "d_model": 4, "encoder_layers": 2,
    "decoder_layers": 2, "encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 4,
    "decoder_ffn_dim": 4, "vocab_size": 6, "max_position_embeddings": 8, "forced_eos_token_id": 2,
}  # fmt: skip
MODELS = {
    "llama": (CONFIG, ("model.layers.{}.",)),
    "t5": (T5, ("encoder.block.{}.", "decoder.block.{}.")),
    "bart": (BART, ("model.encoder.layers.{}.", "model.decoder.layers.{}.")),
}
FIELDS = [(model, field) for model, (config, _) in MODELS.items() for field in config]


def model(kind: str, numbers: tuple[object, ...] = (0, 1)) -> Path:
    config, layers = MODELS[kind]
    keys = ["model.embed_tokens.weight", *(f"{head.format(n)}{name}.weight" for head in layers for n in numbers
            for name in (*PROJECTIONS, "mlp.up_proj", "mlp.experts.0.up_proj", "input_layernorm"))]  # fmt: skip
    made = Path("made")
    made.mkdir()
    save_file({key: np.zeros((6 if "embed" in key else 4, 4), np.float32) for key in keys}, made / "model.safetensors")
    (made / "config.json").write_text(json.dumps(config))
    words = {"<pad>": 0, "<s>": 1, "</s>": 2, "a": 3}
    (made / "tokenizer.json").write_text(json.dumps({"model": {"type": "BPE", "vocab": words, "merges": []}}))
    (made / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>", "bos_token": "<s>"}))
    return made


@clause(INPUTS)
@pytest.mark.parametrize(("kind", "field"), FIELDS, ids=map("-".join, FIELDS))
def test_any_value_of_a_field_is_read_or_refused_in_words(kind: str, field: str) -> None:
    made = model(kind)
    rest = json.dumps({name: value for name, value in MODELS[kind][0].items() if name != field})
    for odd in ODD if FULL else ODD[FIELDS.index((kind, field)) % 3 :: 3]:
        (made / "config.json").write_text(f'{rest[:-1]}, "{field}": {odd}}}')
        with little_memory(), in_time():
            assert cs.inspect(made).tensors  # with notes on what contradicts the weights, if any


@clause(INPUTS)
def test_a_model_type_that_is_no_name_is_said(ckpt: Any) -> None:
    made = model("llama")
    (made / "config.json").write_text(json.dumps({**CONFIG, "model_type": ["llama"]}))
    assert 'config.json: its model_type is ["llama"], not the name of a model' in " ".join(cs.inspect(made).notes)
    for verb in (
        "convert made",
        "average made made",
        "filter made --exclude **.up_proj.weight",
        "transplant made made",
    ):
        done = ckpt(*verb.split(), "-o", "out")
        assert done.code == 0, done.err
        assert "config.json is not copied" in " ".join(done.err.split())
        assert not Path("out/config.json").exists()
        shutil.rmtree("out")


VERBS: dict[str, Callable[[Path], object]] = {
    "inspect": cs.inspect,
    "convert": lambda made: cs.convert(made, dtype="bfloat16"),
    "filter": lambda made: cs.filter(made, exclude="**.up_proj.weight"),
    "diff": lambda made: cs.diff(made, made, renames=True, values=True),
    "match": lambda made: cs.match(made, made),
    "average": lambda made: cs.average([made, made]),
    "merge": lambda made: cs.merge([made, made], method="linear", weights=[1, 1]),
    "transplant": lambda made: cs.transplant(made, made),
    "view": lambda made: cs.view(made),
}


@clause(INPUTS)
@pytest.mark.parametrize("number", ["1" + "0" * 12, "1" + "0" * 30, "9" * 5000], ids=["12", "30", "5000"])
@pytest.mark.parametrize("verb", VERBS)
def test_a_number_in_a_key_may_be_of_any_length(verb: str, number: str) -> None:
    """In ``make test`` with one of the networks: another one with the next verb."""
    for kind in MODELS if FULL else [[*MODELS][([*VERBS].index(verb) + len(number) // 10) % 3]]:
        made = model(kind, (0, 1, number)).rename(kind)
        for has_config in (True, False) if kind == "llama" else (True,):
            if not has_config:
                (made / "config.json").unlink()
            with little_memory(), in_time():
                assert VERBS[verb](made) is not None


ALIKE = ("layers of BART", "labels", "vision_config")
"""Networks without end that the code refuses as it does those of T5, of experts and of text_config."""
PLAIN = {name: value for name, value in CONFIG.items() if value != {}}
"""Without quantization_config: a model that is quantised is compared by its tensors, and no network is built."""
ENDLESS: dict[str, dict[str, Any]] = {
    "layers": {**PLAIN, "num_hidden_layers": 1 << 40},
    "layers of T5": {**T5, "num_decoder_layers": 1 << 40},
    "layers of BART": {**BART, "encoder_layers": 1 << 40},
    "experts": {**PLAIN, "model_type": "mixtral", "architectures": ["MixtralForCausalLM"], "num_local_experts": 1 << 40},
    "labels": {**PLAIN, "num_labels": 1 << 40},
    "text_config": {
        "model_type": "llava", "architectures": ["LlavaForConditionalGeneration"],
        "text_config": {**PLAIN, "num_hidden_layers": 1 << 40},
    },
    "vision_config": {
        "model_type": "llava", "architectures": ["LlavaForConditionalGeneration"], "text_config": PLAIN,
        "vision_config": {"model_type": "clip_vision_model", "num_hidden_layers": 1 << 40},
    },
    "depths": {"model_type": "swin", "architectures": ["SwinModel"], "depths": [1, 1 << 40]},
}  # fmt: skip


@cache
def build_once(path: Path) -> None:
    """Build a network here: what that imports takes seconds, and is there in the processes that are forked."""
    cs.check(path)


@clause(INPUTS)
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.long) if name in ALIKE else name for name in ENDLESS]
)
def test_a_network_of_modules_without_end_is_not_built(name: str) -> None:
    pytest.importorskip("transformers")
    made = model("llama")
    build_once(made)
    (made / "config.json").write_text(json.dumps(ENDLESS[name]))
    config = made / "config.json"
    for verb in (("transplant", made, config, "-n"), ("fits", made, config)):
        done = bounded(*verb, "--json", memory=1 << 30)
        assert done.returncode == 3, (verb, done.returncode, done.out[-500:], done.err[-500:])
        said = json.loads(done.err or done.out)
        assert (said["error"], said["rule"]) == ("UnsafeError", "modules"), said
    done = bounded("check", made, "-v", memory=1 << 30)
    assert "too many modules to build" in " ".join(done.out.split()), (done.returncode, done.err[-500:])


SWITCH: dict[str, Any] = {
    "model_type": "switch_transformers", "architectures": ["SwitchTransformersForConditionalGeneration"], "d_model": 4,
    "d_ff": 4, "d_kv": 2, "num_heads": 2, "vocab_size": 6, "num_layers": 6, "num_sparse_encoder_layers": 6,
    "num_decoder_layers": 6, "num_sparse_decoder_layers": 6, "num_experts": 12, "decoder_start_token_id": 0,
}  # fmt: skip
"""A model whose experts are modules: no number is large, but layers times experts are."""
DOCUMENTS: dict[str, dict[str, Any]] = {
    "factory": {"_target_": "torch.nn.LSTM", "input_size": 4, "hidden_size": 4, "num_layers": 100},
    "copies of a layer": {
        "_target_": "torch.nn.TransformerEncoder", "num_layers": 100,
        "encoder_layer": {"_target_": "torch.nn.TransformerEncoderLayer", "d_model": 4, "nhead": 1, "batch_first": True},
    },
    "bundled": {"name": "hybrid_asr", "tokens": "tokens.txt", "d_model": 8, "heads": 2, "encoder_layers": 30},
}  # fmt: skip


def refused(path: Path) -> str:
    with pytest.raises(cs.UnsafeError) as error, in_time():
        cs.transplant(model("llama"), path)
    assert error.value.rule == "modules"
    return error.value.message


@clause(INPUTS)
def test_a_product_of_layers_and_experts_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("transformers")
    monkeypatch.setattr(construction, "MOST_PARAMETERS", 300)
    Path("config.json").write_text(json.dumps(SWITCH))
    assert refused(Path("config.json")) == "config.json would have over 300 parameters: it is not built."


@clause(INPUTS)
@pytest.mark.parametrize("kind", DOCUMENTS)
def test_networks_of_other_configurations_are_bounded_too(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(construction, "MOST_PARAMETERS", 300)
    Path("tokens.txt").write_text("<blank>\na\n")
    Path("dst.yaml").write_text(json.dumps({"model": DOCUMENTS[kind]}))
    assert refused(Path("dst.yaml")).startswith("dst.yaml would have over 300 parameters: it is not built.")


@clause(INPUTS)
@pytest.mark.parametrize("field", ["encoder_layers", "decoder_layers", "heads"])
def test_numbers_of_bundled_models_are_bounded_before_they_are_built(field: str) -> None:
    Path("tokens.txt").write_text("<blank>\na\n")
    Path("dst.yaml").write_text(json.dumps({"model": {**DOCUMENTS["bundled"], field: 1 << 40}}))
    assert f"{field} is 1,099,511,627,776, over" in refused(Path("dst.yaml"))


@clause(INPUTS)
@pytest.mark.parametrize("field", ["num_attention_heads", "num_key_value_heads"])
def test_a_number_of_heads_is_bounded(field: str) -> None:
    pytest.importorskip("transformers")
    Path("config.json").write_text(json.dumps({**PLAIN, field: 1 << 40}))
    assert f"{field} is 1,099,511,627,776, over 65,536" in refused(Path("config.json"))
