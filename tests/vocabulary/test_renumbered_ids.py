"""Token ids follow their tokens into another vocabulary, whatever shape a field has them in."""

from __future__ import annotations

from typing import Any

import pytest

from ckptsurgeon.vocabulary.renumbered_ids import moved_ids
from ckptsurgeon.vocabulary.renumbering import Renumbering

OLD = ["<pad>", "<s>", "</s>", "<unk>", "a", "b", "c"]
NEW = ["c", "a", "</s>", "<pad>", "<end>"]
NUMBERS = Renumbering.of(OLD, NEW)


@pytest.mark.parametrize(
    ("fields", "changed"),
    [
        ({"pad_token_id": 0, "eos_token_id": 2}, {("pad_token_id",): 3}),
        ({"eos_token_id": [2, 0]}, {("eos_token_id",): [2, 3]}),
        ({"pad_token_id": None, "bos_token_id": -1}, {}),
        ({"image_token_index": 4}, {("image_token_index",): 1}),
        ({"suppress_tokens": [0, 1, 6], "begin_suppress_tokens": [-1]}, {("suppress_tokens",): [3, 0]}),
        ({"bad_words_ids": [[4, 6], [5], [0]]}, {("bad_words_ids",): [[1, 0], [3]]}),
        ({"forced_decoder_ids": [[1, 4], [2, None]]}, {("forced_decoder_ids",): [[1, 1], [2, None]]}),
        ({"lang_to_id": {"x": 4, "y": 5}, "task_to_id": {"z": 6}}, {("lang_to_id",): {"x": 1}, ("task_to_id",): {"z": 0}}),
        ({"text_config": {"pad_token_id": 0}}, {("text_config", "pad_token_id"): 3}),
        ({"decoder": {"eos_token_id": 6}}, {("decoder", "eos_token_id"): 0}),
        ({"sequence_bias": [[[4, 6], -2.0], [[5], 1.0]]}, {("sequence_bias",): [[[1, 0], -2.0]]}),
        ({"force_words_ids": [[4], [[0, 6], [2]]]}, {("force_words_ids",): [[1], [[3, 0], [2]]]}),
        ({"pad_index": 0, "eos_index": 2, "blank_id": 6}, {("pad_index",): 3, ("blank_id",): 0}),
        ({"vocabulary_map": {"<pad>": 0, "<s>": 1}}, {("vocabulary_map",): {"<pad>": 3}}),
        ({"thinker_config": {"text_config": {"decoder": {"pad_token_id": 0}}}},
         {("thinker_config", "text_config", "decoder", "pad_token_id"): 3}),
        ({"task_specific_params": {"translation": {"eos_token_id": 0, "prefix": "to German: "}, "odd": 3}},
         {("task_specific_params", "translation", "eos_token_id"): 3}),
        ({"codebook_pad_token_id": 1, "t2u_eos_token_id": 1, "codec_eos_token_id": 1, "tts_codec_pad_token_id": 1}, {}),
        ({"image_start_id": 4, "newline_id": 0, "im_end_id": 6, "image_patch_id": 0, "insert_layer_id": 4, "task_id": 4},
         {("image_start_id",): 1, ("newline_id",): 3, ("im_end_id",): 0, ("image_patch_id",): 3}),
        ({"vocab_size": 7, "id2label": {"0": "a"}, "num_hidden_layers": 0, "quantization_config": {"x_token_id": 0}}, {}),
        ({"pad_token_id": "0", "eos_token_id": True, "suppress_tokens": "none", "lang_to_id": "en"}, {}),
    ],
)  # fmt: skip
def test_ids_of_every_shape_are_moved(fields: dict[str, Any], changed: dict[tuple[str, ...], Any]) -> None:
    moved = moved_ids(fields, NUMBERS)
    assert moved.changed == changed
    assert not moved.lost


