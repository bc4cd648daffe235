"""Token ids that a network computes with: the end at which CLIP reads a text, and the tokens that Whisper begins with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

import ckptsurgeon as cs
from ckptsurgeon.api.model_folder.tokenizer.used_ids import BY_CLASS, LAST

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
        ("xclip", 1, True), ("siglip", 1, False), ("align", 1, False), ("metaclip_2", 1, True), ("metaclip_2", 2, True),
        ("metaclip_2", 3, False), ("aimv2", 1, True), ("owlvit", 1, False),
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


@pytest.mark.parametrize(
    ("kind", "end", "more", "said"),
    [
        ("clip", 2, ["<cat-toy>"], "but 1 token has an id above the end token, '<|endoftext|>' (3), for example '<cat-toy>'"),
        ("clipseg", 2, ["<x>", "<y>"], "but 2 tokens have ids above the end token, '<|endoftext|>' (3), for example '<x>'"),
        ("clip", 2, [], ""),
        ("clip", 3, ["<cat-toy>"], ""),
        ("clip", None, ["<cat-toy>"], ""),  # the class has the id of CLIP's own end
        ("siglip", 2, ["<cat-toy>"], ""),
        ("owlvit", 3, ["<cat-toy>"], "(3), for example '<cat-toy>': in a text"),
        ("owlv2", None, [], ""),
    ],
)  # fmt: skip
@pytest.mark.parametrize("nested", [True, False])
def test_tokens_above_the_end_are_said_of_what_reads_texts_at_the_largest_id(
    kind: str, end: int | None, more: list[str], said: str, nested: bool
) -> None:
    fields = {"text_config": {"eos_token_id": end}} if nested else {"eos_token_id": end}
    found = notes({"model_type": kind, **fields}, {}, NAMES, [*TOKENS, *more])
    assert len(found) == bool(said)
    assert said in "".join(found)
    if said and kind.startswith("clip"):
        start = f"{'text_config.' if nested else ''}eos_token_id is 2 in config.json, so the features of a text"
        assert found[0].startswith(start)


def test_an_old_end_that_tokenisers_end_texts_with_draws_the_reading_too() -> None:
    """Tokens above an end token with the id 2 are read, although the id in config.json is that of the end token."""
    found = notes({"model_type": "clip", "eos_token_id": 2}, {}, NAMES, ["a", "<|startoftext|>", "<|endoftext|>", "b"])
    assert found[0].endswith(
        "'<|endoftext|>' (2), for example 'b': in a text with such a token, they are read at the wrong position"
    )


def test_transformers_reads_texts_there() -> None:
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    sizes = {
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "vocab_size": 6,
    }
    for end, place in ((2, 1), (4, 2)):
        config = transformers.CLIPTextConfig(**sizes, eos_token_id=end, bos_token_id=3, pad_token_id=0)
        made = transformers.CLIPTextModel(config)
        with torch.no_grad():
            read = made(torch.tensor([[3, 5, 4]]))
        assert torch.equal(read.pooler_output[0], read.last_hidden_state[0, place])


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
        ([[0, 2], [1, 3], [2, 6], [3, 9]], MAPS, ""),  # the start token
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


def default_of(kind: str) -> int | None:
    """The default ``bos_token_id`` of a model type; None if its configuration cannot be made without arguments."""
    try:
        config = CONFIG_MAPPING[kind]()
    except Exception:
        return None
    found = getattr(config, "bos_token_id", None)
    return found if isinstance(found, int) and not getattr(config, "is_encoder_decoder", False) else None


@pytest.mark.long
def test_every_default_above_the_usual_ones_is_in_the_table() -> None:
    kinds = {kind: default_of(kind) for kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES if kind in CONFIG_MAPPING}
    assert len([one for one in kinds.values() if one is not None]) > 100
    large = {kind.removesuffix("_text"): one for kind, one in kinds.items() if one is not None and one > LAST}
    large.pop("whisper", None)  # a decoder behind an encoder
    assert {kind: BY_CLASS.get(kind) for kind in large} == large
