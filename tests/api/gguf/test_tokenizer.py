"""The tokeniser of a folder in the metadata of GGUF."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest

import ckptsurgeon as cs
from ckptsurgeon.api.gguf.splitters import SPLITTERS

from .test_layouts import model

LLAMA_3 = next(patterns[0] for patterns, name in SPLITTERS.items() if name == "llama-bpe")


DEEPSEEK = (
    r"\p{N}{1,3}",
    "[一-龥぀-ゟ゠-ヿ]+",
    "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+"
    "| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+",
)
"""The splits of DeepSeek V3's tokenizer.json, where ends of lines are not escaped a second time."""


GPT_4O = (
    "[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]*[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    "[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]+[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    "\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
)


def splitter(*patterns: str) -> dict[str, Any]:
    splits = [{"type": "Split", "pattern": {"Regex": one}, "behavior": "Isolated"} for one in patterns]
    return {"type": "Sequence", "pretokenizers": [*splits, {"type": "ByteLevel", "use_regex": False}]}


def tokenizer(pre: Any, **fields: Any) -> dict[str, Any]:
    listed = {token: number for number, token in enumerate(["a", "b", "Ġ", "ab", "Ġa"])}
    return {
        "added_tokens": [
            {"id": 5, "content": "<s>", "special": True},
            {"id": 7, "content": "<tool>", "special": False},
        ],
        "pre_tokenizer": pre,
        "post_processor": {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>"}}, {"Sequence": {}}]},
        "model": {"type": "BPE", "vocab": listed, "merges": [["a", "b"], "Ġ a"]},
        **fields,
    }


def written(document: dict[str, Any] | None, config: dict[str, Any] | None = None) -> tuple[Any, tuple[str, ...]]:
    """The metadata and its stored bytes of a tiny model with such a tokenizer.json, and the notes."""
    model("llama", bos_token_id=5, eos_token_id=[3, 4])
    if document is not None:
        Path("model/tokenizer.json").write_text(json.dumps(document))
    if config is not None:
        Path("model/tokenizer_config.json").write_text(json.dumps(config))
    receipt = cs.apply(cs.convert("model", layout="gguf"), "x.gguf")
    with cs.open_checkpoint("x.gguf") as found:
        file = found.open_files()[""]
        raw = {key: file.read(one.offset, one.nbytes) for key, one in found.header.stored.items()}
        return (dict(found.metadata), raw), receipt.notes


def texts(raw: bytes) -> list[str]:
    (number,), at, found = struct.unpack("<Q", raw[4:12]), 12, []
    for _ in range(number):
        (length,) = struct.unpack_from("<Q", raw, at)
        found.append(raw[at + 8 : at + 8 + length].decode())
        at += 8 + length
    assert at == len(raw)
    return found


def test_tokens_kinds_merges_and_special_ids() -> None:
    (said, raw), notes = written(tokenizer(splitter(LLAMA_3)), {"eos_token": "b", "chat_template": "{{ x }}"})
    tokens = texts(raw["tokenizer.ggml.tokens"])
    assert tokens[:9] == ["a", "b", "Ġ", "ab", "Ġa", "<s>", "[PAD6]", "<tool>", "[PAD8]"]
    assert len(tokens) == 96
    kinds = struct.unpack("<96i", raw["tokenizer.ggml.token_type"][12:])
    assert kinds[:9] == (1, 1, 1, 1, 1, 3, 5, 4, 5)
    assert texts(raw["tokenizer.ggml.merges"]) == ["a b", "Ġ a"]
    want = {
        "model": "gpt2", "pre": "llama-bpe", "bos_token_id": "5", "eos_token_id": "1", "add_bos_token": "true",
    }  # fmt: skip
    assert {key: said[f"tokenizer.ggml.{key}"] for key in want} == want
    assert said["tokenizer.chat_template"] == "{{ x }}"
    assert not any("tokenis" in note for note in notes)
    assert "89 rows without a token get the names [PAD6] to [PAD95]" in notes


@pytest.mark.costly
@pytest.mark.parametrize(
    ("pre", "name"),
    [
        (splitter(LLAMA_3.replace("{1,3}", "")), "qwen2"),
        (splitter(*DEEPSEEK), "deepseek-v3"),
        (splitter(GPT_4O), "gpt-4o"),
        (splitter(*DEEPSEEK[1:]), ""),
        (splitter(*DEEPSEEK[::-1]), ""),
        ({"type": "ByteLevel", "use_regex": True}, "gpt-2"),
        (splitter(r"\p{L}+"), ""),
    ],
)  # fmt: skip
def test_a_splitter_is_named_or_a_note_says_that_it_is_missing(pre: Any, name: str) -> None:
    (said, _), notes = written(tokenizer(pre))
    assert said.get("tokenizer.ggml.pre", "") == name
    assert any("--set-metadata tokenizer.ggml.pre=NAME" in note for note in notes) is (not name)


def test_ids_of_the_configuration_serve_without_those_of_the_tokeniser() -> None:
    (said, _), _ = written(tokenizer(splitter(LLAMA_3)), {"add_bos_token": False})
    assert (said["tokenizer.ggml.eos_token_id"], said["tokenizer.ggml.add_bos_token"]) == ("3", "false")


@pytest.mark.costly
@pytest.mark.parametrize(
    ("document", "why"),
    [
        (None, "the folder has no tokenizer.json"),
        (tokenizer({"type": "Metaspace"}), "tokenizer.json is not a byte-level BPE tokeniser, and there is no tokenizer.model"),
        (tokenizer(splitter(LLAMA_3), model={"type": "Unigram", "vocab": []}), "is not a byte-level BPE tokeniser"),
        (tokenizer(splitter(LLAMA_3), added_tokens=[{"id": 2**40, "content": "x"}]), "their ids go up to"),
    ],
)  # fmt: skip
def test_what_is_missing_is_said(document: Any, why: str) -> None:
    (said, _), notes = written(document)
    assert any(note.startswith("the output has no tokeniser: ") and why in note for note in notes), notes
    assert "tokenizer.ggml.model" not in said


def piece(text: str, score: float, kind: int = 1) -> bytes:
    raw = text.encode()
    body = (
        b"\n" + bytes([len(raw)]) + raw + b"\x15" + struct.pack("<f", score) + (b"\x18" + bytes([kind])) * (kind != 1)
    )
    return b"\n" + bytes([len(body)]) + body


def test_pieces_of_sentencepiece_have_scores_and_kinds() -> None:
    model("gemma2", bos_token_id=1)
    pieces = [("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("<0x0A>", 0.0, 6), ("▁a", -1.5, 1)]
    Path("model/tokenizer.model").write_bytes(b"".join(piece(*one) for one in pieces))
    Path("model/tokenizer.json").write_text(
        json.dumps({"added_tokens": [{"id": 4, "content": "<x>", "special": True}]})
    )
    receipt = cs.apply(cs.convert("model", layout="gguf"), "x.gguf")
    assert any(note.endswith("without a token get the names [PAD5] to [PAD95]") for note in receipt.notes)
    with cs.open_checkpoint("x.gguf") as found:
        file = found.open_files()[""]
        raw = {key: file.read(one.offset, one.nbytes) for key, one in found.header.stored.items()}
        said = dict(found.metadata)
    assert texts(raw["tokenizer.ggml.tokens"])[:6] == ["<unk>", "<s>", "<0x0A>", "▁a", "<x>", "[PAD5]"]
    assert struct.unpack_from("<6i", raw["tokenizer.ggml.token_type"], 12) == (2, 3, 6, 1, 3, 5)
    assert struct.unpack_from("<6f", raw["tokenizer.ggml.scores"], 12) == (0, 0, 0, -1.5, -1000, -1000)
    assert (said["tokenizer.ggml.model"], said["tokenizer.ggml.add_space_prefix"]) == ("llama", "false")
    assert said["tokenizer.ggml.bos_token_id"] == "1"


@pytest.mark.long
def test_a_list_beside_tokenizer_json_that_contradicts_it_is_noted() -> None:
    """The GGUF file gets the tokens of tokenizer.json alone, so nothing in it tells of the other list."""
    model("llama")
    document = tokenizer(splitter(LLAMA_3))
    del document["added_tokens"][1]  # whose id leaves a gap
    Path("model/tokenizer.json").write_text(json.dumps(document))
    own = document["model"]["vocab"]
    for listed, contradicts in ((own, False), ({**own, "ab": own["Ġa"], "Ġa": own["ab"]}, True)):
        Path("model/vocab.json").write_text(json.dumps(listed))
        receipt = cs.apply(cs.convert("model", layout="gguf"), "x.gguf", force=True)
        said = "model: vocab.json and tokenizer.json have different tokens in 2 of 5 rows"
        assert any(note.startswith(said) for note in receipt.notes) is contradicts, receipt.notes
