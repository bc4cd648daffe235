"""Texts and sounds as inputs of an encoder-decoder: what its decoder gets."""

from __future__ import annotations

import json
import re
import sys
import wave
from pathlib import Path
from typing import Any

import pytest
import torch

import ckptsurgeon as cs
from ckptsurgeon.api.prove.inputs import given_inputs

transformers = pytest.importorskip("transformers")
START = 7


def t5(**fields: Any) -> Any:
    """A model in the folder ``a``, with a tokeniser of seven words."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 8, "d_model": 8, "d_kv": 4, "d_ff": 16, "num_layers": 1, "num_heads": 2}
    config = transformers.T5Config(**{**sizes, "decoder_start_token_id": START, **fields})
    model = transformers.T5ForConditionalGeneration(config)
    model.save_pretrained("a")
    return model


BART = {
    "vocab_size": 8, "d_model": 8, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "max_position_embeddings": 16,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 5, "forced_eos_token_id": 5,
}  # fmt: skip


def edit(name: str = "config.json", drop: str = "", **fields: Any) -> None:
    path = Path("a", name)
    found = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({key: value for key, value in {**found, **fields}.items() if key != drop}))


def tokeniser(side: str = "right", text: str = "the cat\nthe cat sat\n", **fields: Any) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {word: row for row, word in enumerate(["[PAD]", "[UNK]", "the", "cat", "sat"])}
    found = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    found.pre_tokenizer = pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=found, unk_token="[UNK]", pad_token="[PAD]", padding_side=side, **fields
    ).save_pretrained("a")
    Path("texts.txt").write_text(text)


@pytest.mark.parametrize("side", ["right", "left"])
def test_a_decoder_gets_its_start_token_and_the_text(side: str) -> None:
    model = t5()
    tokeniser(side)
    given = given_inputs("texts.txt", model, "a").arguments
    assert torch.equal(given["decoder_attention_mask"], given["attention_mask"])
    rows = zip(given["decoder_input_ids"], given["attention_mask"].bool(), strict=True)
    assert [row[real].tolist() for row, real in rows] == [[START, 2], [START, 2, 3]]


def test_one_text_without_a_mask_starts_at_its_first_token() -> None:
    model = t5()
    tokeniser(text="the cat sat", model_input_names=["input_ids"])
    given = given_inputs("texts.txt", model, "a").arguments
    assert given["decoder_input_ids"].tolist() == [[START, 2, 3]]
    assert given["decoder_attention_mask"].tolist() == [[1, 1, 1]]


@pytest.mark.parametrize(
    ("file", "fields"),
    [
        ("generation_config.json", {"decoder_start_token_id": START}),
        ("generation_config.json", {"bos_token_id": START}),
        ("config.json", {"bos_token_id": START}),
        ("config.json", {"decoder": {"decoder_start_token_id": START}}),
        ("config.json", {"decoder": {"bos_token_id": START}}),
    ],
)
def test_a_start_token_is_found_where_generation_finds_it(file: str, fields: dict[str, Any]) -> None:
    model = t5(decoder_start_token_id=None)
    for name, value in fields.items() if file == "config.json" else ():
        setattr(model.config, name, transformers.T5Config(**value) if name == "decoder" else value)
    Path("a/generation_config.json").unlink(missing_ok=True)
    tokeniser()
    if file == "generation_config.json":
        edit(file, **fields)
    assert set(given_inputs("texts.txt", model, "a").arguments["decoder_input_ids"][:, 0].tolist()) == {START}


@pytest.mark.parametrize("value", [2**70, 2**31, -1, True, 3.0, [], [1, 2], "1", {"a": 1}])
def test_a_value_that_is_no_id_is_an_error(value: Any) -> None:
    """Another field is not taken instead: what the decoder begins with would not be what the file says."""
    model = t5()
    model.config.decoder_start_token_id = value
    tokeniser()
    edit("generation_config.json", bos_token_id=5)
    said = f"decoder_start_token_id of config.json is {value!r}, which is not a token id."
    with pytest.raises(cs.ConfigError, match=re.escape(said)) as caught:
        given_inputs("texts.txt", model, "a")
    assert caught.value.hint.startswith("Correct decoder_start_token_id, or give the arguments")


@pytest.mark.costly
@pytest.mark.parametrize("field", ["decoder_start_token_id", "bos_token_id"])
def test_a_value_of_generation_config_json_that_is_no_id_is_an_error(field: str) -> None:
    t5()
    tokeniser()
    for name in ("config.json", "generation_config.json"):
        edit(name, drop="decoder_start_token_id")
    edit("generation_config.json", **{field: 2**70})
    with pytest.raises(cs.ConfigError, match=f"{field} of generation_config.json is {2**70}, which is not a token id"):
        cs.prove("a", "a", inputs="texts.txt")


def test_generation_may_have_the_start_token_once_for_each_text() -> None:
    t5()
    tokeniser()
    edit(drop="decoder_start_token_id")
    edit("generation_config.json", decoder_start_token_id=[START, START])
    assert cs.prove("a", "a", inputs="texts.txt").verdict == "SAME"


def test_the_default_of_a_class_comes_last() -> None:
    """That of Marian's class is 58100; its models have it in config.json, or in generation_config.json alone."""
    torch.manual_seed(0)
    found = transformers.MarianConfig(**{**BART, "decoder_start_token_id": 7})
    transformers.MarianMTModel(found).save_pretrained("a")
    tokeniser()
    edit(drop="decoder_start_token_id")
    edit("generation_config.json", decoder_start_token_id=3)
    assert "decoder_input_ids" in cs.prove("a", "a", inputs="texts.txt").inputs
    edit("generation_config.json", drop="decoder_start_token_id")
    said = (
        "decoder_start_token_id of MarianConfig (config.json has none) is 58100, but the decoder of this network has 8"
    )
    with pytest.raises(cs.ConfigError, match=re.escape(said)):
        cs.prove("a", "a", inputs="texts.txt")


