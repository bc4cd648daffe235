"""Special tokens that a tokeniser names: ids of other words beside it, and names of tokens that it has not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import ckptsurgeon as cs

from ..test_model_folders import TOKENS, model, verbs_of

NAMES = {"eos_token": "</s>", "pad_token": {"content": "<pad>"}, "bos_token": "<s>"}
CODE = {"auto_map": {"AutoTokenizer": ["tokenization_x.X", None]}}


def named(path: str, names: dict[str, Any], *, tokens: list[str] = TOKENS, **config: Any) -> str:
    """A model whose tokeniser names its special tokens."""
    model(path, tokens=tokens, **{"eos_token_id": tokens.index("</s>"), "pad_token_id": tokens.index("<pad>")} | config)
    Path(path, "generation_config.json").unlink()
    Path(path, "tokenizer_config.json").write_text(json.dumps(names))
    return path


def notes(path: str) -> list[str]:
    return [note for note in cs.inspect(path).notes if "that are ordinary words" in note or "lacks" in note]


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"eos_token_id": 5}, "eos_token_id of config.json is 5 ('b'), while eos_token is '</s>' (2)"),
        ({"eos_token_id": [5, 6]}, "eos_token_id of config.json is 5 ('b'), 6 ('c'), while eos_token is '</s>' (2)"),
        ({"pad_token_id": 4}, "pad_token_id of config.json is 4 ('a'), while pad_token is '<pad>' (0)"),
        ({"decoder_start_token_id": 4}, "decoder_start_token_id of config.json is 4 ('a')"),
        ({"sep_token_id": 5}, "sep_token_id of config.json is 5 ('b')"),
        ({"pad_token_id": 4, "architectures": ["XForCTC"]},
         "pad_token_id of config.json is 4 ('a'), while pad_token is '<pad>' (0)"),
    ],
)  # fmt: skip
def test_ids_of_ordinary_words_are_said(config: dict[str, Any], said: str) -> None:
    assert notes(named("m", NAMES, **config)) == [
        f"ids of special tokens that are ordinary words in the tokeniser: {said}"
    ]


LETTERS = ["|", "a", "b", "[UNK]", "[PAD]"]
OF_CTC = {"tokenizer_class": "Wav2Vec2CTCTokenizer", "pad_token": "[PAD]", "unk_token": "[UNK]"}
DELIMITER = {"added_tokens_decoder": {"0": {"content": "|"}, "4": {"content": "[PAD]"}}}


def ctc(path: str, number: Any, names: dict[str, Any], tokens: list[str] = LETTERS) -> str:
    model(path, tokens=tokens, architectures=["Wav2Vec2ForCTC"], eos_token_id=None, pad_token_id=number)
    Path(path, "generation_config.json").unlink()
    Path(path, "tokenizer_config.json").write_text(json.dumps(names))
    return path


@pytest.mark.parametrize("names", [{}, DELIMITER])
@pytest.mark.parametrize("number", range(5))
def test_a_blank_that_is_another_token_is_said(number: int, names: dict[str, Any]) -> None:
    """As the word delimiter, which the tokeniser of wav2vec 2.0 adds to its list."""
    ctc("m", number, {**OF_CTC, **names})
    for found in (cs.inspect("m").notes, cs.convert("m").notes):
        about = [note for note in found if "pad_token_id" in note]
        assert [f"is {number} ('{LETTERS[number]}')" in note for note in about] == ([] if number == 4 else [True])


def test_the_word_delimiter_as_blank_is_said() -> None:
    ctc("m", 0, {**OF_CTC, **DELIMITER})
    said = "pad_token_id of config.json, the blank of CTC, is 0 ('|'), and pad_token of tokenizer_config.json is '[PAD]' (4)"
    assert said in cs.inspect("m").notes


@pytest.mark.parametrize(
    ("tokens", "number", "names", "said"),
    [
        (["a", "b", "|"], 0, {}, "0 ('a'), and vocab.json has no token for the blank: the model never writes 'a'"),
        (["а", "б", "|"], 1, {}, "1 ('б'), and vocab.json has no token for the blank: the model never writes 'б'"),
        (["▁the", "b"], 0, {}, "0 ('▁the'), and vocab.json has no token for the blank: the model never writes '▁the'"),
        (["a", "<pad>"], 0, {}, "0 ('a'), and vocab.json has '<pad>' (1): the model never writes 'a'"),
        (["a", "b"], 0, {"pad_token": "[PAD]"}, "0 ('a'), and vocab.json has no token for the blank: the model never writes 'a'"),
        (LETTERS, 0, {}, "0 ('|'), and vocab.json has '[PAD]' (4): the model never writes '|'"),
        (["|", "a"], 0, {}, ""),
        (["-", "a", "|"], 0, {}, ""),  # signs may be blanks
        (["ε", "a", "|"], 0, {}, ""),
        (["<s>", "<pad>", "a"], 0, {}, ""),  # fairseq
        (["<pad>", "a"], 0, {}, ""),
        (["a", "<pad>"], None, {}, ""),
        (["a", "<pad>"], 7, {}, ""),
        (["a", "<pad>"], 1, {"pad_token": "<pad>"}, ""),
    ],
)  # fmt: skip
def test_a_letter_as_blank_is_said_if_nothing_names_another(
    tokens: list[str], number: Any, names: dict[str, Any], said: str
) -> None:
    ctc("m", number, names, tokens)
    found = [note for note in cs.inspect("m").notes if "the blank of CTC" in note]
    assert found == ([f"pad_token_id of config.json, the blank of CTC, is {said}"] if said else [])


def test_a_letter_that_a_transplant_makes_the_blank_is_said() -> None:
    """With the source's pad_token_id, beside a list that has no padding token."""
    ctc("m", 0, OF_CTC, ["[PAD]", "a", "b", "|"]), ctc("new", 0, {}, ["a", "b", "c", "d", "|"])
    plan = cs.transplant("m", "new", vocab="m/vocab.json:new/vocab.json", vocab_keys=["lm_head", "model.embed_tokens"])
    assert [note for note in plan.notes if "is 0 ('a'), and vocab.json has no token for the blank" in note]


