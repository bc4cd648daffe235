"""Ids of special tokens that have another role in the tokeniser, and what of that valid models have."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import ckptsurgeon as cs

from ..test_model_folders import model

TOKENS = ["<pad>", "<s>", "</s>", "<unk>", "a", "b", "[CLS]", "[SEP]", "<mask>", "<|endoftext|>", "Ċ", "<|im_end|>"]
LLAMA = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>", "mask_token": "<mask>"}
BERT = {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "<pad>", "unk_token": "<unk>", "mask_token": "<mask>"}
END = ", while eos_token is '</s>' (2)"
WHISPER = "<|startoftranscript|>"


def notes(
    config: dict[str, Any], generation: dict[str, Any] | None, names: dict[str, str], tokens: list[str] = TOKENS
) -> list[str]:
    shutil.rmtree("m", ignore_errors=True)
    model("m", tokens=tokens, **{"eos_token_id": None, "pad_token_id": None} | config)
    Path("m/generation_config.json").unlink()
    if generation is not None:
        Path("m/generation_config.json").write_text(json.dumps(generation))
    Path("m/tokenizer_config.json").write_text(json.dumps(names))
    found = [one for one in cs.inspect("m").notes if "_token" in one or "bad_words" in one]
    assert [one for one in cs.convert("m").notes if "_token" in one or "bad_words" in one] == found
    return found


@pytest.mark.parametrize(
    ("field", "number", "token"),
    [
        ("eos_token", 1, "'<s>', the bos_token"),
        ("eos_token", 0, "'<pad>', the pad_token"),
        ("eos_token", 3, "'<unk>', the unk_token"),
        ("eos_token", 8, "'<mask>', the mask_token"),
        ("forced_eos_token", 0, "'<pad>', the pad_token"),
    ],
)
def test_an_end_that_is_another_token_is_said_of_the_file_that_has_it(field: str, number: int, token: str) -> None:
    said = f"{field}_id of generation_config.json is {number} ({token} of the tokeniser){END}"
    assert notes({"eos_token_id": 2}, {f"{field}_id": number}, LLAMA) == [said]


@pytest.mark.parametrize(
    ("field", "number", "role"), [("bos_token", 3, "unk_token"), ("forced_bos_token", 0, "pad_token")]
)
def test_a_beginning_that_is_no_token_of_text_is_said(field: str, number: int, role: str) -> None:
    own = f"{field}_id of config.json is {number} ('{TOKENS[number]}', the {role} of the tokeniser)"
    assert notes({f"{field}_id": number}, {}, LLAMA) == [f"{own}, while bos_token is '<s>' (1)"]


@pytest.mark.parametrize(("number", "role"), [(3, "unk_token"), (8, "mask_token")])
def test_a_decoder_that_begins_with_an_unknown_token_or_a_mask_is_said(number: int, role: str) -> None:
    own = f"decoder_start_token_id of config.json is {number} ('{TOKENS[number]}', the {role} of the tokeniser)"
    assert notes({"decoder_start_token_id": number}, {}, LLAMA) == [own]


def test_a_decoder_that_begins_with_a_reserved_token_is_said() -> None:
    tokens = ["<pad>", "</s>", "<unk>", "<extra_id_0>", "a"]
    own = "decoder_start_token_id of config.json is 3 ('<extra_id_0>'), a reserved token"
    assert notes({"decoder_start_token_id": 3, "model_type": "t5"}, None, {}, tokens) == [own]
    assert notes({"decoder_start_token_id": 0, "model_type": "t5"}, None, {}, tokens) == []


def test_padding_of_bert_that_is_its_separator_is_said() -> None:
    own = "pad_token_id of config.json is 7 ('[SEP]', the sep_token of the tokeniser)"
    assert notes({"pad_token_id": 7}, None, BERT) == [f"{own}, while pad_token is '<pad>' (0)"]


def test_padding_with_the_unknown_token_of_bert_is_said() -> None:
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "b"]
    names = {f"{name.strip('[]').lower()}_token": name for name in tokens[:4]}
    own = "pad_token_id of config.json is 1 ('[UNK]', the unk_token of the tokeniser)"
    assert notes({"pad_token_id": 1}, None, names, tokens) == [f"{own}, while pad_token is '[PAD]' (0)"]


def test_ids_of_a_decoder_behind_an_encoder_of_images_are_read() -> None:
    """As in TrOCR: the vocabulary size is that of the decoder."""
    parts = {"vocab_size": None, "encoder": {"image_size": 8}, "decoder": {"vocab_size": len(TOKENS)}}
    own = "pad_token_id of config.json is 7 ('[SEP]', the sep_token of the tokeniser)"
    assert notes({"pad_token_id": 7, **parts}, None, BERT) == [f"{own}, while pad_token is '<pad>' (0)"]


def test_ids_of_a_decoder_are_read_if_nothing_else_has_them() -> None:
    parts = {"vocab_size": None, "encoder": {"image_size": 8}, "architectures": ["VisionEncoderDecoderForCausalLM"]}
    decoder = {"vocab_size": len(TOKENS), "eos_token_id": 2, "pad_token_id": 0, "bos_token_id": 1}
    own = "eos_token_id of decoder in config.json is 1 ('<s>', the bos_token of the tokeniser)"
    wrong = {**decoder, "eos_token_id": 1}
    assert notes({**parts, "decoder": decoder}, None, LLAMA) == []
    assert notes({**parts, "decoder": wrong}, None, LLAMA) == [own + END]
    assert notes({**parts, "decoder": wrong, "eos_token_id": 2}, None, LLAMA) == []
    assert notes({**parts, "decoder": wrong}, {"eos_token_id": 2}, LLAMA) == []


def test_a_list_of_ends_without_the_right_one_is_said() -> None:
    own = "eos_token_id of generation_config.json has 1 ('<s>', the bos_token of the tokeniser)"
    assert notes({}, {"eos_token_id": [1, 9]}, LLAMA) == [own + END]


def test_each_id_of_a_list_counts() -> None:
    told = "eos_token_id of generation_config.json lists 4 ('a') besides '</s>'"
    assert notes({}, {"eos_token_id": [2, 4]}, LLAMA) == [
        f"{told}: generation stops at ordinary words of the tokeniser"
    ]


@pytest.mark.parametrize(
    ("ours", "theirs", "said"),
    [
        ([2, 11], [2, 10], "eos_token_id has 11 ('<|im_end|>') in config.json, but 10 ('Ċ') in generation_config.json"),
        ([2, 11], [2], ""),
        ([2], [2, 10], ""),
        ([2, 11], [2, 9], ""),  # another special token
    ],
)
def test_an_end_in_place_of_a_special_one_is_said(ours: list[int], theirs: list[int], said: str) -> None:
    """As with the generation_config.json of another version of the model."""
    found = notes({"eos_token_id": ours}, {"eos_token_id": theirs}, LLAMA)
    more = ": generation does not end at 11"
    assert found == ([said + more] if said else [])


def test_two_files_that_name_another_beginning_of_the_decoder_are_said() -> None:
    told = "decoder_start_token_id is 2 ('</s>') in config.json and 0 ('<pad>') in generation_config.json"
    assert notes({"decoder_start_token_id": 2}, {"decoder_start_token_id": 0}, LLAMA) == [
        f"{told}: generation begins with 0"
    ]


@pytest.mark.parametrize(("number", "is_said"), [(5, False), (4, True)])
def test_the_decoder_of_whisper_begins_with_its_own_token(number: int, is_said: bool) -> None:
    tokens = ["a", "b", "c", "d", "<|endoftext|>", WHISPER]
    names = dict.fromkeys(("bos_token", "eos_token", "pad_token", "unk_token"), "<|endoftext|>")
    found = notes({"model_type": "whisper"}, {"decoder_start_token_id": number}, names, tokens)
    own = "decoder_start_token_id of generation_config.json is 4 ('<|endoftext|>')"
    assert found == ([f"{own}, but the decoder of Whisper begins with '{WHISPER}' (5)"] if is_said else [])


@pytest.mark.parametrize(
    ("config", "generation", "names"),
    [
        ({"eos_token_id": 9}, {"eos_token_id": [11, 9]}, {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}),  # Qwen
        ({"eos_token_id": 9}, {"eos_token_id": 9}, {"eos_token": "<|im_end|>", "bos_token": "<|endoftext|>"}),  # Phi-4
        ({"eos_token_id": 2, "pad_token_id": 2}, {"eos_token_id": [2, 10]}, LLAMA),  # a line's end
        ({"eos_token_id": 2, "pad_token_id": 3}, {"pad_token_id": 3}, LLAMA),  # Vicuna, Alpaca
        ({"decoder_start_token_id": 0}, {"decoder_start_token_id": 0}, LLAMA),  # T5, Pegasus, Marian
        ({"decoder_start_token_id": 2, "forced_bos_token_id": 1, "forced_eos_token_id": 2}, {}, LLAMA),  # BART
        ({"bos_token_id": 0, "eos_token_id": 6, "pad_token_id": 3}, None,
         {"bos_token": "[CLS]", "eos_token": "[SEP]", "pad_token": "<pad>", "unk_token": "<unk>"}),  # Nystromformer
        ({"bos_token_id": 9, "eos_token_id": 9}, {}, dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>")),
        ({"bos_token_id": 0, "eos_token_id": 2}, {}, {"eos_token": "</s>", "pad_token": "<pad>"}),  # Pegasus
    ],
)  # fmt: skip
def test_nothing_is_said_of_what_valid_models_have(
    config: dict[str, Any], generation: dict[str, Any] | None, names: dict[str, str]
) -> None:
    assert notes(config, generation, names) == []


RESERVED = [*TOKENS[:9], "<|reserved_special_token_7|>", "<unused3>", "<|im_end|>"]


@pytest.mark.parametrize(
    ("ends", "said"),
    [
        (9, "9 ('<|reserve..._token_7|>'), a reserved token"),
        ([9, 10], "9 ('<|reserve..._token_7|>'), 10 ('<unused3>'), reserved tokens"),
        ([9, 11], ""),  # another end is used
        (11, ""),
        ([9, 2], ""),
        ([], ""),
    ],
)
def test_an_end_that_is_a_reserved_token_is_said(ends: Any, said: str) -> None:
    found = notes({}, {"eos_token_id": ends}, LLAMA, RESERVED)
    told = f"eos_token_id of generation_config.json is {said}, while eos_token is '</s>' (2)"
    assert found == ([told] if said else [])


def test_an_end_that_is_reserved_in_the_tokeniser_too_is_none() -> None:
    names = LLAMA | {"eos_token": RESERVED[9]}
    assert notes({}, {"eos_token_id": 9}, names, RESERVED) == []


OF_WHISPER = [*TOKENS[:4], WHISPER, "<|en|>", "<|yue|>", "<|translate|>", "<|startofprev|>", "<|notimestamps|>"]


@pytest.mark.parametrize("stale", [True, False])
def test_ids_of_another_version_of_whisper_are_said(stale: bool) -> None:
    shift = int(stale)
    ids = {"no_timestamps_token_id": 9 - shift, "prev_sot_token_id": 8 - shift}
    found = notes({}, {**ids, "suppress_tokens": [0, 4, 7 - shift, 8 - shift]}, {}, OF_WHISPER)
    assert found == (
        [
            "ids in fields that are meant for other tokens: no_timestamps_token_id of generation_config.json "
            "is 8 ('<|startofprev|>'), prev_sot_token_id of generation_config.json is 7 ('<|translate|>')",
            "suppress_tokens of generation_config.json has 6 ('<|yue|>'), a language of the tokeniser, which must not be suppressed",
        ]
        if stale
        else []
    )


@pytest.mark.parametrize(
    ("number", "classes", "is_said"),
    [
        (2, ["LlamaForSequenceClassification"], True),
        (0, ["LlamaForSequenceClassification"], False),
        (None, ["LlamaForSequenceClassification"], False),
        (2, ["LlamaForCausalLM"], False),  # what pads texts to generate from may be the end
    ],
)
def test_a_classifier_that_looks_for_another_padding_is_said(number: Any, classes: list[str], is_said: bool) -> None:
    found = notes({"pad_token_id": number, "architectures": classes}, None, LLAMA)
    own = "pad_token_id of config.json is 2 ('</s>'), and pad_token of tokenizer_config.json is '<pad>' (0)"
    note = f"{own}: a padded text may be classified by its padding"
    assert [one for one in found if "classified" in one] == ([note] if is_said else [])


@pytest.mark.parametrize(
    ("ends", "said"),
    [
        ([2, 12], "eos_token_id of generation_config.json lists 12 ('<0x61>') besides '</s>': generation stops at "
         "ordinary words of the tokeniser"),
        (12, "ids of special tokens that are ordinary words in the tokeniser: eos_token_id of generation_config.json is 12 "
         f"('<0x61>'){END}"),
    ],
)  # fmt: skip
def test_a_byte_is_no_end_and_no_special_token(ends: Any, said: str) -> None:
    assert notes({}, {"eos_token_id": ends}, LLAMA, [*TOKENS, "<0x61>"]) == [said]


@pytest.mark.parametrize(
    ("kind", "forbidden", "is_said"),
    [
        ("marian", [[4]], True),
        ("marian", [[0]], False),
        ("marian", [[0], [4]], False),
        ("marian", [[4, 5]], False),
        ("llama", [[4]], False),
    ],
)
def test_a_word_that_marian_may_not_write_in_place_of_its_padding_is_said(
    kind: str, forbidden: Any, is_said: bool
) -> None:
    found = notes({"model_type": kind, "pad_token_id": 0}, {"bad_words_ids": forbidden, "eos_token_id": 2}, LLAMA)
    note = "bad_words_ids of generation_config.json forbids the word 4 ('a'), but for Marian it must forbid the padding token, 0"
    assert [one for one in found if "bad_words" in one] == ([note] if is_said else [])


@pytest.mark.parametrize(
    ("number", "names", "is_said"),
    [
        (0, {"eos_token": "</s>", "pad_token": "<pad>"}, True),
        (0, {"eos_token": "</s>", "pad_token": "<pad>", "bos_token": "<pad>"}, False),
        (9, {"eos_token": "</s>", "pad_token": "<|endoftext|>"}, False),
        (2, {"eos_token": "</s>", "pad_token": "<pad>"}, False),
    ],
)
def test_texts_that_are_forced_to_begin_with_padding_are_said(
    number: int, names: dict[str, str], is_said: bool
) -> None:
    found = [one for one in notes({}, {"forced_bos_token_id": number, "eos_token_id": 2}, names) if "forced" in one]
    said = "forced_bos_token_id of generation_config.json is 0 ('<pad>', the pad_token of the tokeniser)"
    assert found == ([f"{said}: every text is forced to begin with padding"] if is_said else [])


T5 = {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"pad_token_id": 3}, "pad_token_id of config.json is 3 ('<unk>', the unk_token"),
        ({"decoder_start_token_id": 2}, "decoder_start_token_id of config.json is 2 ('</s>', the eos_token"),
        ({"pad_token_id": 0, "decoder_start_token_id": 0}, ""),
    ],
)
def test_a_t5_that_does_not_begin_with_padding_is_said(fields: dict[str, Any], said: str) -> None:
    found = notes({"model_type": "t5", "architectures": ["T5ForConditionalGeneration"], **fields}, {}, T5)
    assert [one.startswith(said) for one in found] == ([True] if said else [])
    bart = {"model_type": "bart", "architectures": ["BartForConditionalGeneration"]}
    assert notes({**bart, "decoder_start_token_id": 2}, {}, T5) == []


@pytest.mark.parametrize(
    ("number", "kind", "is_said"),
    [
        (1, "xlm-roberta", True),
        (2, "luke", True),
        (2, "mpnet", False),
        (0, "roberta", False),
        (2, "bert", False),
        (None, "bert", False),
    ],
)
def test_padding_from_which_positions_are_counted_is_that_of_the_tokeniser(
    number: Any, kind: str, is_said: bool
) -> None:
    found = notes({"pad_token_id": number, "model_type": kind}, None, LLAMA)
    own = (
        f"pad_token_id of config.json is {number} ('{TOKENS[number or 0]}'), and pad_token of tokenizer_config.json is"
    )
    assert found == ([f"{own} '<pad>' (0): each token gets a wrong position"] if is_said else [])


@pytest.mark.parametrize(("kind", "is_said"), [("xlm-roberta", True), ("bert", False)])
def test_two_models_that_count_positions_from_other_ids_compute_other_results(kind: str, is_said: bool) -> None:
    for path, number in (("a", 0), ("b", 1)):
        model(path, tokens=TOKENS, model_type=kind, pad_token_id=number)
    said = (
        "equal weights compute different results, because the config.json files differ: pad_token_id is 0 in a, 1 in b"
    )
    for found in (cs.diff("a", "b"), cs.average(["b", "a"])):
        assert (
            any(said in note or said.replace("0 in a, 1 in b", "1 in b, 0 in a") in note for note in found.notes)
            == is_said
        )


ENDS = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
CHAT = ["a", "b", "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>"]


@pytest.mark.parametrize(
    ("eos", "pad", "is_noted"),
    [
        (5, 3, True),  # each is one too high
        ([5, 0], 3, True),
        (4, 2, False),
        (5, 2, False),  # an end of its own
        (4, 3, False),
        ([4, 5], 3, False),
        (5, 5, False),  # padding with the end
        (5, None, False),
    ],
)
def test_end_and_padding_that_are_both_others_are_noted(eos: Any, pad: Any, is_noted: bool) -> None:
    found = notes({"eos_token_id": eos, "pad_token_id": pad}, None, ENDS, CHAT)
    ends = ", ".join(map(str, eos)) if isinstance(eos, list) else eos
    said = (
        f"eos_token_id of config.json is {ends}, and pad_token_id is {pad}, while eos_token is '<|im_end|>' (4) and "
        "pad_token is '<|endoftext|>' (2): perhaps they are the ids of another tokeniser"
    )
    assert (said in found) is is_noted, found
    assert is_noted or not [one for one in found if "another tokeniser" in one]


FOUR = ["<{user}>", "<|bot|>", "<tool>", "<sys>", "<s>", "</s>", "a", "b"]
"""A list to which four tokens were added at its beginning."""


@pytest.mark.parametrize(
    ("fields", "is_noted"),
    [
        ({"bos_token_id": 0, "eos_token_id": 1}, True),
        ({"bos_token_id": 0, "eos_token_id": [1]}, True),
        ({"bos_token_id": 4, "eos_token_id": 1}, False),  # an end of its own
        ({"bos_token_id": 0, "eos_token_id": [1, 5]}, False),
        ({"bos_token_id": 0, "eos_token_id": 0}, False),  # one token for both
        ({"bos_token_id": 0, "eos_token_id": True}, False),
        ({"eos_token_id": 1}, False),
    ],
)
def test_beginning_and_end_that_are_moved_alike_are_noted(fields: dict[str, Any], is_noted: bool) -> None:
    found = notes(fields, fields, {"bos_token": "<s>", "eos_token": "</s>"}, FOUR)
    said = (
        "eos_token_id of config.json and of generation_config.json is 1, and bos_token_id is 0, while eos_token is "
        "'</s>' (5) and bos_token is '<s>' (4): perhaps they are the ids of another tokeniser"
    )
    assert [one for one in found if "another tokeniser" in one] == [said] * is_noted


def test_beginning_and_end_that_are_moved_by_different_numbers_are_not() -> None:
    fields = {"bos_token_id": 1, "eos_token_id": 3}
    assert not notes(fields, fields, {"bos_token": "<s>", "eos_token": "</s>"}, FOUR)


@pytest.mark.parametrize(
    ("begin", "end", "pad"),
    [
        ("<s>", "</s>", "<|im_end|>"),
        ("<|begin_of_text|>", "<|end_of_text|>", "<|im_end|>"),
        ("<|begin_of_text|>", "<|eot_id|>", "<pad>"),
        ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<pad>"),
    ],
)
@pytest.mark.parametrize("has_settings", [True, False])
def test_ids_of_the_first_end_of_a_chat_model_are_not(begin: str, end: str, pad: str, has_settings: bool) -> None:
    """The tokeniser got other tokens in training (TRL's chat format), and the configuration is that of before."""
    tokens = ["<unk>", begin, end, "<pad>", *"abcdefgh", "<|im_start|>", "<|im_end|>"]
    fields = {"bos_token_id": 1, "eos_token_id": 2, "architectures": ["MistralForCausalLM"]}
    names = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": pad}
    for more in ({}, {"pad_token_id": 1}):
        assert not notes(fields | more, fields | more if has_settings else None, names, tokens)
    tokens[2] = "<|box_end|>"
    assert "ids of another tokeniser" in str(notes(fields, fields if has_settings else None, names, tokens))


TEXT_ENDS = [
    "</s>", "[/s]", "<eos>", "<|eot_id|>", "<|eom_id|>", "<EOD>", "<|eop|>", "<end_of_turn>", "<|end_of_turn|>",
    "<|endoftext|>", "<|end_of_text|>", "<end_of_utterance>", "<|end_of_message|>", "<|end_of_sentence|>",
    "<|end_of_document|>", "<|END_OF_TURN_TOKEN|>", "<|end_of_response|>", "<|end_of_sequence|>", "<EOS_TOKEN>", "<|im_end|>", "<|turn_end|>", "<|end|>", "<|return|>", "<｜end▁of▁sentence｜>",
]  # fmt: skip
"""Tokens with which published models end texts or messages."""
PART_ENDS = [
    "<end_of_image>", "<eoi>", "<|endofprompt|>", "<|end_of_box|>", "<|end_of_role|>", "<|end_of_thought|>",
    "<|end_of_textbook|>",
]  # fmt: skip
"""Tokens with which only a part of a text ends."""


@pytest.mark.parametrize(
    ("end", "is_noted"), [*((one, False) for one in TEXT_ENDS), *((one, True) for one in PART_ENDS)]
)
def test_only_a_token_that_ends_a_text_is_the_first_end_of_a_chat_model(end: str, is_noted: bool) -> None:
    tokens = ["<unk>", "<s>", end, "<pad>", *"abcdefgh", "<|im_start|>", "<|im_ended|>"]
    fields = {"bos_token_id": 1, "eos_token_id": 2, "architectures": ["MistralForCausalLM"]}
    names = {"bos_token": "<|im_start|>", "eos_token": "<|im_ended|>"}
    assert ("ids of another tokeniser" in str(notes(fields, None, names, tokens))) is is_noted


@pytest.mark.parametrize("value", [True, [[3]], [3.0], {"a": 3}, [None, 3], "3"])
def test_ids_of_the_end_that_are_no_numbers_are_not_compared(value: Any) -> None:
    tokens = ["<unk>", "<unused1>", "<s>", "<unused3>", "</s>", "a"]
    assert not [one for one in notes({"eos_token_id": value}, None, {"eos_token": "</s>"}, tokens) if "reserved" in one]
    assert "a reserved token" in str(notes({"eos_token_id": [3]}, None, {"eos_token": "</s>"}, tokens))


@pytest.mark.costly
@pytest.mark.parametrize(
    ("kind", "is_noted"), [("AlbertForMaskedLM", False), ("ModernBertForTokenClassification", False), ("BertLMHeadModel", True)]
)  # fmt: skip
def test_moved_ids_of_an_encoder_are_those_of_its_class(kind: str, is_noted: bool) -> None:
    """ALBERT's class has 2 and 3, whatever the list, and does not use them."""
    tokens = ["<pad>", "<unk>", "<x>", "<y>", "[CLS]", "[SEP]", "[MASK]", "a", "b"]
    fields = {"bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0, "architectures": [kind]}
    names = {"bos_token": "[CLS]", "eos_token": "[SEP]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    found = [one for one in notes(fields, None, names, tokens) if "another tokeniser" in one]
    assert len(found) == is_noted, found
    rows = next(one for one in cs.check("m").rows if one.id == "token-ids")
    assert (rows.status.name == "WARN") is is_noted


SPEECH = [
    WHISPER,
    "<|en|>",
    "<|yue|>",
    "<|translate|>",
    "<|transcribe|>",
    "<|nospeech|>",
    "<|startofprev|>",
    "<|notimestamps|>",
    "<|0.00|>",
]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"forced_decoder_ids": [[1, 1], [2, 4], [3, 7]], "suppress_tokens": [5]}, ""),
        ({"forced_decoder_ids": [[1, None], [2, 3]]}, ""),
        ({"forced_decoder_ids": [[1, 1], [2, 3], [3, 8]]}, ""),  # a timestamp
        ({"forced_decoder_ids": None, "suppress_tokens": None}, ""),
        ({"forced_decoder_ids": [[0, 0], [1, 1], [2, 4], [3, 7]]}, ""),  # the start token
        (
            {"forced_decoder_ids": [[1, 1], [2, 5]]},
            "forced_decoder_ids of config.json has 5 ('<|nospeech|>'), which is neither a language nor a task of the "
            "tokeniser: is this an id of another version of Whisper?",
        ),
        (
            {"forced_decoder_ids": [[1, 5], [2, 6], [3, 5]]},
            "forced_decoder_ids of config.json has 5 ('<|nospeech|>'), 6 ('<|startofprev|>'), which are neither languages nor "
            "tasks of the tokeniser: are these ids of another version of Whisper?",
        ),
        (
            {"suppress_tokens": [8, 2]},
            "suppress_tokens of config.json has 2 ('<|yue|>'), a language of the tokeniser, which must not be suppressed",
        ),
    ],
)
@pytest.mark.parametrize("generation", [None, {}, {"forced_decoder_ids": [[1, 1], [2, 4]]}])
def test_ids_of_another_whisper_are_said_of_config_json(
    fields: dict[str, Any], said: str, generation: dict[str, Any] | None
) -> None:
    model("m", tokens=SPEECH, **{"model_type": "whisper", **fields})
    Path("m/generation_config.json").unlink()
    if generation is not None:
        Path("m/generation_config.json").write_text(json.dumps(generation))
    Path("m/tokenizer_config.json").write_text("{}")
    words = ("neither a language nor a task", "neither languages nor tasks", "a language of the tokeniser")
    if generation is not None and said.startswith("suppress_tokens"):
        said = ""  # transformers reads this field of config.json only if there is no generation_config.json
    found = [one for one in cs.inspect("m").notes if any(word in one for word in words)]
    assert found == [said] * bool(said)
    assert [one for one in cs.convert("m").notes if any(word in one for word in words)] == found
