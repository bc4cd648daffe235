"""Ends of texts that generation cannot reach, and files of generation whose config.json is not copied."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import ckptsurgeon as cs

from ..test_model_folders import model, verbs_of
from .test_special_roles import LLAMA, TOKENS, notes

CHAT = LLAMA | {"eos_token": "<|im_end|>"}


@pytest.mark.parametrize(
    ("names", "config", "generation", "said"),
    [
        ({"eos_token": "<unk>"}, 2, None, "'<unk>' (3), the unknown token, while eos_token_id of config.json is 2"),
        ({"eos_token": {"content": "a"}}, 2, None, "'a' (4), an ordinary word, while eos_token_id of config.json is 2"),
        ({"eos_token": "a"}, None, [9, 2],
         "'a' (4), an ordinary word, while eos_token_id of generation_config.json is 2"),
        ({"eos_token": "<|im_end|>"}, 2, None, ""),  # as chat models have it
        ({"eos_token": "<|im_end|>"}, [2, 9], [2, 9], ""),
        ({"eos_token": "Ċ"}, 2, None, ""),
        ({"eos_token": "a"}, 4, None, ""),
        ({"eos_token": "a"}, 2, [4, 2], ""),
        ({"eos_token": "a"}, 5, None, ""),
        ({"eos_token": "a", "added_tokens_decoder": {"4": {"content": "a"}}}, 2, None, ""),
        ({"eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}, 2, None, ""),  # as GPT-2 names both
        ({"eos_token": "<unk>"}, None, None, ""),
        ({"eos_token": "gone"}, 2, None, ""),
    ],
)  # fmt: skip
def test_an_end_that_is_unknown_or_a_word_is_said(names: Any, config: Any, generation: Any, said: str) -> None:
    found = notes({"eos_token_id": config}, {"eos_token_id": generation} if generation else None, LLAMA | names)
    own = [note for note in found if note.startswith("eos_token of the tokeniser")]
    assert own == ([f"eos_token of the tokeniser is {said} ('</s>')"] if said else [])


@pytest.mark.parametrize(
    ("ends", "suppressed", "is_said"),
    [
        (2, [5, 2], True),
        ([2, 9], [9, 2], True),
        ([2, 9], [2], False),  # another end is left
        (2, [5], False),
        (2, None, False),
        (None, [2], False),
    ],
)
def test_ends_that_are_all_suppressed_are_said(ends: Any, suppressed: Any, is_said: bool) -> None:
    settings = {"suppress_tokens": suppressed, "begin_suppress_tokens": [2, 5]}  # as Whisper has it
    found = notes({}, {"eos_token_id": ends, **settings}, LLAMA)
    first = ends[0] if isinstance(ends, list) else ends
    said = f"suppress_tokens of generation_config.json has {first}, its eos_token_id: generation cannot end"
    assert (said in found) == is_said == any("cannot end" in note for note in found)


@pytest.mark.parametrize(
    ("config", "generation", "said"),
    [
        ({"eos_token_id": "</s>"}, None, ["eos_token_id of config.json is '</s>', not an integer: "
         "most models of transformers 5 do not load with it"]),
        ({"eos_token_id": [2.0]}, None, ["eos_token_id of config.json is 2.0, not an integer: "
         "most models of transformers 5 do not load with it"]),
        ({}, {"decoder_start_token_id": "2"}, ["decoder_start_token_id of generation_config.json is '2', "
         "not an integer: generation fails"]),
        ({}, {"eos_token_id": 2.0}, []),
        ({"eos_token_id": -1}, None, ["eos_token_id of config.json is -1, which is the id of no token, "
         "while eos_token is '</s>' (2)"]),
        ({"eos_token_id": 2}, {"eos_token_id": -1}, ["eos_token_id of generation_config.json is -1, "
         "which is the id of no token, while eos_token is '</s>' (2)"]),
        ({}, {"decoder_start_token_id": -1}, ["decoder_start_token_id of generation_config.json is -1, "
         "which is the id of no token"]),
        ({"eos_token_id": -1}, {"eos_token_id": 2}, []),  # generation takes the latter
        ({"eos_token_id": [2, -1]}, None, []),
        ({"eos_token_id": 2, "pad_token_id": -1, "bos_token_id": -1}, {"pad_token_id": -1}, []),  # as Llama has it
        ({"eos_token_id": -1, "architectures": ["XForCTC"]}, None, []),
    ],
)  # fmt: skip
def test_ids_that_no_token_has_are_said(config: Any, generation: Any, said: list[str]) -> None:
    assert notes(config, generation, LLAMA) == said


def test_a_negative_end_is_not_said_of_a_tokeniser_without_one() -> None:
    assert notes({"eos_token_id": -1}, None, {"unk_token": "<unk>"}) == []


@pytest.mark.parametrize("verb", verbs_of(""))
def test_every_verb_says_so(verb: str) -> None:
    for seed, path in enumerate(["sound", "m"]):
        model(path, tokens=TOKENS, seed=seed)
    Path("m/generation_config.json").write_text('{"eos_token_id": 2, "suppress_tokens": [2]}')
    assert any("generation cannot end" in note for note in verbs_of("m")[verb]().notes)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ('{"eos_token_id": 5}', "'</s>' (2)"),
        ('{"eos_token_id": 99}', "the vocabulary size is 12, but eos_token_id of generation_config.json is 99"),
        ('{"eos_token_id": 2, "suppress_tokens": [2]}', "generation cannot end"),
        ('{"eos_token_id": [2, 9], "suppress_tokens": [5]}', ""),
    ],
)
def test_settings_of_generation_are_checked_though_config_json_is_not_copied(fields: str, said: str) -> None:
    model("m", tokens=TOKENS)
    Path("m/generation_config.json").write_text(fields)
    Path("m/tokenizer_config.json").write_text('{"eos_token": "</s>"}')
    for plan in (cs.rename("m", map={"model": "net"}), cs.filter("m", exclude="model.norm*")):
        found = [note for note in plan.notes if "config.json is not copied" not in note and "in the folder" not in note]
        assert len(found) == bool(said), found
        assert not said or said in found[0]


WHISPER = {"model_type": "whisper", "eos_token_id": 2}
LACKS = "lacks the end token, '</s>' (2): generated texts may be empty"


@pytest.mark.parametrize(
    ("config", "generation", "said"),
    [
        ({}, {"begin_suppress_tokens": [10, 2]}, []),
        ({}, {"begin_suppress_tokens": []}, []),
        ({}, None, []),
        ({}, {"begin_suppress_tokens": [10]}, [f"begin_suppress_tokens of generation_config.json {LACKS}"]),
        ({"begin_suppress_tokens": [10, 9]}, None, [f"begin_suppress_tokens of config.json {LACKS}"]),
        ({"begin_suppress_tokens": [10]}, {"begin_suppress_tokens": [10, 2]}, []),  # the latter is taken
        ({}, {"begin_suppress_tokens": [5, 2]}, ["begin_suppress_tokens of generation_config.json has words of the "
         "tokeniser, so that no text can begin with them: 5 ('b')"]),
        ({"model_type": "llama"}, {"begin_suppress_tokens": [10]}, []),
    ],
)  # fmt: skip
def test_what_whisper_may_not_begin_with_is_checked(config: Any, generation: Any, said: list[str]) -> None:
    settings = None if generation is None else {"eos_token_id": 2, **generation}
    found = notes(WHISPER | config, settings, {"eos_token": "</s>", "pad_token": "</s>"})
    assert [one for one in found if "begin_suppress" in one] == said


SIGNS = ["</s>", "<|startoftranscript|>", "<|en|>", '"', "(", "--", "♪♪", "Ġ-", "ĠâĻ", "12", "ens", "Ġth", "ig", "re"]
WORDS = "10 ('ens'), 11 ('Ġth'), 12 ('ig')"


@pytest.mark.parametrize(
    ("config", "generation", "said"),
    [
        ({}, {"suppress_tokens": [3, 4, 10, 11, 12]}, f"generation_config.json has WORDS: {WORDS}"),
        ({}, {"suppress_tokens": [*range(3, 14)]}, f"generation_config.json has WORDS: {WORDS}, and 1 more"),
        ({"suppress_tokens": [10, 11, 12]}, None, f"config.json has WORDS: {WORDS}"),
        ({"suppress_tokens": [10, 11, 12]}, {"suppress_tokens": [3, 4]}, ""),  # the latter is taken
        ({}, {"suppress_tokens": [1, 2, *range(3, 10)]}, ""),  # as in Whisper; and digits, for numbers in words
        ({}, {"suppress_tokens": [3, 4, 10, 11]}, ""),  # perhaps on purpose
        ({}, {"suppress_tokens": [3, "a", None, -1]}, ""),
        ({"model_type": "llama"}, {"suppress_tokens": [10, 11, 12]}, ""),  # only Whisper has such a list
    ],
)
def test_words_that_whisper_may_not_write_are_said(config: Any, generation: Any, said: str) -> None:
    settings = None if generation is None else {"eos_token_id": 0, **generation}
    names = {"eos_token": "</s>", "pad_token": "</s>"}
    found = notes({"model_type": "whisper", "eos_token_id": 0, **config}, settings, names, SIGNS)
    words = "words of the tokeniser, which no text can contain then"
    text = f"suppress_tokens of {said.replace('WORDS', words)}; perhaps they are ids of another vocabulary"
    assert [one for one in found if "suppress" in one] == ([text] if said else [])


def test_added_tokens_are_no_suppressed_words() -> None:
    added = {"added_tokens_decoder": {str(row): {"content": SIGNS[row]} for row in (10, 11)}}
    settings = {"eos_token_id": 0, "suppress_tokens": [10, 11, 12, 13]}
    found = notes({"model_type": "whisper"}, settings, {"eos_token": "</s>", **added}, SIGNS)
    assert not [one for one in found if "suppress" in one]


WRITES, EOS = "{{ '<|im_start|>' + m }}<|im_end|>\n", "{{ bos_token }}{{ m }}{{ eos_token }}"
TURN, OTHER = "<|im_end|>", "<|endoftext|>"


@pytest.mark.parametrize(
    ("template", "names", "config", "generation", "said"),
    [
        (WRITES, CHAT, 2, None, "'<|im_end|>' (11), but eos_token_id of config.json is 2 ('</s>')"),
        (WRITES, CHAT, 11, 2, "'<|im_end|>' (11), but eos_token_id of generation_config.json is 2 ('</s>')"),
        (EOS, CHAT, 2, [2, 9], "'<|im_end|>' (11), but eos_token_id of generation_config.json is 2 ('</s>'), "
         "9 ('<|endoftext|>')"),
        (WRITES, LLAMA, 2, [2, 10], "'<|im_end|>' (11), but eos_token_id of generation_config.json is 2 ('</s>'), "
         "10 ('Ċ')"),
        (WRITES, CHAT, 2, [2, 11], ""),
        (WRITES, CHAT, 11, None, ""),
        (WRITES, LLAMA, 2, 2, ""),  # of a model that has not learned to end turns, perhaps
        (WRITES, LLAMA, 9, 9, ""),
        (EOS, LLAMA, 2, 2, ""),
        (EOS, LLAMA, None, None, ""),
        ("{{ m }}", CHAT, 2, 2, ""),
        (WRITES + EOS, LLAMA, 11, [11, 9], ""),  # an end that the template writes is enough
    ],
)  # fmt: skip
def test_a_turn_that_ends_with_another_token_than_generation_is_said(
    template: str, names: Any, config: Any, generation: Any, said: str
) -> None:
    fields = None if generation is None else {"eos_token_id": generation}
    found = notes({"eos_token_id": config}, fields, names | {"chat_template": template})
    turns = [note for note in found if note.startswith("the chat template")]
    assert turns == ([f"the chat template ends turns with {said}: generation does not stop there"] if said else [])


def test_a_token_that_begins_turns_is_no_end_of_them() -> None:
    tokens = [*TOKENS[:4], "<|im_start|>", *TOKENS[5:]]
    found = notes({"eos_token_id": [2, 11]}, {"eos_token_id": [2, 4]}, LLAMA | {"chat_template": WRITES}, tokens)
    said = "2 ('</s>'), 4 ('<|im_start|>'): generation does not stop there"
    assert any(note.startswith("the chat template ends turns with") and note.endswith(said) for note in found)


@pytest.mark.parametrize(
    ("row", "names", "ends", "is_said"),
    [
        ({"special": False}, {}, [2, 11], True),
        ({"special": True}, {}, [2, 11], False),
        ({"special": False}, {}, [2], False),
        ({"special": False}, {"eos_token": TURN}, [2, 11], False),
        ({"special": False}, {"additional_special_tokens": [TURN]}, [2, 11], False),
        ({"special": False}, {"extra_special_tokens": {"turn": TURN}}, [2, 11], False),
        ({"special": False}, {"added_tokens_decoder": {"11": {"content": TURN, "special": True}}}, [2, 11], False),
        ({"special": False, "content": "a", "id": 4}, {}, [2, 4], False),  # a word: another note
    ],
)
def test_an_end_of_turns_that_decoded_texts_keep_is_said(
    row: dict[str, Any], names: dict[str, Any], ends: list[int], is_said: bool
) -> None:
    model("m", tokens=TOKENS, eos_token_id=None, pad_token_id=None)
    Path("m/generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
    Path("m/tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>", **names}))
    vocab = {one: at for at, one in enumerate(TOKENS)}
    added = [{"id": 11, "content": TURN, **row}]
    Path("m/tokenizer.json").write_text(json.dumps({"added_tokens": added, "model": {"type": "BPE", "vocab": vocab}}))
    Path("m/vocab.json").unlink()
    found = [one for one in cs.inspect("m").notes if "special: false" in one]
    said = f"generation ends at '{TURN}' (11), which tokenizer.json adds with special: false: decoded texts keep it"
    assert found == ([said] if is_said else [])