@pytest.mark.costly
@pytest.mark.parametrize(
    ("file", "field"),
    [
        ("config.json", "decoder_start_token_id"),
        ("generation_config.json", "decoder_start_token_id"),
        ("generation_config.json", "bos_token_id"),
    ],
)
@pytest.mark.parametrize("start", [8, 1_000_000])
def test_a_start_token_that_the_decoder_lacks_is_named(file: str, field: str, start: int) -> None:
    t5()
    tokeniser()
    for name in ("config.json", "generation_config.json"):
        edit(name, drop="decoder_start_token_id")
    edit(file, **{field: start})
    said = f"{field} of {file} is {start}, but the decoder of this network has 8 tokens."
    with pytest.raises(cs.ConfigError, match=said) as caught:
        cs.prove("a", "a", inputs="texts.txt")
    assert caught.value.hint.startswith(f"Correct {field}, or give the arguments")


@pytest.mark.costly
@pytest.mark.parametrize("text", ["...\n", "...\n...\n"])
def test_texts_without_tokens_are_an_error(text: str) -> None:
    """The normaliser of the tokeniser may remove all of a text."""
    t5()
    tokeniser(text=text)
    document = json.loads(Path("a/tokenizer.json").read_text())
    document["normalizer"] = {"type": "Replace", "pattern": {"String": "."}, "content": ""}
    Path("a/tokenizer.json").write_text(json.dumps(document))
    with pytest.raises(cs.ConfigError, match="has no inputs: input_ids has no elements"):
        cs.prove("a", "a", inputs="texts.txt")
    Path("texts.txt").write_text(f"{text}the cat\n")
    assert cs.prove("a", "a", inputs="texts.txt").verdict == "SAME"


def test_config_json_says_where_a_decoder_starts_before_generation_config_json() -> None:
    model = t5(bos_token_id=1)
    tokeniser()
    edit("generation_config.json", decoder_start_token_id=3)
    assert given_inputs("texts.txt", model, "a").arguments["decoder_input_ids"][0, 0] == START


def test_verbs_run_t5_whose_start_token_is_in_generation_config_json() -> None:
    t5()
    tokeniser()
    edit(drop="decoder_start_token_id")
    assert cs.prove("a", "a", inputs="texts.txt").verdict == "SAME"