@pytest.mark.parametrize(
    ("names", "config"),
    [
        (NAMES, {}),
        (NAMES, {"eos_token_id": 1}),  # another special token
        (NAMES, {"pad_token_id": 2, "bos_token_id": None, "decoder_start_token_id": 0}),
        (NAMES, {"pad_token_id": -1, "bos_token_id": 99}),
        (NAMES, {"eos_token_id": 5, "vocab_size": 4}),  # of another vocabulary, as of codes of sound
        (NAMES, {"eos_token_id": 5, "architectures": ["XForCTC"]}),
        (NAMES, {"eos_token_id": 5, "model_type": "clip_text_model"}),
        (NAMES | {"added_tokens_decoder": {"5": {"content": "b"}}}, {"eos_token_id": 5}),
        ({}, {"eos_token_id": 5, "decoder_start_token_id": 5}),
        ({"eos_token": "<none>"}, {"eos_token_id": 5}),
        ({}, {"sep_token_id": 5}),
        (NAMES, {"sep_token_id": 5, "model_type": "longformer"}),  # the default of the class
    ],
)
def test_ids_of_special_tokens_and_of_what_nothing_names_are_not(names: dict[str, Any], config: dict[str, Any]) -> None:
    assert not [note for note in notes(named("m", names, **config)) if "that are ordinary words" in note]


UNBEGUN = {"eos_token": "</s>", "pad_token": "<pad>"}
"""The special tokens of a tokeniser without a ``bos_token``, as Qwen2 has it."""
LONG = ["<pad>", "<s>", "</s>", "x", "y", "z", "ab", "!", "<|endoftext|>", "cd", *(f"w{row}" for row in range(10, 20))]


