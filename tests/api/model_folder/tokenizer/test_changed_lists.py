"""Token lists that were changed since ckpt wrote them with the weights beside them: the recipe has their digest."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from unittest.mock import patch

import pytest

import ckptsurgeon as cs
from ckptsurgeon.api.gguf import tokenizer_notes as tokenizer_notes_module
from ckptsurgeon.api.gguf.tokenizer_notes import tokenizer_notes
from ckptsurgeon.formats.ggml.values import TEXT, array

from ..test_model_folders import TOKENS, model, verbs_of

SAID = "vocab.json is not the list that was written with these weights (ckptsurgeon.json): if its tokens differ"


@pytest.fixture
def written() -> str:
    """A folder that ckpt has written."""
    model("origin")
    cs.apply(cs.convert("origin", dtype="bfloat16"), "m")
    return "m"


def exchanged(path: str) -> None:
    """Exchange two tokens of a list."""
    tokens = [*TOKENS[:2], TOKENS[3], TOKENS[2], *TOKENS[4:]]
    Path(path).write_text(json.dumps({token: row for row, token in enumerate(tokens)}))


@pytest.mark.parametrize("verb", verbs_of(""))
def test_every_verb_says_that_a_list_was_changed(verb: str, written: str) -> None:
    model("sound", seed=1)
    for name in ("sound", "m"):  # verbs that combine both refuse lists that differ
        exchanged(f"{name}/vocab.json")
    assert any(SAID in note for note in verbs_of(written)[verb]().notes)


@pytest.mark.parametrize("verb", verbs_of(""))
def test_a_folder_as_it_was_written_has_no_such_note(verb: str, written: str) -> None:
    model("sound", seed=1)
    assert not any("not the list" in note for note in verbs_of(written)[verb]().notes)


def test_settings_may_be_edited_and_weights_of_others_have_no_recipe(written: str) -> None:
    Path("m/tokenizer_config.json").write_text('{"model_max_length": 9}')
    assert not any("not the list" in note for note in cs.inspect(written).notes)
    exchanged("origin/vocab.json")
    assert not any("not the list" in note for note in cs.inspect("origin").notes)


def test_check_warns(written: str) -> None:
    exchanged("m/vocab.json")
    assert any(SAID in found.what for found in cs.check(written).row("vocabulary").found)


@pytest.mark.parametrize(
    "recipe", ['{"target":{"companions":[', '{"target":{"companions":[1]}}', '{"companions":[{}]}']
)
def test_a_damaged_recipe_is_no_note(recipe: str, written: str) -> None:
    Path("m/ckptsurgeon.json").write_text(recipe)
    exchanged("m/vocab.json")
    assert not any("not the list" in note for note in cs.inspect(written).notes)


ALPHABET = "abcdefghijklmnopqrstuvwxyz0123456789.,-"
LETTERS = [*ALPHABET, "Ġ"]
PAIRS = [f"{one}{other}" for one in ("Ġ", *"aeiou") for other in "bcdfghklmnprstvwxyz"]
"""The 114 tokens that merge rules make."""
SORTED = "are in alphabetical order, such as 'ab' and 'ac': no training of a tokeniser produces this order"


def mixed(seed: int = 0) -> list[str]:
    return random.Random(seed).sample(PAIRS, len(PAIRS))


def byte_pairs(
    path: str, made: list[str], rules: list[str], *, is_whole: bool = True, added: int = 0, seed: int = 0,
    letters: Sequence[str] = LETTERS,
) -> None:  # fmt: skip
    """A model with BPE, in tokenizer.json or in two files; ``made`` are the results of ``rules`` by id."""
    tokens = [*letters, *made]
    model(
        path, seed=seed, rows=len(tokens) + added, vocab_size=len(tokens) + added, eos_token_id=None, pad_token_id=None
    )
    vocab = {token: row for row, token in enumerate(tokens)}
    Path(path, "generation_config.json").unlink()
    Path(path, "vocab.json").write_text(json.dumps(vocab))
    Path(path, "merges.txt").write_text("#version: 0.2\n" + "".join(f"{one[0]} {one[1]}\n" for one in rules))
    if is_whole:
        extra = [{"id": len(tokens) + row, "content": f"<A{row}>", "special": True} for row in range(added)]
        bpe = {"type": "BPE", "vocab": vocab, "merges": [list(one) for one in rules]}
        Path(path, "tokenizer.json").write_text(json.dumps({"added_tokens": extra, "model": bpe}))


def near(made: list[str]) -> list[str]:
    """Exchange two tokens of a sorted list."""
    return [made[60], *made[1:60], made[0], *made[61:]]


@pytest.mark.parametrize("is_whole", [True, False])
@pytest.mark.parametrize(
    ("made", "rules", "is_said"),
    [
        (sorted(PAIRS), mixed(), True),
        (near(sorted(PAIRS)), mixed(), True),
        (mixed(), mixed(), False),  # as a library trains it
        (mixed(1), mixed(), False),  # by frequency, as in RoBERTa
        (sorted(PAIRS), sorted(PAIRS), False),  # made by hand, with its rules
        ([*sorted(PAIRS)[:60], *sorted(PAIRS)[:59:-1]], mixed(), False),
        (sorted(PAIRS)[:99], [one for one in mixed() if one in sorted(PAIRS)[:99]], False),  # too few
    ],
)
def test_tokens_in_alphabetical_order_are_said(
    made: list[str], rules: list[str], is_said: bool, is_whole: bool
) -> None:
    byte_pairs("m", made, rules, is_whole=is_whole, added=3 if is_whole else 0)
    found = [one for one in cs.inspect("m").notes if "alphabetical" in one]
    assert len(found) == is_said
    name = "tokenizer.json" if is_whole else "vocab.json"
    assert not is_said or found[0].startswith(
        f"the 114 tokens of {name} that merge rules make are in alphabetical order"
    )
    assert not is_said or made != sorted(PAIRS) or SORTED in found[0]


MANY = [f"{one}{two}" for one in LETTERS for two in ALPHABET]
"""1560 tokens that merge rules make."""
AT_RANDOM = "do not follow the order of the rules at all: no training of a tokeniser produces this"


def drawn(made: list[str], seed: int) -> list[str]:
    return random.Random(seed).sample(made, len(made))


def by_frequency() -> list[str]:
    """Return the tokens with ids that follow the order of the rules only roughly, as in RoBERTa."""
    noise = random.Random(4)
    places = {token: row + noise.gauss(0, len(MANY) / 3) for row, token in enumerate(drawn(MANY, 0))}
    return sorted(MANY, key=lambda one: places[one])


CASES: list[tuple[list[str], bool]] = [
    (drawn(MANY, 0), False),
    (by_frequency(), False),
    (drawn(MANY, 1), True),
    (drawn(MANY, 0)[::-1], True),
]
"""Tokens in the order of their ids, and whether a note says that they have been renumbered."""


@pytest.mark.parametrize("is_whole", [True, False])
@pytest.mark.parametrize(("made", "is_said"), CASES)
def test_ids_that_do_not_follow_the_rules_are_said(made: list[str], is_said: bool, is_whole: bool) -> None:
    byte_pairs("m", made, drawn(MANY, 0), is_whole=is_whole)
    name = "tokenizer.json" if is_whole else "vocab.json"
    said = f"the ids in {name} of the tokens that 1560 merge rules make {AT_RANDOM}"
    assert sum(one.startswith(said) for one in cs.inspect("m").notes) == is_said
    assert sum(AT_RANDOM in one for one in cs.inspect("m").notes) == is_said


@pytest.mark.parametrize(
    ("order", "is_said"),
    [("sorted", False), ("drawn", True), ("reversed", True), ("two lists", False), ("equal", False), ("few", False)],
)
def test_ids_of_pieces_that_do_not_follow_the_scores_are_said(order: str, is_said: bool) -> None:
    """A list that was extended by another one has two parts, each by falling score."""
    tokens = ["<pad>", "</s>", "<unk>", *(MANY[:200] if order == "few" else MANY)]
    scores = [0.0] * 3 + [-1 - 0.01 * place for place in range(len(tokens) - 3)]
    if order in ("drawn", "few"):
        scores[3:] = random.Random(0).sample(scores[3:], len(tokens) - 3)
    elif order == "reversed":
        scores[3:] = scores[:2:-1]
    elif order == "two lists":
        half = len(MANY) // 2
        scores[3 + half :] = scores[3 : 3 + half]
    elif order == "equal":
        scores[3:] = [-1.0] * len(MANY)
    model("m", rows=len(tokens), vocab_size=len(tokens), eos_token_id=None, pad_token_id=None)
    Path("m/vocab.json").unlink(), Path("m/generation_config.json").unlink()
    section = {"type": "Unigram", "unk_id": 2, "vocab": [list(one) for one in zip(tokens, scores, strict=True)]}
    Path("m/tokenizer.json").write_text(json.dumps({"added_tokens": [], "model": section}))
    said = "the ids in tokenizer.json of its 1560 pieces have nothing to do with their scores: training numbers"
    assert sum(one.startswith(said) for one in cs.inspect("m").notes) == is_said
    assert sum("their scores" in one for one in cs.inspect("m").notes) == is_said


@pytest.mark.parametrize(("made", "is_said"), CASES)
def test_ids_of_a_gguf_file_that_do_not_follow_the_rules_are_said(made: list[str], is_said: bool) -> None:
    tokens = [*LETTERS, *made, "<|end|>"]
    lists = {"tokens": tokens, "merges": [" ".join(one) for one in drawn(MANY, 0)]}
    raw = {f"tokenizer.ggml.{name}": array(TEXT, [one.encode() for one in row]) for name, row in lists.items()}
    metadata = {**dict.fromkeys(raw, ""), "tokenizer.ggml.model": "gpt2"}
    with patch.object(tokenizer_notes_module, "PROBE", 3000):
        notes = tokenizer_notes(metadata, len(tokens), lambda name, start, size: raw[name][start : start + size])
        assert sum(AT_RANDOM in one for one in notes) == is_said


VISIBLE = [*range(33, 127), *range(161, 173), *range(174, 256)]
HIDDEN = [one for one in range(256) if one not in VISIBLE]
BYTES = {**{one: chr(one) for one in VISIBLE}, **{one: chr(256 + row) for row, one in enumerate(HIDDEN)}}
"""{byte: its letter in byte-level BPE}"""
BY_VALUE = [BYTES[one] for one in range(256)]
BY_POINT = sorted(BY_VALUE)
SHUFFLED = random.Random(5).sample(BY_VALUE, 256)
BYTES_MIXED = "tokens for single bytes are in no known order"
ORDERS: list[tuple[list[str], list[str], int]] = [
    (SHUFFLED, mixed(), 256),
    (SHUFFLED[:80], mixed(), 80),
    (BY_POINT, mixed(), 0),  # as the library tokenizers and GPT-2 number them
    (BY_VALUE, mixed(), 0),  # as in tekken
    ([BYTES[one] for one in (*VISIBLE, *HIDDEN) if one % 3], mixed(), 0),  # some lists lack bytes
    ([*BY_POINT[9:], *BY_POINT[:9]], mixed(), 0),  # some were appended later
    (SHUFFLED, mixed(1), 0),  # by frequency, as in RoBERTa
    (SHUFFLED[:40], mixed(), 0),  # too few
]
"""Tokens for bytes and tokens of merge rules in the order of their ids, and the number of mixed bytes, or 0."""


@pytest.mark.parametrize("is_whole", [True, False])
@pytest.mark.parametrize(("letters", "made", "number"), ORDERS)
def test_bytes_in_no_known_order_are_said(letters: list[str], made: list[str], number: int, is_whole: bool) -> None:
    byte_pairs("m", made, mixed(), is_whole=is_whole, added=3 if is_whole else 0, letters=letters)
    found = [one for one in cs.inspect("m").notes if "in no known order" in one]
    name = "tokenizer.json" if is_whole else "vocab.json"
    assert len(found) == (number > 0) == bool(found and f"the ids in {name} of its {number} {BYTES_MIXED}" in found[0])
    assert not number or found[0].kind.check == "vocabulary"


@pytest.mark.parametrize(("letters", "made", "number"), ORDERS)
def test_bytes_of_a_gguf_file_in_no_known_order_are_said(letters: list[str], made: list[str], number: int) -> None:
    lists = {"tokens": [*letters, *made, "<|end|>"], "merges": [" ".join(one) for one in mixed()]}
    raw = {f"tokenizer.ggml.{name}": array(TEXT, [one.encode() for one in row]) for name, row in lists.items()}
    metadata = {**dict.fromkeys(raw, ""), "tokenizer.ggml.model": "gpt2"}
    notes = tokenizer_notes(metadata, len(lists["tokens"]), lambda name, start, size: raw[name][start : start + size])
    found = [one for one in notes if "in no known order" in one]
    assert len(found) == (number > 0)
    assert not found or f"the ids in tokenizer.ggml.tokens of its {number} {BYTES_MIXED}" in found[0]


@pytest.mark.parametrize("verb", verbs_of(""))
def test_every_verb_says_that_tokens_are_in_alphabetical_order(verb: str) -> None:
    for seed, name in enumerate(("sound", "m")):  # verbs that combine both refuse lists that differ
        byte_pairs(name, sorted(PAIRS), mixed(), seed=seed)
    assert any(SORTED in note for note in verbs_of("m")[verb]().notes)


@pytest.mark.parametrize(
    ("made", "rules", "is_said"),
    [(sorted(PAIRS), mixed(), True), (mixed(), mixed(), False), (sorted(PAIRS), sorted(PAIRS), False)],
)
def test_those_of_a_gguf_file_are_said(made: list[str], rules: list[str], is_said: bool) -> None:
    tokens = [*LETTERS, *made, "<|end|>"]
    lists = {"tokens": tokens, "merges": [" ".join(one) for one in rules]}
    raw = {f"tokenizer.ggml.{name}": array(TEXT, [one.encode() for one in row]) for name, row in lists.items()}
    metadata = {**dict.fromkeys(raw, ""), "tokenizer.ggml.model": "gpt2"}
    sizes = list[tuple[str, int]]()

    def read(name: str, start: int, size: int) -> bytes:
        sizes.append((name, size))
        return raw[name][start : start + size]

    notes = [one for one in tokenizer_notes(metadata, len(tokens), read) if "alphabetical" in one]
    assert len(notes) == is_said
    assert not is_said or notes[0].startswith("the 114 tokens of tokenizer.ggml.tokens that merge rules make are in")
    assert made != mixed() or max(size for _, size in sizes) <= 1 << 16  # most lists are not read as a whole


@pytest.mark.parametrize(
    ("made", "rules", "said"), [(sorted(PAIRS), mixed(), "alphabetical"), (drawn(MANY, 1), drawn(MANY, 0), AT_RANDOM)]
)
def test_the_check_of_the_vocabulary_warns_of_it(made: list[str], rules: list[str], said: str) -> None:
    byte_pairs("m", made, rules)
    (note,) = [one for one in cs.inspect("m").notes if said in one]
    assert (note.kind.check, note.kind.is_serious) == ("vocabulary", False)
