"""Languages of translation and speech models that two files of a folder state differently."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import ckptsurgeon as cs
from ckptsurgeon.util.note_kind import NoteKind

from ..test_model_folders import model

FILE = "tokenizer_config.json"
NAMES = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
FIRST = ["<s>", "<pad>", "</s>", "a"]
LISTS = {
    "mbart": [*FIRST, "en_XX", "ro_RO", "de_DE"],
    "m2m_100": [*FIRST, "eng_Latn", "ron_Latn", "deu_Latn"],
    "m2m": [*FIRST, "__en__", "__ro__", "__de__"],
}
FORCED, START = "forced_bos_token_id", "decoder_start_token_id"


def notes(
    config: dict[str, Any], generation: dict[str, Any], settings: dict[str, Any], tokens: list[str], word: str
) -> list[str]:
    model("m", tokens=tokens, **{"eos_token_id": 2, "pad_token_id": 1, **config})
    Path("m/generation_config.json").write_text(json.dumps(generation))
    Path("m/tokenizer_config.json").write_text(json.dumps({**NAMES, **settings}))
    found = [one for one in cs.inspect("m").notes if word in one]
    assert [one for one in cs.convert("m").notes if word in one] == found
    return found


@pytest.mark.parametrize(
    ("name", "config", "generation", "target", "said"),
    [
        ("mbart", {START: 4}, {}, "ro_RO", f"{START} of config.json is 4 ('en_XX')"),
        ("mbart", {START: 5}, {START: 6}, "ro_RO", f"{START} of generation_config.json is 6 ('de_DE')"),
        ("mbart", {START: 2}, {FORCED: 4}, "ro_RO", f"{FORCED} of generation_config.json is 4 ('en_XX')"),
        ("mbart", {START: 5}, {}, "ro_RO", ""),
        ("mbart", {START: 2}, {}, "ro_RO", ""),
        ("mbart", {START: None}, {}, "ro_RO", ""),
        ("mbart", {START: 2, FORCED: 4}, {FORCED: 5}, "ro_RO", ""),  # transformers uses that of generation_config.json
        ("m2m_100", {START: 2, FORCED: 6}, {FORCED: 6}, "ron_Latn", f"{FORCED} of generation_config.json is 6 ('deu_Latn')"),
        ("m2m_100", {START: 2, FORCED: 6}, {}, "ron_Latn", f"{FORCED} of config.json is 6 ('deu_Latn')"),
        ("m2m_100", {START: 2, FORCED: 5}, {}, "ron_Latn", ""),
        ("m2m_100", {START: 2, FORCED: 6}, {}, None, ""),
        ("m2m_100", {START: 2, FORCED: 0}, {}, "ron_Latn", ""),
        ("m2m_100", {START: 2}, {}, "ron_Latn", ""),
        ("m2m", {START: 2, FORCED: 6}, {}, "ro", f"{FORCED} of config.json is 6 ('__de__')"),
        ("m2m", {START: 2, FORCED: 5}, {}, "ro", ""),
        ("llama", {START: 4}, {}, "ro_RO", ""),
    ],
)  # fmt: skip
def test_another_language_than_that_of_the_tokeniser_is_said(
    name: str, config: dict[str, Any], generation: dict[str, Any], target: str | None, said: str
) -> None:
    tokens = LISTS.get(name, LISTS["mbart"])
    kind = "m2m_100" if name == "m2m" else name
    found = notes({"model_type": kind, **config}, generation, {"tgt_lang": target}, tokens, "tgt_lang")
    assert found == ([f"{said}, while tgt_lang of {FILE} is '{tokens[5]}' (5)"] if said else [])
    assert all(one.kind is NoteKind.TOKEN_IDS for one in found)


@pytest.mark.parametrize(
    ("name", "settings", "said"),
    [
        ("m2m_100", {"src_lang": "en_XX"}, "src_lang of {} is 'en_XX', but vocab.json has no such token: its language "
         "tokens look like 'eng_Latn'"),
        ("m2m_100", {"src_lang": "eng_Latn", "tgt_lang": "fr"}, "tgt_lang of {} is 'fr', but"),
        ("m2m_100", {"src_lang": "eng_Latn", "tgt_lang": "ron_Latn"}, ""),
        ("m2m_100", {"src_lang": None, "tgt_lang": ""}, ""),
        ("m2m", {"src_lang": "en", "tgt_lang": "fr"}, "tgt_lang of {} is 'fr', but"),
        ("m2m", {"src_lang": "en"}, ""),
        ("", {"src_lang": "en"}, ""),  # the languages are in none of its files
        ("m2m_100", {"src_lang": "tyv_Cyrl", "added_tokens_decoder": {"7": {"content": "tyv_Cyrl"}}}, ""),
    ],
)  # fmt: skip
def test_a_language_without_a_token_is_said(name: str, settings: dict[str, Any], said: str) -> None:
    found = notes({"model_type": "m2m_100"}, {}, settings, LISTS.get(name, FIRST), "_lang of")
    assert len(found) == bool(said)
    assert all(one.startswith(said.format(FILE)) and one.kind is NoteKind.VOCABULARY for one in found)


SPEECH = ["<|endoftext|>", "a", "b", "<|en|>", "<|fr|>", "<|transcribe|>"]
MAP = {"lang_to_id": {"<|en|>": 3, "<|fr|>": 4}}
SAID = "language of generation_config.json is "


@pytest.mark.parametrize(
    ("fields", "settings", "said"),
    [
        ({"language": "<|fr|>", "forced_decoder_ids": [[1, 3], [2, 5]]}, {},
         f"forced_decoder_ids of generation_config.json has 3 ('<|en|>'), while {SAID}'<|fr|>' (4)"),
        ({"language": "French", "forced_decoder_ids": [[1, 3]]}, {},
         f"forced_decoder_ids of generation_config.json has 3 ('<|en|>'), while {SAID}'French' (4)"),
        ({"language": "fr", "forced_decoder_ids": [[1, 4], [2, 5]]}, {}, ""),
        ({"language": "fr", "forced_decoder_ids": [[1, None], [2, 5]]}, {}, ""),
        ({"language": "fr"}, {"language": "english"}, f"{SAID}'fr', but {FILE} says 'english' (language)"),
        ({"language": "fr"}, {"language": "french"}, ""),
        ({"language": "fr"}, {"language": None}, ""),
        ({}, {"language": "fr"}, ""),
        ({"language": "german"}, {}, f"{SAID}'german', but lang_to_id of this file has no id for it: generation fails"),
        ({"language": "klingon"}, {}, ""),
        ({"language": ["fr"]}, {}, ""),
    ],
)  # fmt: skip
def test_two_languages_of_a_speech_model_are_said(fields: dict[str, Any], settings: dict[str, Any], said: str) -> None:
    config = {"model_type": "whisper", "eos_token_id": 0, "pad_token_id": 0}
    found = notes(config, {**MAP, **fields}, settings, SPEECH, SAID)
    assert found == ([said] if said else [])
    kind = NoteKind.CONFIGURATION if said.endswith("(language)") else NoteKind.TOKEN_IDS
    assert all(one.kind is kind for one in found)