@pytest.mark.parametrize(
    ("config", "generation", "said"),
    [
        ({"bos_token_id": 6}, None, "bos_token_id of config.json is 6 ('ab')"),
        ({"bos_token_id": 8}, {"bos_token_id": 9}, "bos_token_id of generation_config.json is 9 ('cd')"),
        ({"bos_token_id": 6}, {"bos_token_id": 6},
         "bos_token_id of config.json is 6 ('ab'), bos_token_id of generation_config.json is 6 ('ab')"),
        ({"bos_token_id": 8}, {"bos_token_id": 8}, ""),  # a special token
        ({"bos_token_id": 3}, {"bos_token_id": 3}, ""),  # perhaps the default of the class
        ({"bos_token_id": 11, "model_type": "falcon"}, None, ""),
        ({"bos_token_id": 11}, None, "bos_token_id of config.json is 11 ('w11')"),
        ({"bos_token_id": 7}, None, ""),  # a sign
        ({"bos_token_id": 99}, None, ""),
        ({"bos_token_id": 6, "is_encoder_decoder": True}, None, ""),
        ({"bos_token_id": 6}, {"decoder_start_token_id": 0}, ""),
        ({"bos_token_id": 6, "architectures": ["BertForMaskedLM"], "model_type": "bert"}, None, ""),
    ],
)  # fmt: skip
def test_a_beginning_that_is_a_word_is_said_though_the_tokeniser_names_none(
    config: dict[str, Any], generation: Any, said: str
) -> None:
    named("m", UNBEGUN, tokens=LONG, **{"architectures": ["LlamaForCausalLM"]} | config)
    if generation is not None:
        Path("m/generation_config.json").write_text(json.dumps(generation))
    assert notes("m") == ([f"ids of special tokens that are ordinary words in the tokeniser: {said}"] if said else [])


def test_the_end_that_generation_takes_from_a_nested_configuration_counts() -> None:
    named("m", NAMES, eos_token_id=None, text_config={"eos_token_id": 5, "bos_token_id": 4})
    said = [
        "ids of special tokens that are ordinary words in the tokeniser: eos_token_id of text_config in config.json is 5 ('b'), "
        "while eos_token is '</s>' (2)"
    ]
    assert notes("m") == said
    Path("m/generation_config.json").write_text('{"eos_token_id": 2}')
    assert notes("m") == said  # as that of config.json itself
    assert [one.what for one in cs.check("m").row("token-ids").found] == said


@pytest.mark.parametrize(
    "config",
    [
        {"eos_token_id": None, "text_config": {"eos_token_id": 2}},
        {"eos_token_id": None, "text_config": {"eos_token_id": [2, 1]}},
        {"eos_token_id": None, "text_config": {"eos_token_id": 1}},  # another special token, as of chat models
        {"eos_token_id": None, "text_config": {"eos_token_id": 99}},
        {"eos_token_id": None, "text_config": {}},
        {"eos_token_id": None, "decoder": {"eos_token_id": 5}},  # which generation_config.json replaces
        {"eos_token_id": 2, "text_config": {"eos_token_id": 5}},
    ],
)
def test_ends_of_nested_configurations_that_are_right_or_unused_get_no_note(config: dict[str, Any]) -> None:
    named("m", NAMES, **config)
    Path("m/generation_config.json").write_text('{"eos_token_id": 2}')
    assert not [note for note in notes("m") if "that are ordinary words" in note]


def test_ids_of_generation_and_names_of_special_tokens_map_count_too() -> None:
    named("m", {})
    Path("m/special_tokens_map.json").write_text(json.dumps(NAMES))
    Path("m/generation_config.json").write_text('{"eos_token_id": 7}')
    assert notes("m") == [
        "ids of special tokens that are ordinary words in the tokeniser: eos_token_id of generation_config.json is 7 ('d'), while "
        "eos_token is '</s>' (2)"
    ]


@pytest.mark.parametrize("verb", verbs_of(""))
def test_every_verb_says_it_once(verb: str) -> None:
    named("sound", NAMES), named("m", NAMES, seed=1, eos_token_id=5)
    assert len([note for note in verbs_of("m")[verb]().notes if "that are ordinary words" in note]) == 1


