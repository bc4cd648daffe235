"""Models of several parts are resized: the fields of a part change, and all others stay as they are."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import ckptsurgeon as cs

from ...helpers.models_of_parts import PARTS
from ...helpers.small_tokenizers import ENGLISH, saved_tokenizer, tokenizer

transformers = pytest.importorskip("transformers", minversion="5")

KINDS = {
    PARTS[name]["model_type"]: name
    for name in ("LlavaForConditionalGeneration", "PaliGemmaForConditionalGeneration", "Idefics3ForConditionalGeneration",
                 "Qwen2VLForConditionalGeneration")
}  # fmt: skip
ROPE = {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}


def built(architecture: str, folder: Path, size: int = 40, **text: Any) -> Path:
    """Save a model with random weights; returns the folder."""
    fields = PARTS[architecture]
    image = "image_token_id" if fields["model_type"] in ("idefics3", "qwen2_vl") else "image_token_index"
    given = {**fields, image: 4, "text_config": {**fields["text_config"], "vocab_size": size, **text}}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = transformers.CONFIG_MAPPING[fields["model_type"]](**given)
        getattr(transformers, architecture)(config).save_pretrained(folder)
    return folder


def config_of(folder: Path) -> Any:
    return json.loads((folder / "config.json").read_text())


@pytest.mark.long
@pytest.mark.costly
@pytest.mark.parametrize("kind", KINDS)
def test_the_vocabulary_of_a_part_changes_and_nothing_else(kind: str, tmp_path: Path) -> None:
    source = built(KINDS[kind], tmp_path / kind)
    before = config_of(source)
    cs.apply(cs.resize(source, set={"text_config.vocab_size": 64}), tmp_path / "more")
    assert config_of(tmp_path / "more") == {**before, "text_config": {**before["text_config"], "vocab_size": 64}}
    with cs.open_checkpoint(source) as one, cs.open_checkpoint(tmp_path / "more") as other:
        shapes = [Counter(info.shape for info in opened.values()) for opened in (one, other)]
    grown = shapes[1] - shapes[0]
    assert {shape[0] for shape in grown} == {64}
    assert grown.total() <= 2, grown


@pytest.mark.long
def test_the_tokens_of_a_part_are_cut(tmp_path: Path) -> None:
    made = tokenizer("bytes", ENGLISH, 340)
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    source = saved_tokenizer(made, built("LlavaForConditionalGeneration", tmp_path / "llava", 340, **ids))
    (tmp_path / "corpus.txt").write_text("The sun and the sea.\n")
    plan = cs.resize(source, trim=tmp_path / "corpus.txt")
    cs.apply(plan, tmp_path / "out")
    written, before = config_of(tmp_path / "out"), config_of(source)
    size = written["text_config"]["vocab_size"]
    assert size < 340
    assert written["text_config"] == {**before["text_config"], "vocab_size": size}
    assert written["vision_config"] == before["vision_config"]


@pytest.mark.costly
@pytest.mark.parametrize(("field", "value"), [("rope_theta", 5000.0), ("factor", 8.0)])
def test_a_field_of_an_object_changes_alone(field: str, value: float, tmp_path: Path) -> None:
    source = built("LlavaForConditionalGeneration", tmp_path / "llava", rope_parameters=ROPE)
    cs.apply(cs.resize(source, set={f"text_config.rope_parameters.{field}": value}), tmp_path / "out")
    assert config_of(tmp_path / "out")["text_config"]["rope_parameters"] == {**ROPE, field: value}


# Warnings of transformers.


@pytest.fixture
def warned() -> Iterator[list[str]]:
    """Yield the list of what transformers warns of while it reads configurations."""
    from transformers.utils import logging as ours

    texts: list[str] = []
    handler, before = logging.Handler(), ours.get_verbosity()
    handler.emit = lambda record: texts.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("transformers.configuration_utils")
    ours.set_verbosity(logging.WARNING)
    logger.addHandler(handler)
    yield texts
    logger.removeHandler(handler)
    ours.set_verbosity(before)


def bert(folder: Path, made: Any, rows: int, **ids: int) -> Path:
    config = transformers.BertConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, vocab_size=rows, **ids
    )
    transformers.BertModel(config).save_pretrained(folder)
    return saved_tokenizer(made, folder)


def test_ids_that_follow_their_tokens_are_not_warned_of(tmp_path: Path, warned: list[str]) -> None:
    made = tokenizer("bytes", ENGLISH, 340, ())
    made.add_special_tokens(["<pad>", "<s>"])  # 340 and 341
    source = bert(tmp_path / "bert", made, 342, pad_token_id=340, bos_token_id=341, eos_token_id=341)
    (tmp_path / "corpus.txt").write_text("The sun and the sea.\n")
    cs.apply(cs.resize(source, trim=tmp_path / "corpus.txt"), tmp_path / "out")
    written = config_of(tmp_path / "out")
    assert written["pad_token_id"] < written["vocab_size"] < 342
    assert not warned


def test_ids_that_stay_beyond_the_vocabulary_are_still_warned_of(tmp_path: Path, warned: list[str]) -> None:
    source = bert(tmp_path / "bert", tokenizer("bytes", ENGLISH, 340), 340, pad_token_id=0, eos_token_id=345)
    del warned[:]
    transformers.utils.logging.get_logger("x").warning_once.cache_clear()
    cs.resize(source, set={"num_hidden_layers": 3}, layers="0,1,1")
    assert any("eos_token_id" in text and "345" in text for text in warned), warned
