"""T5's sentinels, which tokenizer.json lost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import ckptsurgeon as cs

from ..test_model_folders import model, verbs_of

TOKENS = ["<pad>", "</s>", "<unk>", "▁a", "▁b", "b"]
LOST = (
    "tokenizer_config.json lists 3 sentinels that tokenizer.json lacks: '<extra_id_0>' gets 6 and '<extra_id_2>' "
    "gets 8, but T5 numbers them in the reverse order"
)
UP = [f"<extra_id_{number}>" for number in range(3)]


def t5(path: str, named: Any, listed: list[str], seed: int = 0, **config: Any) -> None:
    model(path, rows=10, seed=seed, **{"model_type": "t5", "eos_token_id": 1, "pad_token_id": 0} | config)
    Path(path, "vocab.json").unlink(), Path(path, "generation_config.json").unlink()
    names = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    Path(path, "tokenizer_config.json").write_text(json.dumps({**names, **named}))
    added = [{"id": len(TOKENS) + row, "content": token, "special": True} for row, token in enumerate(listed)]
    unigram = {"type": "Unigram", "unk_id": 2, "vocab": [[token, -1.0] for token in TOKENS]}
    Path(path, "tokenizer.json").write_text(json.dumps({"added_tokens": added, "model": unigram}))


def notes() -> list[str]:
    return [note for note in cs.inspect("m").notes if "sentinels" in note]


@pytest.mark.parametrize("field", ["extra_special_tokens", "additional_special_tokens"])
def test_lost_sentinels_that_get_ids_in_reverse_are_said(field: str) -> None:
    t5("m", {field: UP}, [])
    assert notes() == [LOST]


@pytest.mark.parametrize(
    ("named", "listed", "config"),
    [
        ({"extra_special_tokens": UP}, UP[::-1], {}),
        ({"extra_special_tokens": UP}, UP, {}),  # the list decides, in whatever order
        ({"extra_special_tokens": UP[::-1]}, [], {}),
        ({"extra_special_tokens": UP[:1]}, [], {}),
        ({"extra_special_tokens": UP}, [], {"model_type": "llama"}),
        ({}, [], {}),
    ],
)
def test_sentinels_in_their_order_are_not(named: Any, listed: list[str], config: Any) -> None:
    t5("m", named, listed, **config)
    assert notes() == []


@pytest.mark.parametrize("verb", verbs_of(""))
def test_every_verb_says_so(verb: str) -> None:
    t5("sound", {"extra_special_tokens": UP[::-1]}, [])
    t5("m", {"extra_special_tokens": UP}, [], seed=1)
    assert any("sentinels" in note for note in verbs_of("m")[verb]().notes)


def test_transformers_agrees() -> None:
    transformers = pytest.importorskip("transformers")
    t5("m", {"extra_special_tokens": UP}, [])
    made = transformers.PreTrainedTokenizerFast.from_pretrained("m")
    assert made.convert_tokens_to_ids(UP) == [6, 7, 8]
