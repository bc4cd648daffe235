"""Texts and sounds as inputs of an encoder-decoder: what its decoder gets."""

from __future__ import annotations

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


def tokeniser(side: str = "right") -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {word: row for row, word in enumerate(["[PAD]", "[UNK]", "the", "cat", "sat"])}
    found = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    found.pre_tokenizer = pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=found, unk_token="[UNK]", pad_token="[PAD]", padding_side=side
    ).save_pretrained("a")
    Path("texts.txt").write_text("the cat\nthe cat sat\n")


@pytest.mark.parametrize(("side", "first"), [("right", [START, 2]), ("left", [START, 2])])
def test_a_decoder_gets_its_start_token_and_the_text(side: str, first: list[int]) -> None:
    model = t5()
    tokeniser(side)
    given = given_inputs("texts.txt", model, "a").arguments
    assert torch.equal(given["decoder_attention_mask"], given["attention_mask"])
    rows = zip(given["decoder_input_ids"], given["attention_mask"].bool(), strict=True)
    assert [row[real].tolist() for row, real in rows] == [first, [START, 2, 3]]


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
    with pytest.raises(cs.ConfigError, match="no decoder_start_token_id"):
        cs.prove("a", "a", inputs="texts.txt")


def test_a_decoder_of_sound_gets_its_start_token() -> None:
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
