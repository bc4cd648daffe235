"""Destinations of transformers: what is built, without storage, and what is refused."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import ckptsurgeon as cs

from ...helpers.transformers_models import (
    BERT,
    CLIP,
    ESM,
    GPT2,
    MIXTRAL,
    MOBILEBERT,
    PARAKEET,
    T5,
    WAV2VEC2,
    WHISPER,
    config,
    model_of,
    opened,
    same,
    saved,
    write_config,
)
from ..torch_module.test_exact_values import SEED, ours, real

MODELS = {
    "BertForSequenceClassification": BERT,
    "BertForMaskedLM": BERT,
    "Wav2Vec2ForCTC": WAV2VEC2,
    "Wav2Vec2ForPreTraining": WAV2VEC2,
    "WhisperForConditionalGeneration": WHISPER,
    "GPT2LMHeadModel": GPT2,
    "T5ForConditionalGeneration": T5,
    "MixtralForCausalLM": MIXTRAL,
}


def section(path: str = "config.json", **fields: Any) -> str:
    Path("dst.yaml").write_text(yaml.safe_dump({"model": {"transformers": path, **fields}}))
    return "dst.yaml"


def refused(message: str, destination: str = "config.json") -> str:
    with pytest.raises(cs.ConfigError, match=message) as caught:
        cs.load_target(destination)
    assert caught.value.exit_code == 2
    return caught.value.hint


# What is built.


@pytest.mark.costly
@pytest.mark.parametrize("architecture", MODELS)
def test_values_are_bit_for_bit_those_of_a_real_construction(
    architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ckptsurgeon.destinations.torch_module.recording.graph as replay

    def build() -> Any:
        return model_of(MODELS[architecture], architecture)

    wanted = real(build, monkeypatch)
    monkeypatch.setattr(replay, "derived_seed", lambda *_: SEED)
    found, notes = ours(build)
    assert not notes
    assert list(found) == list(wanted)
    for key, value in wanted.items():
        assert torch.equal(found[key], value), key


@pytest.mark.costly
@pytest.mark.parametrize("architecture", MODELS)
def test_it_has_the_keys_shapes_dtypes_and_ties_of_the_real_one(architecture: str) -> None:
    write_config("config.json", MODELS[architecture], architecture)
    spec = cs.load_target("config.json")
    model = model_of(MODELS[architecture], architecture)
    state = model.state_dict(keep_vars=True)
    assert spec.kind == "transformers"
    assert [(key, info.shape, info.dtype) for key, info in spec.tensors.items()] == [
        (key, tuple(value.shape), str(value.dtype).removeprefix("torch.")) for key, value in state.items()
    ]
    first: dict[int, str] = {}
    ties = {key: first[id(v)] for key, v in state.items() if first.setdefault(id(v), key) != key}
    assert spec.ties == ties
    assert not any("built with its weights in memory" in note for note in spec.notes)


@pytest.mark.costly
@pytest.mark.parametrize("field", ["dtype", "torch_dtype"])
def test_the_dtype_is_the_one_of_the_configuration_or_float32(field: str) -> None:
    write_config("config.json", BERT, "BertModel")
    assert {info.dtype for info in cs.load_target("config.json").tensors.values()} == {"float32"}
    write_config("config.json", BERT, "BertModel", **{field: "bfloat16"})
    spec = cs.load_target("config.json")
    assert {info.dtype for info in spec.tensors.values()} == {"bfloat16"}
    key = "encoder.layer.0.output.dense.weight"
    [(_, data)] = spec.initial([key], 0)
    assert 0.01 < torch.frombuffer(bytearray(data), dtype=torch.bfloat16).float().std() < 0.03
    override = cs.load_target(section(dtype="half"))
    assert {info.dtype for info in override.tensors.values()} == {"float16"}


def test_without_an_architecture_it_is_what_automodel_gives() -> None:
    write_config("config.json", BERT)
    assert any(key == "pooler.dense.weight" for key in cs.load_target("config.json").tensors)
    Path("config.json").write_text(json.dumps({**config(BERT, "BertForTokenClassification"), "model_type": None}))
    assert "classifier.weight" in cs.load_target("config.json").tensors


def test_a_section_overrides_fields_and_names_the_architecture_or_a_folder() -> None:
    write_config("from/config.json", BERT, "BertModel")
    Path("dst.yaml").write_text(
        "model: {transformers: from, architecture: BertForSequenceClassification, num_labels: 5, hidden_size: 8}"
    )
    spec = cs.load_target("dst.yaml")
    assert spec.tensors["classifier.weight"].shape == (5, 8)
    text = next(one.text for one in spec.companions if one.name == "config.json")
    written = json.loads(text)
    assert (written["architectures"], written["hidden_size"]) == (["BertForSequenceClassification"], 8)
    assert len(written["id2label"]) == 5


@pytest.mark.long
def test_an_override_wins_over_labels_and_other_names_of_the_field() -> None:
    labels = {"id2label": {"0": "no", "1": "yes"}, "label2id": {"no": 0, "yes": 1}}
    write_config("config.json", BERT, "BertForSequenceClassification", **labels)
    assert cs.load_target(section(num_labels=2)).companions[0].text.count("yes") == 2
    assert "yes" not in cs.load_target(section(num_labels=3)).companions[0].text
    named = cs.load_target(section(id2label={"0": "a", "1": "b", "2": "c"}))
    assert named.tensors["classifier.weight"].shape == (3, 16)
    write_config("config.json", GPT2, "GPT2Model")
    assert cs.load_target(section(hidden_size=8)).tensors["wte.weight"].shape == (50, 8)


@pytest.mark.long
def test_the_vocabulary_axes_are_those_of_embeddings_and_output_layers() -> None:
    wanted = {
        "BertForMaskedLM": {"bert.embeddings.word_embeddings.weight": 0, "cls.predictions.bias": 0},
        "Wav2Vec2ForCTC": {"lm_head.weight": 0, "lm_head.bias": 0},
        "WhisperForConditionalGeneration": {"model.decoder.embed_tokens.weight": 0},
        "T5ForConditionalGeneration": {"shared.weight": 0},
        "MixtralForCausalLM": {"model.embed_tokens.weight": 0, "lm_head.weight": 0},
    }
    for architecture, axes in wanted.items():
        write_config("config.json", MODELS[architecture], architecture)
        assert cs.load_target("config.json").vocabulary == axes, architecture


@pytest.mark.costly
@pytest.mark.parametrize(
    ("architecture", "fields", "some"),
    [
        ("EsmForMaskedLM", ESM, "lm_head.bias"),
        ("MobileBertForMaskedLM", MOBILEBERT, "cls.predictions.dense.weight"),  # (in, tokens)
        ("ParakeetForCTC", PARAKEET, "ctc_head.bias"),
        ("BertForPreTraining", BERT, "cls.predictions.bias"),
        ("Wav2Vec2ForCTC", WAV2VEC2, "lm_head.bias"),
    ],
)
def test_no_axis_along_the_vocabulary_is_left_out(architecture: str, fields: dict[str, Any], some: str) -> None:
    """Where no other axis has its size, and where others have."""
    write_config("config.json", {**fields, "vocab_size": 211}, architecture)
    spec = cs.load_target("config.json")
    owned = {key: info.shape for key, info in spec.tensors.items() if key not in spec.ties}
    assert spec.vocabulary == {key: shape.index(211) for key, shape in owned.items() if 211 in shape}
    assert some in spec.vocabulary
    write_config("config.json", {**fields, "vocab_size": 32}, architecture, pad_token_id=0)
    other = cs.load_target("config.json")
    assert sum(32 in info.shape for info in other.tensors.values()) > len(spec.vocabulary)
    assert other.vocabulary == spec.vocabulary


@pytest.mark.long
def test_a_model_without_a_vocabulary_or_with_two_declares_none() -> None:
    write_config("config.json", {"model_type": "musicgen"}, "MusicgenForConditionalGeneration")
    assert cs.load_target("config.json").vocabulary == {}
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    write_config("config.json", {"model_type": "vit", **sizes}, "ViTModel")
    assert cs.load_target("config.json").vocabulary == {}


# What is refused.


@pytest.fixture
def no_transformers() -> Iterator[None]:
    hidden = {name: sys.modules.pop(name) for name in list(sys.modules) if name.partition(".")[0] == "transformers"}
    sys.modules["transformers"] = None  # type: ignore[assignment]
    yield
    del sys.modules["transformers"]
    sys.modules.update(hidden)


@pytest.mark.usefixtures("no_transformers")
def test_a_missing_package_is_named_with_its_extra() -> None:
    write_config("config.json", BERT, "BertModel")
    assert "ckptsurgeon[hf]" in refused("the package transformers is needed")
    assert "ckptsurgeon[hf]" in refused("the package transformers is needed", section())


@pytest.mark.long
def test_what_is_not_known_is_refused_with_what_is_near() -> None:
    write_config("config.json", {**BERT, "model_type": "brt"}, "BertModel")
    assert "bert" in refused("has no model_type 'brt'")
    write_config("config.json", BERT, "BertForSequenceClasification")
    assert "BertForSequenceClassification" in refused("has no model class 'BertForSequenceClasification'")
    write_config("config.json", BERT, "BertTokenizer")
    refused("has no model class 'BertTokenizer'")
    assert "alone" not in refused(
        "GPT2Model belongs to the model_type gpt2, not to bert", section(architecture="GPT2Model")
    )
    write_config("config.json", BERT, "BertModel")
    assert "num_labels" in refused("has no field 'num_label'", section(num_label=3))
    refused("has no field 'model_type'", section(model_type="gpt2"))


def test_a_class_of_another_model_type_gives_way_to_that_of_its_own_as_in_transformers() -> None:
    import transformers

    write_config("config.json", {**BERT, "is_decoder": True}, "GPT2LMHeadModel")
    target = cs.load_target("config.json")
    own = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.from_pretrained("config.json"))
    assert set(own.state_dict()) == set(target.tensors)
    assert type(own).__name__ in target.notes[0]
    assert "not GPT2LMHeadModel (architectures)" in target.notes[0]
    write_config("config.json", BERT, "T5ForConditionalGeneration")  # BERT has no such class
    refused("T5ForConditionalGeneration belongs to the model_type t5, not to bert")


def test_a_model_of_a_part_is_refused_as_transformers_refuses_it_and_built_from_the_part() -> None:
    import transformers

    model = saved("clip", CLIP, "CLIPModel")
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):  # visual_projection: 512 instead of 8
        transformers.CLIPVisionModelWithProjection.from_pretrained("clip")
    hint = refused(
        "belongs to the model_type clip_vision_model, not to clip",
        section("clip", architecture="CLIPVisionModelWithProjection"),
    )
    assert "vision_config alone" in hint
    part = {**CLIP["vision_config"], "model_type": "clip_vision_model", "projection_dim": CLIP["projection_dim"]}
    write_config("vision/config.json", part, "CLIPVisionModelWithProjection")
    cs.apply(cs.transplant("clip", "vision/config.json", on_missing="error"), "out")
    made, faults = opened("CLIPVisionModelWithProjection", "out")
    assert not faults
    same(made, model)


def test_code_that_a_configuration_names_is_never_run() -> None:
    Path("modeling_evil.py").write_text("raise SystemExit('it ran')")
    auto = {"AutoConfig": "modeling_evil.C", "AutoModel": "modeling_evil.M"}
    write_config("config.json", {"model_type": "evil"}, "EvilModel", auto_map=auto)
    assert "_target_" in refused("code listed in a configuration is never run")
    write_config("config.json", BERT, "EvilModel", auto_map=auto)
    refused("code listed in a configuration is never run")
    write_config("config.json", BERT, "BertModel", auto_map=auto)
    assert any("not run" in note for note in cs.load_target("config.json").notes)


def test_nothing_is_fetched_that_a_configuration_names(monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    def connected(*_: Any) -> None:
        raise AssertionError("it went to the network")

    monkeypatch.setattr(socket.socket, "connect", connected)
    write_config("config.json", BERT, "BertModel", _attn_implementation="kernels-community/flash-attn")
    assert cs.load_target("config.json").tensors
    write_config("config.json", BERT, "BertModel", quantization_config={"quant_method": "gptq", "bits": 4})
    refused("from which no quantised model can be built")


def test_a_configuration_that_is_none_is_refused() -> None:
    Path("config.json").write_text("{'model_type': ")
    refused("is not valid JSON")
    refused("is not valid JSON", section())
    Path("config.json").write_text('{"hidden_size": 3}')
    refused("has no `model:` section")
    refused("neither model_type nor architectures", section())
    Path("config.json").write_text("[]")
    refused("has no `model:` section")
    Path("config.json").unlink()
    refused("cannot be read", section())
    write_config("config.json", BERT, "BertModel", hidden_size="many")
    refused("refuses")
    write_config("config.json", BERT, "BertModel", hidden_size=15)
    refused("cannot be built.* not a multiple|refuses")


def test_bad_input_writes_nothing_and_ends_as_documented(ckpt: Callable[..., Any]) -> None:
    write_config("config.json", BERT, "BertModel")
    torch.save({"x": torch.ones(1)}, "other.pth")
    done = ckpt("transplant", "other.pth", section(num_label=3), "-o", "out")
    assert done.code == 2
    assert "num_labels" in done.err
    done = ckpt("transplant", "other.pth", "config.json", "-o", "out")
    assert done.code == 4
    assert "nothing would be loaded" in done.err
    assert not Path("out").exists()


@pytest.mark.long
def test_numbers_that_json_lacks_are_read_as_transformers_writes_them() -> None:
    """As {"__float__": "Infinity"}; the output has the same text."""
    import transformers

    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
    made = transformers.FalconH1ForCausalLM(transformers.FalconH1Config(**sizes, vocab_size=40))
    made.save_pretrained("net")
    assert '"__float__": "Infinity"' in Path("net/config.json").read_text()
    cs.apply(cs.transplant("net", "net/config.json"), "out")
    assert json.loads(Path("out/config.json").read_text())["time_step_limit"][1] == {"__float__": "Infinity"}
    assert not cs.verify("out").notes
