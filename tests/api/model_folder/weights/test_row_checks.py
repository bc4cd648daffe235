"""Rows for tokens, positions and labels that config.json contradicts: said; never of a model that is sound."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import ckptsurgeon as cs
from ckptsurgeon.api.model_folder.weights.row_checks import label_notes
from ckptsurgeon.api.model_folder.weights.shape_checks import DescribedTensor

UNLOADED = "transformers cannot load this model"
BART = {"model.shared.weight": (6, 4), "model.decoder.embed_tokens.weight": (6, 4), "final_logits_bias": (1, 6)}
BERT = {"bert.embeddings.word_embeddings.weight": (6, 4), "cls.predictions.bias": (6,)}
LLAMA = {"model.embed_tokens.weight": (6, 4), "lm_head.weight": (6, 4)}


def folder(shapes: Mapping[str, tuple[int, ...]], tokenizer: Mapping[str, Any] | None = None, **config: Any) -> str:
    Path("m").mkdir(exist_ok=True)
    save_file({key: torch.ones(shape) for key, shape in shapes.items()}, "m/model.safetensors")
    Path("m/config.json").write_text(json.dumps(config))
    Path("m/tokenizer_config.json").write_text(json.dumps(tokenizer or {}))
    return "m"


def said(path: str) -> list[str]:
    """The notes of inspect and convert, which are the same."""
    notes = [note for note in cs.inspect(path).notes if "but " in note]
    assert [note for note in cs.convert(path).notes if "but " in note] == notes
    return notes


@pytest.mark.parametrize(
    ("kind", "shapes", "other", "has"),
    [
        ("LlamaForCausalLM", LLAMA, {"lm_head.weight": (9, 4)}, "lm_head.weight has 9 rows"),
        ("LlamaForCausalLM", LLAMA, {"lm_head.weight": (5, 4)}, "lm_head.weight has 5 rows"),
        ("BartForConditionalGeneration", BART, {"final_logits_bias": (1, 7)}, "final_logits_bias has 7 columns"),
        ("BartForConditionalGeneration", BART, {"model.decoder.embed_tokens.weight": (7, 4)},
         "model.decoder.embed_tokens.weight has 7 rows"),
        ("T5ForConditionalGeneration", {"shared.weight": (6, 4)}, {"lm_head.weight": (7, 4)}, "lm_head.weight has 7 rows"),
        ("BertForMaskedLM", BERT, {"cls.predictions.bias": (7,)}, "cls.predictions.bias has 7 rows"),
        ("BertForMaskedLM", BERT, {"cls.predictions.decoder.weight": (7, 4)}, "cls.predictions.decoder.weight has 7 rows"),
    ],
)  # fmt: skip
def test_an_output_layer_of_other_rows_than_the_embedding_is_said(
    kind: str, shapes: dict[str, tuple[int, ...]], other: dict[str, tuple[int, ...]], has: str
) -> None:
    config = {"architectures": [kind], "vocab_size": 6, "tie_word_embeddings": False}
    assert not said(folder(shapes, **config))
    path = folder({**shapes, **other}, **config)
    assert said(path) == [f"config.json says 6 (vocab_size), but {has}: {UNLOADED}"]


@pytest.mark.parametrize(
    ("shapes", "fields"),
    [
        ({"lm_head.weight": (9, 4)}, {"architectures": ["LlamaForSequenceClassification"]}),  # which ignores it
        ({"lm_head.weight": (9, 4)}, {"architectures": []}),
        ({"lm_head.weight": (9, 4)}, {"auto_map": {"AutoModel": "x.Y"}}),
        ({"lm_head.weight": (9, 4)}, {"decoder_vocab_size": 9}),
        ({"lm_head.weight": (9, 3)}, {}),  # of another width: not over these tokens
        ({"output.weight": (9, 4)}, {"vision_config": {}}),
        ({"lm_head.bias": (9,)}, {}),
    ],
)
def test_other_output_layers_get_no_note(shapes: dict[str, tuple[int, ...]], fields: dict[str, Any]) -> None:
    config = {"architectures": ["LlamaForCausalLM"], "vocab_size": 6, "tie_word_embeddings": False, **fields}
    assert not [note for note in said(folder({**LLAMA, **shapes}, **config)) if "vocab_size" in note]


P = "embeddings.position_embeddings.weight"


@pytest.mark.parametrize(
    ("kind", "field", "key", "shape", "number", "has"),
    [
        ("bert", "max_position_embeddings", P, (8, 4), 8, "has 8 rows"),
        ("roberta", "max_position_embeddings", P, (8, 4), 8, "has 8 rows"),
        ("bert", "type_vocab_size", "embeddings.token_type_embeddings.weight", (2, 4), 2, "has 2 rows"),
        ("gpt2", "n_positions", "wpe.weight", (8, 4), 8, "has 8 rows"),
        ("bart", "max_position_embeddings", "encoder.embed_positions.weight", (8, 4), 6,
         "has 8 rows, 2 of which are not for positions"),
        ("whisper", "max_source_positions", "encoder.embed_positions.weight", (8, 4), 8, "has 8 rows"),
        ("whisper", "max_target_positions", "decoder.embed_positions.weight", (8, 4), 8, "has 8 rows"),
        ("whisper", "num_mel_bins", "encoder.conv1.weight", (4, 5, 3), 5, "has 5 channels"),
        ("t5", "relative_attention_num_buckets", "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
         (8, 4), 8, "has 8 rows"),
    ],
)  # fmt: skip
def test_positions_types_and_the_like_are_held_against_the_configuration(
    kind: str, field: str, key: str, shape: tuple[int, ...], number: int, has: str
) -> None:
    config = {"model_type": kind, field: number}
    assert not [note for note in said(folder({key: torch.Size(shape)}, **config)) if field in note]
    path = folder({key: shape}, **{**config, field: 20})
    assert [note for note in said(path) if field in note] == [
        f"config.json says 20 ({field}), but {key} {has}: {UNLOADED}"
    ]
    assert not [note for note in said(folder({key: shape}, **{field: 20}, model_type="roformer")) if field in note]


@pytest.mark.parametrize(
    ("kind", "key", "longest", "positions"),
    [
        ("bert", P, 9, 8),
        ("bert", P, 8, 0),
        ("roberta", P, 7, 6),
        ("roberta", P, 6, 0),
        ("bart", "encoder.embed_positions.weight", 7, 6),
        ("bart", "encoder.embed_positions.weight", 6, 0),
        ("whisper", "decoder.embed_positions.weight", 1024, 0),
        ("bert", P, int(1e30), 0),
        ("bert", P, None, 0),
        ("llama", P, 9, 0),
    ],
)
def test_a_tokeniser_that_truncates_to_more_tokens_than_there_are_positions_is_said(
    kind: str, key: str, longest: int | None, positions: int
) -> None:
    path = folder({key: (8, 4)}, {"model_max_length": longest}, model_type=kind)
    note = (
        f"tokenizer_config.json says {longest} (model_max_length), but {key} has positions for {positions} "
        "tokens: longer texts fail, even with truncation=True"
    )
    assert [note for note in said(path) if "max_length" in note] == ([note] if positions else [])


ROWS = "but classifier.weight has 3 rows"
CLASSIFIER = DescribedTensor("classifier.weight", "float32", (3, 4))
ABC = {"0": "a", "1": "b", "2": "c"}


@pytest.mark.parametrize(
    ("fields", "note"),
    [
        ({}, ""),
        ({"num_labels": 3}, ""),
        ({"num_labels": 3, "id2label": ABC}, ""),
        ({"num_labels": 5}, f"config.json has 5 labels (num_labels), {ROWS}: {UNLOADED}"),
        ({"num_labels": 5, "id2label": ABC},
         f"config.json has 5 labels (num_labels), {ROWS}: transformers 5 cannot load this model"),
        ({"num_labels": 3, "id2label": {"0": "a"}},
         f"config.json has 1 label (id2label), {ROWS}: transformers before 5 cannot load this model"),
        ({"num_labels": 5, "id2label": {"0": "a"}}, f"config.json has 1 label (id2label), {ROWS}: {UNLOADED}"),
        ({"id2label": {"0": "a", "1": "b", "3": "c"}},
         f"id2label of config.json has no label for row 2, {ROWS}: pipelines of transformers fail"),
        ({"id2label": ABC, "label2id": {"A": 0, "b": 1, "c": 2}}, ""),
        ({"id2label": ABC, "label2id": {"LABEL_0": 0, "LABEL_1": 1, "LABEL_2": 2}}, ""),
        ({"id2label": {"0": "a", "1": "a", "2": "b"}, "label2id": {"a": 1, "b": 2}}, ""),
        ({"id2label": ABC, "label2id": {"a": 0, "b": 2, "c": 1}},
         "label2id of config.json says that row 2 is 'b', but id2label says 'c': transformers names predictions as id2label "
         "does"),
    ],
)  # fmt: skip
def test_labels_that_contradict_the_classifier_or_each_other_are_said(fields: dict[str, Any], note: str) -> None:
    found = list(label_notes([CLASSIFIER], ["BertForSequenceClassification"], fields))
    assert found == ([note] if note else [])
    assert not list(label_notes([CLASSIFIER], ["BertModel"], fields))
