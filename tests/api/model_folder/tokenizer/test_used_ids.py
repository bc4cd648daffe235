"""Token ids that a network computes with: the end at which CLIP reads a text, and the tokens that Whisper begins with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import ckptsurgeon as cs
from ckptsurgeon.analysis.check.note_kinds import KINDS

from ..test_model_folders import model

TOKENS = ["a", "b", "<|startoftext|>", "<|endoftext|>"]
NAMES = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}


def notes(config: dict[str, Any], generation: dict[str, Any], names: dict[str, str], tokens: list[str]) -> list[str]:
    model("m", tokens=tokens, **{"eos_token_id": None, "pad_token_id": None, **config})
    Path("m/generation_config.json").write_text(json.dumps(generation))
    Path("m/tokenizer_config.json").write_text(json.dumps(names))
    found = [one for one in cs.inspect("m").notes if "the features of a text" in one or "forced_decoder_ids" in one]
    carried = cs.convert("m").notes
    assert all(one in carried for one in found)
    return found


@pytest.mark.parametrize(
    ("kind", "end", "is_said"),
    [
        ("clip", 1, True), ("clip", 2, False), ("clip", 3, False), ("clip", None, False), ("clipseg", 0, True),
        ("xclip", 1, True), ("siglip", 1, False), ("align", 1, False),
    ],
)  # fmt: skip
@pytest.mark.parametrize("nested", [True, False])
def test_another_end_than_the_tokeniser_s_is_said_of_what_reads_texts_there(
    kind: str, end: int | None, is_said: bool, nested: bool
) -> None:
    """2 is the legacy value with which a text is read at its largest id."""
    fields = {"text_config": {"eos_token_id": end}} if nested else {"eos_token_id": end}
    path = "text_config." if nested else ""
    found = notes({"model_type": kind, **fields}, {}, NAMES, TOKENS)
    assert len(found) == is_said
    if is_said:
        ends = "but the tokeniser ends texts with '<|endoftext|>' (3): the features of a text are read"
        assert found[0].startswith(f"{path}eos_token_id is {end} ('{TOKENS[end or 0]}') in config.json, {ends}")


WHISPER = [
    "a", "<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|de|>", "<|translate|>", "<|transcribe|>",
    "<|startofprev|>", "<|nospeech|>", "<|notimestamps|>", "<|0.00|>",
]  # fmt: skip
MAPS = {
    "lang_to_id": {"<|en|>": 3, "<|de|>": 4}, "task_to_id": {"translate": 5, "transcribe": 6},
    "no_timestamps_token_id": 9,
}  # fmt: skip


@pytest.mark.parametrize(
    ("forced", "maps", "said"),
    [
        ([[1, 3], [2, 6], [3, 9]], MAPS, ""),
        ([[1, None], [2, 5]], MAPS, ""),
        ([[1, 3], [2, 6], [3, 10]], MAPS, ""),  # a timestamp
        ([[1, 3], [2, 5], [3, 8]], MAPS, "8 ('<|nospeech|>')"),
        ([[1, 2], [2, 7]], MAPS, "2 ('<|startoftranscript|>') and 7 ('<|startofprev|>')"),
        ([[1, 8]], {}, ""),
        (None, MAPS, ""),
        ("x", MAPS, ""),
    ],
)
def test_tokens_that_are_forced_are_those_of_the_file(forced: Any, maps: dict[str, Any], said: str) -> None:
    found = notes({"model_type": "whisper"}, {**maps, "forced_decoder_ids": forced}, {}, WHISPER)
    assert len(found) == bool(said)
    if said:
        assert found[0].startswith(f"forced_decoder_ids of generation_config.json has {said.split(' and ')[0]}")


@pytest.mark.parametrize(
    ("note", "check"),
    [
        ("forced_decoder_ids of generation_config.json has 8", "token-ids"),
        ("text_config.eos_token_id is 1 in config.json: texts are read at the first token with this id", "token-ids"),
        (
            "tokenizer.json pads texts with '<s>' (its id is 1), but with the id 0, which is '<pad>' (padding)",
            "vocabulary",
        ),
        ("tokenizer.json cuts texts to 512 tokens (truncation), but the model has 130 positions", "vocabulary"),
    ],
)
def test_each_note_belongs_to_the_check_whose_advice_helps(note: str, check: str) -> None:
    assert next(one.id for one in KINDS if one.pattern.search(note)) == check