@pytest.mark.parametrize(
    "fields",
    [
        {"vocab_size": 7, "pad_token_id": 0},
        {"vocab_size": 9, "pad_token_id": 0},  # rows beyond the tokens
        {"vocab_size": 5, "pad_token_id": 0},  # as the destination says it already
        {"text_config": {"vocab_size": 7}, "pad_token_id": 0},
        {"thinker_config": {"text_config": {"vocab_size": 8}}, "talker_config": {"vocab_size": 6}, "pad_token_id": 0},
    ],
)
def test_a_part_with_a_vocabulary_of_another_size_keeps_its_ids(fields: dict[str, Any]) -> None:
    parts = {
        "qformer_config": {"vocab_size": 4, "pad_token_id": 1, "encoder": {"eos_token_id": 1}},
        "audio_config": {"eos_token_id": 6},
    }
    moved = moved_ids({**parts, **fields}, NUMBERS)
    assert moved.changed == {("pad_token_id",): 3, ("audio_config", "eos_token_id"): 0}
    assert not moved.lost


def test_ids_of_text_tokens_in_a_part_with_fewer_codes_are_moved() -> None:
    part = {"vocab_size": 3, "image_token_index": 4, "tts_text_start_token_id": 6, "pad_token_id": 6, "bos_token_id": 3}
    moved = moved_ids({"vocab_size": 7, "talker_config": part}, NUMBERS)
    assert moved.changed == {
        ("talker_config", "image_token_index"): 1,
        ("talker_config", "tts_text_start_token_id"): 0,
    }
    assert not moved.lost
    assert not moved.unsure


@pytest.mark.parametrize(
    ("fields", "unsure"),
    [
        ({"vocab_size": 7, "talker_config": {"vocab_size": 6, "image_token_id": 0}}, ["talker_config.image_token_id"]),
        ({"vocab_size": 7, "talker_config": {"vocab_size": 6, "pad_token_id": 0, "eos_token_id": [0]}}, []),
        ({"vocab_size": 7, "talker_config": {"vocab_size": 6, "image_token_id": 2}}, []),  # has the same id
        ({"vocab_size": 7, "talker_config": {"vocab_size": 6, "image_token_id": 4}}, []),  # a word
        ({"image_token": 0, "style_to_id": {"a": 1, "b": 5}, "insert_layer_id": 0, "lang_id": 0}, ["image_token", "style_to_id"]),
        ({"image_token": "<pad>", "use_mask_token": True, "num_image_tokens": 0, "codec_nothink_id": 0}, []),
    ],
)  # fmt: skip
def test_numbers_that_may_be_ids_are_named(fields: dict[str, Any], unsure: list[str]) -> None:
    moved = moved_ids(fields, NUMBERS)
    assert [one.field for one in moved.unsure] == unsure
    assert not moved.changed
    assert not moved_ids(fields, NUMBERS, fixed=frozenset(one.rpartition(".")[2] for one in unsure)).unsure
    assert not moved_ids(fields, Renumbering.first(3, 7)).unsure


def test_of_an_encoder_and_a_decoder_the_one_whose_tokens_move_has_the_ids() -> None:
    fields = {"encoder": {"vocab_size": 3, "pad_token_id": 0}, "decoder": {"vocab_size": 7, "pad_token_id": 0}}
    assert moved_ids(fields, NUMBERS).changed == {("decoder", "pad_token_id"): 3}


def test_parts_within_parts_end_somewhere() -> None:
    fields: dict[str, Any] = {"pad_token_id": 0}
    for _ in range(500):
        fields = {"decoder": fields}
    assert not moved_ids(fields, NUMBERS).changed


def test_an_id_without_a_place_is_lost_and_named() -> None:
    moved = moved_ids({"bos_token_id": 1, "text_config": {"unk_token_id": 3}, "eos_token_id": [2, 99]}, NUMBERS)
    assert [(one.field, one.number, one.token) for one in moved.lost] == [
        ("bos_token_id", 1, "<s>"), ("text_config.unk_token_id", 3, "<unk>"), ("eos_token_id", 99, ""),
    ]  # fmt: skip