def test_ids_beside_a_list_that_is_the_new_one_already_are_said() -> None:
    named("a", NAMES), named("b", NAMES, tokens=[*"abcd", *TOKENS[:4]], eos_token_id=2)
    plan = cs.transplant("a", "b", vocab="a/vocab.json:b/vocab.json", vocab_keys=["lm_head", "model.embed_tokens"])
    assert [note for note in plan.notes if "eos_token_id of config.json is 2 ('c'), while eos_token is '</s>'" in note]


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ({"eos_token": "<end>"}, "lists 1 token that vocab.json lacks, {}: eos_token '<end>' is 8, beyond the last row"),
        ({"eos_token": "<end>", "bos_token": {"content": "<go>"}, "pad_token": "<end>"},
         "lists 2 tokens that vocab.json lacks, {}: bos_token '<go>' is 8, eos_token '<end>' is 9, beyond the last row"),
        (NAMES, ""),
        ({"eos_token": "<end>", "added_tokens_decoder": {"7": {"content": "<end>"}}}, ""),
        ({"eos_token": "<end>", **CODE}, ""),
        ({"eos_token": None}, ""),
        ({"additional_special_tokens": ["<x>", {"content": "<y>"}, "a"]},
         "lists 2 tokens that vocab.json lacks, {}: additional_special_tokens '<x>' is 8, additional_special_tokens '<y>' is "
         "9, beyond the last row"),
        ({"extra_special_tokens": {"image_token": "<x>"}, "additional_special_tokens": ["<y>"]},
         "lists 1 token that vocab.json lacks, {}: extra_special_tokens '<x>' is 8, beyond the last row"),
        ({"eos_token": "<end>", "extra_special_tokens": ["<x>", "<end>"]},
         "lists 2 tokens that vocab.json lacks, {}: eos_token '<end>' is 8, extra_special_tokens '<x>' is 9, beyond the last row"),
        ({"additional_special_tokens": ["__en__"], "tokenizer_class": "M2M100Tokenizer"}, ""),  # adds them in code
    ],
)  # fmt: skip
def test_names_of_tokens_that_the_tokeniser_lacks_are_said(names: dict[str, Any], said: str) -> None:
    named("m", names)
    has = "but model.embed_tokens.weight has 8 rows"
    assert notes("m") == ([f"tokenizer_config.json {said.format(has)}"] if said else [])
    assert bool([note for note in cs.convert("m").notes if "lacks" in note]) == bool(said)


def whole(path: str, names: dict[str, Any], tokens: list[str], mapped: dict[str, Any] | None = None) -> str:
    """A model with tokenizer.json, tokenizer_config.json and special_tokens_map.json."""
    named(path, names, tokens=tokens)
    Path(path, "vocab.json").unlink()
    vocab = {"model": {"type": "WordLevel", "vocab": {token: i for i, token in enumerate(tokens)}}, "added_tokens": []}
    Path(path, "tokenizer.json").write_text(json.dumps(vocab))
    if mapped is not None:
        Path(path, "special_tokens_map.json").write_text(json.dumps(mapped))
    return path


def test_an_added_token_with_the_number_of_another_gets_a_new_one() -> None:
    whole("m", {"added_tokens_decoder": {"5": {"content": "<new>"}, "0": {"content": "<pad>"}}}, TOKENS)
    said = "tokenizer_config.json lists 1 token that tokenizer.json lacks, but model.embed_tokens.weight has 8 rows"
    assert notes("m") == [f"{said}: added_tokens_decoder '<new>' is 8, beyond the last row"]


def test_names_of_special_tokens_map_count_unless_it_is_not_read() -> None:
    whole("m", {}, TOKENS, {"eos_token": "<end>", "additional_special_tokens": ["<x>"]})
    said = "special_tokens_map.json lists 2 tokens that tokenizer.json lacks, but model.embed_tokens.weight has 8 rows"
    assert notes("m") == [f"{said}: eos_token '<end>' is 8, additional_special_tokens '<x>' is 9, beyond the last row"]
    Path("m/tokenizer_config.json").write_text('{"added_tokens_decoder": {}}')
    assert not notes("m")


SWAP = "eos_token '<s>' and '</s>'"
FILE = "special_tokens_map.json"