@pytest.mark.costly
@pytest.mark.parametrize("kind", ["MBart", "PLBart"])
def test_a_class_that_starts_with_the_last_token_makes_its_tokens(kind: str) -> None:
    """It moves the token of the language to the front; with a start token, the decoder gets this one."""
    torch.manual_seed(0)
    of = getattr(transformers, f"{kind}Config"), getattr(transformers, f"{kind}ForConditionalGeneration")
    of[1](of[0](**BART)).save_pretrained("a")
    tokeniser()
    found = cs.prove("a", "a", inputs="texts.txt")
    assert (found.verdict, "decoder" in found.inputs) == ("SAME", False)
    edit(decoder_start_token_id=START)
    assert "decoder_input_ids" in cs.prove("a", "a", inputs="texts.txt").inputs


def test_bart_without_a_start_token_starts_with_the_first_of_a_text() -> None:
    model = transformers.BartForConditionalGeneration(transformers.BartConfig(**BART, decoder_start_token_id=None))
    tokeniser()
    assert given_inputs("texts.txt", model, "a").arguments["decoder_input_ids"][0, 0] == 1


def test_a_decoder_without_the_method_for_its_embedding_has_tokens_too() -> None:
    """FSMT's decoder lacks ``get_input_embeddings``."""
    sizes = {
        "d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
        "decoder_attention_heads": 2, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16,
    }  # fmt: skip
    config = transformers.FSMTConfig(langs=["en", "de"], src_vocab_size=8, tgt_vocab_size=8, **sizes)
    model = transformers.FSMTForConditionalGeneration(config)
    tokeniser()
    for token in (7, 8):
        model.config.decoder_start_token_id = token
        if token == 7:
            assert given_inputs("texts.txt", model, "a").arguments["decoder_input_ids"][0, 0] == 7
            continue
        with pytest.raises(cs.ConfigError, match="is 8, but the decoder of this network has 8 tokens"):
            given_inputs("texts.txt", model, "a")


def test_a_decoder_of_audio_in_channels_makes_its_tokens() -> None:
    torch.manual_seed(0)
    sizes = {
        "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 4,
        "intermediate_size": 8, "max_position_embeddings": 16,
    }  # fmt: skip
    cross = {
        "cross_num_attention_heads": 2, "cross_num_key_value_heads": 2, "cross_head_dim": 4, "cross_hidden_size": 8,
        "num_channels": 2, "bos_token_id": 3, "eos_token_id": 2, "pad_token_id": 1,
    }  # fmt: skip
    config = transformers.DiaConfig(
        encoder_config={**sizes, "vocab_size": 8}, decoder_config={**sizes, **cross, "vocab_size": 8},
        delay_pattern=[0, 1],
    )  # fmt: skip
    transformers.DiaForConditionalGeneration(config).save_pretrained("a")
    tokeniser()
    found = cs.prove("a", "a", inputs="texts.txt")
    assert (found.verdict, "decoder" in found.inputs) == ("SAME", False)


def test_a_decoder_gets_a_mask_only_if_its_class_takes_one() -> None:
    class Own(torch.nn.Module):
        config = transformers.T5Config(decoder_start_token_id=START)

        def forward(self, input_ids: Any, attention_mask: Any, decoder_input_ids: Any) -> None: ...

    t5()
    tokeniser()
    assert [*given_inputs("texts.txt", Own(), "a").arguments][-1] == "decoder_input_ids"


def test_an_id_without_a_row_in_a_nested_configuration_is_named() -> None:
    """It is not an id of a vocabulary that a YAML file made smaller."""
    sizes = {
        "vocab_size": 8,
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 8,
    }
    encoder = transformers.BertConfig(**sizes)
    decoder = transformers.BertConfig(is_decoder=True, add_cross_attention=True, **sizes)
    config = transformers.EncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder)
    transformers.EncoderDecoderModel(config).save_pretrained("a")
    tokeniser()
    edit(decoder_start_token_id=8, pad_token_id=0)
    with pytest.raises(cs.ConfigError, match="is 8, but the decoder of this network has 8 tokens") as caught:
        cs.prove("a", "a", inputs="texts.txt")
    assert caught.value.hint.startswith("Correct decoder_start_token_id")
    said = "the vocabulary size is 8, but decoder_start_token_id of config.json is 8: there is no row for these ids"
    assert any(said in note for note in cs.transplant("a", "a/config.json").notes)