def test_a_token_that_plays_the_part_of_another_takes_its_id() -> None:
    numbers = Renumbering.of(OLD, NEW, {"</s>": "<end>"})
    assert moved_ids({"eos_token_id": 2}, numbers).changed == {("eos_token_id",): 4}


def test_what_must_not_be_made_is_left_out_with_its_number() -> None:
    moved = moved_ids({"suppress_tokens": [1, 3, 4], "bad_words_ids": [[1, 4]]}, NUMBERS)
    assert moved.dropped == ("2 of suppress_tokens", "1 of bad_words_ids")


def test_fields_that_hold_new_ids_already_stay() -> None:
    moved = moved_ids({"bos_token_id": 1, "pad_token_id": 0}, NUMBERS, fixed=frozenset({"bos_token_id"}))
    assert (moved.changed, moved.lost) == ({("pad_token_id",): 3}, ())


def test_the_first_rows_keep_their_numbers_and_others_are_lost_without_a_word() -> None:
    moved = moved_ids({"pad_token_id": 1, "eos_token_id": 5, "sep_token_id": 900}, Renumbering.first(3, 7))
    assert [(one.field, one.token) for one in moved.lost] == [("eos_token_id", "")]


def test_applied_leaves_the_given_fields_as_they_are() -> None:
    fields = {"text_config": {"pad_token_id": 0, "n": 1}, "x": 2}
    assert moved_ids(fields, NUMBERS).applied(fields) == {"text_config": {"pad_token_id": 3, "n": 1}, "x": 2}
    assert fields["text_config"] == {"pad_token_id": 0, "n": 1}


@pytest.mark.parametrize(
    ("fields", "changed", "stale"),
    [
        ({"lang_to_id": {"a": 5, "c": 6}}, {"a": 1, "c": 0}, ["lang_to_id.a"]),
        ({"lang_to_id": {"b": 4}}, {}, ["lang_to_id.b"]),  # it has no place
        ({"lang_to_id": {"a": 9}}, {"a": 1}, ["lang_to_id.a"]),
        ({"task_to_id": {"c": 4}}, {"c": 4}, ["task_to_id.c"]),
        ({"text_decoder_lang_to_code_id": {"c": 0}}, {"c": 3}, ["text_decoder_lang_to_code_id.c"]),
        ({"lang_to_id": {"x": 4}}, {"x": 1}, []),
    ],
)
def test_an_id_of_another_token_than_it_is_called_by_goes_to_that_one(
    fields: dict[str, Any], changed: dict[str, int], stale: list[str]
) -> None:
    numbers = Renumbering.of([*OLD, "<|c|>", "__c__"], [*NEW[:3], "__c__", "<|c|>"])
    moved = moved_ids(fields, numbers)
    assert list(moved.applied(fields).values()) == [changed]
    assert [one.field for one in moved.stale] == stale
    assert not moved_ids(fields, Renumbering.first(4, 7)).stale


@pytest.mark.parametrize(
    ("fields", "changed", "lost"),
    [
        ({"no_timestamps_token_id": 1}, {"no_timestamps_token_id": 2}, []),  # the id of another version
        ({"no_timestamps_token_id": 0}, {"no_timestamps_token_id": 2}, []),
        ({"prev_sot_token_id": 0}, {"prev_sot_token_id": 0}, ["prev_sot_token_id"]),  # the new vocabulary has none
    ],
)
def test_an_id_of_whisper_goes_to_the_token_that_its_field_is_for(
    fields: dict[str, Any], changed: dict[str, int], lost: list[str]
) -> None:
    numbers = Renumbering.of(["<|notimestamps|>", "a", "<|startofprev|>"], ["b", "a", "<|notimestamps|>"])
    moved = moved_ids(fields, numbers)
    assert moved.applied(fields) == changed
    assert [one.field for one in moved.lost] == lost