@pytest.mark.parametrize(
    ("names", "mapped", "said"),
    [
        (NAMES, {"eos_token": "<s>"}, f"{SWAP}: transformers uses {FILE}"),
        (NAMES, {"eos_token": "<s>", "bos_token": "</s>"}, f"bos_token '</s>' and '<s>', {SWAP}: transformers uses {FILE}"),
        ({**NAMES, "added_tokens_decoder": {}}, {"eos_token": "<s>", "bos_token": "</s>"},
         f"bos_token '</s>' and '<s>', {SWAP}: transformers before 4.34 uses {FILE}"),
        ({**NAMES, "added_tokens_decoder": {}}, {"eos_token": "<unk>"}, ""),
        ({**NAMES, "added_tokens_decoder": {}}, {"eos_token": "<|im_end|>"},
         f"eos_token '<|im_end|>' and '</s>': transformers before 4.34 uses {FILE}"),
        (NAMES, {"eos_token": {"content": "</s>", "lstrip": False}, "pad_token": None}, ""),
        ({}, NAMES, ""),
        (NAMES | {"eos_token": ""}, NAMES, ""),
    ],
)  # fmt: skip
def test_two_files_with_other_special_tokens_are_said(names: dict[str, Any], mapped: dict[str, Any], said: str) -> None:
    whole("m", names, TOKENS, mapped)
    told = f"special_tokens_map.json and tokenizer_config.json have different special tokens: {said}"
    for found in (cs.inspect("m").notes, cs.convert("m").notes):
        assert [note for note in found if "different special" in note] == ([told] if said else [])


def test_names_that_get_a_row_of_padding_are_not() -> None:
    named("m", {"eos_token": "<end>"})
    Path("m/vocab.json").write_text(json.dumps({token: i for i, token in enumerate(TOKENS[:-1])}))
    settings = json.loads(Path("m/config.json").read_text())
    Path("m/config.json").write_text(json.dumps(settings | {"eos_token_id": 7}))
    Path("m/generation_config.json").write_text(json.dumps({"eos_token_id": [7, 2]}))
    assert not notes("m")


@pytest.mark.parametrize(("number", "is_said"), [(4, False), (5, True)])
def test_ids_of_other_tokens_than_they_are_called_by_are_said(number: int, is_said: bool) -> None:
    named("m", {}), named("a", {}, tokens=TOKENS[::-1])
    Path("m/generation_config.json").write_text(json.dumps({"lang_to_id": {"a": number, "x": 7}}))
    told = "lang_to_id.a of generation_config.json is 5 ('b')"
    assert cs.inspect("m").notes == ((f"ids in fields that are meant for other tokens: {told}",) if is_said else ())
    plan = cs.transplant("m", "m", vocab="m/vocab.json:a/vocab.json", vocab_keys=["lm_head", "model.embed_tokens"])
    assert bool([note for note in plan.notes if "lang_to_id.a was 5 ('b')" in note]) == is_said
    cs.apply(plan, "out")
    assert json.loads(Path("out/generation_config.json").read_text())["lang_to_id"] == {"a": 3, "x": 0}


@pytest.mark.parametrize("name", ["preprocessor_config.json", "processor_config.json"])
def test_token_ids_of_processors_follow_their_tokens(name: str) -> None:
    named("m", {}), named("b", {}, tokens=TOKENS[::-1])
    text = '{"image_token_id":4,"size":4,"audio_token_id":null}'
    Path("m", name).write_text(text)
    Path("m/audio_tokenizer_config.json").write_text(text)
    keys = ["lm_head", "model.embed_tokens"]
    plan = cs.transplant("m", "m", vocab="m/vocab.json:b/vocab.json", vocab_keys=keys)
    cs.apply(plan, "out")
    assert json.loads(Path("out", name).read_text()) == {"image_token_id": 3, "size": 4, "audio_token_id": None}
    assert Path("out/audio_tokenizer_config.json").read_text() == text
    assert f"token ids in {name} are changed to the new ids of their tokens: image_token_id = 3" in plan.notes
    assert cs.verify("out").ok


def test_ids_of_unusual_names_follow_their_tokens_and_numbers_that_may_be_ids_are_said() -> None:
    tokens = ["<pad>", "<s>", "</s>", *TOKENS[3:]]
    named("m", {}, tokens=tokens, image_start_id=4, slice_id=1, insert_layer_id=1)
    named("b", {}, tokens=tokens[::-1])
    plan = cs.transplant("m", "m", vocab="m/vocab.json:b/vocab.json", vocab_keys=["lm_head", "model.embed_tokens"])
    cs.apply(plan, "out")
    made = json.loads(Path("out/config.json").read_text())
    assert [made[field] for field in ("image_start_id", "slice_id", "insert_layer_id")] == [len(tokens) - 5, 1, 1]
    said = "numbers that may be ids of old tokens are not changed in config.json; if one of them is a token id, set its new value: slice_id = 1 ('<s>')"
    assert said in plan.notes


