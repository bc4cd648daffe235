"""Lists of a target language, of entities, of bytes and of a decoder are compared with the rows of their own tensors."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import ckptsurgeon as cs

DECODER, SHARED = "model.decoder.embed_tokens.weight", "shared.weight"
ENTITIES = "luke.entity_embeddings.entity_embeddings.weight"


def numbered(number: int) -> dict[str, int]:
    return {f"t{place}": place for place in range(number)}


def notes(key: str, files: dict[str, Any], rows: int = 10) -> list[str]:
    os.makedirs("m", exist_ok=True)
    save_file({key: torch.ones(rows, 4)}, "m/model.safetensors", {"format": "pt"})
    for name, content in {"config.json": {"model_type": "some"}, **files}.items():
        Path("m", name).write_text(json.dumps(content))
    return [note for note in cs.inspect("m").notes if " has ids up to " in note]


@pytest.mark.parametrize(
    ("key", "name", "content", "said"),
    [
        (DECODER, "target_vocab.json", numbered, "target_vocab.json has ids up to {}, but"),
        (DECODER, "vocab-tgt.json", numbered, "vocab-tgt.json has ids up to {}, but"),
        (ENTITIES, "entity_vocab.json", numbered, "entity_vocab.json has ids up to {}, but"),
        (
            "lm_head.weight",
            "alphabet.json",
            lambda n: {"labels": list(numbered(n))},
            "alphabet.json has ids up to {}, but",
        ),
    ],
)
def test_a_list_that_is_longer_than_its_rows_is_named(key: str, name: str, content: Any, said: str) -> None:
    assert notes(key, {name: content(11)}) == [f"{said.format(10)} {key} has 10 rows"]
    assert not notes(key, {name: content(10)})


def test_the_ids_of_byt5_need_rows() -> None:
    settings = {"tokenizer_class": "ByT5Tokenizer"}
    said = f"ByT5Tokenizer (tokenizer_config.json) has ids up to 383, but {SHARED} has 256 rows"
    assert notes(SHARED, {"tokenizer_config.json": settings}, 256) == [said]
    assert not notes(SHARED, {"tokenizer_config.json": settings}, 384)
    assert not notes(SHARED, {"tokenizer_config.json": {**settings, "extra_ids": 0}}, 259)


def test_names_that_share_an_id_are_not_counted() -> None:
    assert not notes(
        ENTITIES, {"entity_vocab.json": {f"{language}:Japan{i}": i for language in ("en", "ja") for i in range(10)}}
    )