@pytest.mark.costly
@pytest.mark.parametrize("tokens", [4, 3])
def test_tokens_that_the_decoder_lacks_are_an_error(tokens: int) -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    encoder = transformers.BertConfig(vocab_size=8, **sizes)
    decoder = transformers.BertConfig(vocab_size=tokens, is_decoder=True, add_cross_attention=True, **sizes)
    config = transformers.EncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder)
    config.decoder_start_token_id, config.pad_token_id = 1, 0
    transformers.EncoderDecoderModel(config).save_pretrained("a")
    tokeniser()
    if tokens == 4:
        assert cs.prove("a", "a", inputs="texts.txt").verdict == "SAME"
        return
    with pytest.raises(cs.ConfigError, match="have token 3, but the decoder of this network has 3 tokens") as caught:
        cs.prove("a", "a", inputs="texts.txt")
    assert "--inputs FILE.safetensors" in caught.value.hint


@pytest.mark.long
def test_verbs_run_an_encoder_decoder_on_texts() -> None:
    t5()
    tokeniser()
    found = cs.prove("a", "a", inputs="texts.txt")
    assert found.verdict == "SAME"
    assert "decoder_input_ids (2, 3)" in found.inputs
    names = [step.key for step in cs.stats("a", inputs="texts.txt", gram=True).steps]
    assert {one.partition(".")[0] for one in names} >= {"encoder", "decoder"}


def test_a_decoder_without_a_start_token_is_an_error() -> None:
    t5(decoder_start_token_id=None)
    tokeniser()
    with pytest.raises(cs.ConfigError, match="the network of a does not run") as caught:
        cs.prove("a", "a", inputs="texts.txt")
    assert caught.value.hint.startswith("Neither config.json nor generation_config.json has the token")


@pytest.mark.long
def test_a_decoder_of_sound_gets_its_start_token(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    config = transformers.WhisperConfig(
        vocab_size=16, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16, max_target_positions=8,
        max_source_positions=50, decoder_start_token_id=START, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    transformers.WhisperForConditionalGeneration(config).save_pretrained("a")
    transformers.WhisperFeatureExtractor(chunk_length=1).save_pretrained("a")
    with wave.open("a.wav", "wb") as file:
        file.setparams((1, 2, 16_000, 0, "NONE", ""))
        file.writeframes(bytes(2 * 16_000))
    found = cs.prove("a", "a", inputs="a.wav")
    assert found.verdict == "SAME"
    assert "decoder_input_ids (1, 1)" in found.inputs
    edit(decoder_start_token_id=16)
    with pytest.raises(cs.ConfigError, match="decoder_start_token_id of config.json is 16, but the decoder of"):
        cs.prove("a", "a", inputs="a.wav")
    edit(drop="decoder_start_token_id")  # the default of the class is 50257
    edit("generation_config.json", decoder_start_token_id=START)
    assert cs.prove("a", "a", inputs="a.wav").verdict == "SAME"
    monkeypatch.setitem(sys.modules, "soundfile", None)  # as if it were not installed
    with pytest.raises(cs.ConfigError, match="the package soundfile is needed") as error:
        cs.prove("a", "a", inputs="a.wav")
    assert "pip install soundfile" in error.value.hint


def test_a_text_that_is_cut_is_said() -> None:
    model = t5()
    tokeniser(text=f"{'cat ' * 513}\n{'cat ' * 512}\nthe cat\n")
    given = given_inputs("texts.txt", model, "a")
    assert given.arguments["input_ids"].shape == (3, 512)
    assert given.notes[0].endswith(" from texts.txt (1 line is cut to 512 tokens)")
    tokeniser(text=f"{'cat ' * 512}\n")
    assert not given_inputs("texts.txt", model, "a").notes