def test_a_processor_s_file_without_ids_or_that_is_broken_stays_as_it_is() -> None:
    named("m", {}), named("b", {}, tokens=TOKENS[::-1])
    for name, text in (("preprocessor_config.json", '{"size":4}'), ("processor_config.json", "{")):
        Path("m", name).write_text(text)
    keys = ["lm_head", "model.embed_tokens"]
    cs.apply(cs.transplant("m", "m", vocab="m/vocab.json:b/vocab.json", vocab_keys=keys), "out")
    assert Path("out/preprocessor_config.json").read_text() == '{"size":4}'
    assert Path("out/processor_config.json").read_text() == "{"


ROLES = {**NAMES, "unk_token": "<unk>"}
WHOLE = ["<pad>", "<s>", "</s>", "<unk>", "a", "b", "<|en|>", "<|de|>"]
SWAPPED = ("bos_token_id is 2 and eos_token_id is 1 in config.json, but the tokeniser has bos_token '<s>' (1) "
           "and eos_token '</s>' (2): the two are swapped")  # fmt: skip
PADDED = ("eos_token_id is 0 and pad_token_id is 2 in config.json, but the tokeniser has eos_token '</s>' (2) "
          "and pad_token '<pad>' (0): the two are swapped")  # fmt: skip
UNKNOWN = ("eos_token_id of config.json is 3 ('<unk>', the unk_token of the tokeniser), while eos_token is "
           "'</s>' (2)")  # fmt: skip
OTHER = "ids of special tokens that are ordinary words in the tokeniser: "
FORCED = "forced_decoder_ids of config.json are ids of ordinary words in the tokeniser: 4 ('a'), 5 ('b')"
LANGUAGES = "ids in fields that are meant for other tokens: lang_to_id.<|fr|> of config.json is 7 ('<|de|>')"


@pytest.mark.parametrize(
    ("config", "names", "said"),
    [
        ({"bos_token_id": 2, "eos_token_id": 1}, ROLES, SWAPPED),
        ({"eos_token_id": 0, "pad_token_id": 2}, ROLES, PADDED),
        ({"eos_token_id": 3}, ROLES, UNKNOWN),
        ({"forced_bos_token_id": 4}, ROLES, f"{OTHER}forced_bos_token_id of config.json is 4 ('a')"),
        ({"no_timestamps_token_id": 5}, ROLES, f"{OTHER}no_timestamps_token_id of config.json is 5 ('b')"),
        ({"forced_decoder_ids": [[1, 4], [2, 5]]}, ROLES, FORCED),
        ({"lang_to_id": {"<|en|>": 6, "<|fr|>": 7}}, ROLES, LANGUAGES),
        ({"bos_token_id": 2, "eos_token_id": 2, "pad_token_id": 2}, ROLES, ""),
        ({"bos_token_id": 1, "eos_token_id": 3}, {**ROLES, "eos_token": "<unk>"}, ""),
        ({"forced_bos_token_id": 6, "prev_sot_token_id": 7}, ROLES, ""),
        ({"forced_decoder_ids": [[1, 6], [2, 4]], "lang_to_id": {"<|en|>": 6}}, ROLES, ""),
    ],
)
def test_ids_of_other_roles_are_said(config: dict[str, Any], names: dict[str, Any], said: str) -> None:
    named("m", names, tokens=WHOLE, **config)
    Path("m/vocab.json").rename("m/old")
    vocab = {"model": {"type": "WordLevel", "vocab": {token: i for i, token in enumerate(WHOLE)}}, "added_tokens": []}
    Path("m/tokenizer.json").write_text(json.dumps(vocab))
    Path("m/old").unlink()
    for found in (cs.inspect("m").notes, cs.convert("m").notes):
        assert [note for note in found if "token" in note] == ([said] if said else [])
