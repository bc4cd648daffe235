"""The note on special tokens that only one of two token lists has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest

from ckptsurgeon.vocabulary.mapping import map_tokens
from ckptsurgeon.vocabulary.replacement import NewVocabulary
from ckptsurgeon.vocabulary.special_tokens import special_tokens_note
from ckptsurgeon.vocabulary.vocabulary import Vocabulary


def told(old: Sequence[str], new: Sequence[str], spelled: Mapping[str, str] | None = None) -> list[str]:
    lists = Vocabulary("old.txt", (*old, "a")), Vocabulary("new.txt", (*new, "a", "b"))
    rows = map_tokens(*lists, spelled=spelled)
    return list(special_tokens_note(rows, NewVocabulary(*lists, ("old.txt", "new.txt"), spelled or {})))


@pytest.mark.parametrize(
    ("old", "new", "note"),
    [
        (
            ["<blk>", "<unk>"],
            ["<blank>", "<unk>"],
            "special tokens: '<blk>' of old.txt is lost, and '<blank>' of new.txt is new; if the two have the same role, "
            "keep the row with --token-map '<blk>=<blank>'",
        ),
        (
            ["<pad>", "<s>", "</s>", "|"],
            ["<blank>", "<sos>", "<eos>", "<space>"],
            "special tokens: '<pad>', '<s>', '</s>', and 1 more of old.txt are lost, and '<blank>', '<sos>', '<eos>', and "
            "1 more of new.txt are new; if two have the same role, keep their rows with --token-map '<pad>=<blank>' "
            "--token-map '<s>=<sos>' --token-map '</s>=<eos>'",
        ),
        (["[UNK]", "<lang>"], [], "special tokens: '[UNK]', '<lang>' of old.txt are lost"),
        (["x"], ["<mask>"], "special tokens: '<mask>' of new.txt is new"),
    ],
)
def test_special_tokens_that_are_lost_or_new_are_named(old: list[str], new: list[str], note: str) -> None:
    assert told(old, new) == [note]


def test_tokens_that_are_kept_or_that_are_no_special_ones_are_not_named() -> None:
    assert told(["<blk>", "<unk>"], ["<blank>", "<unk>"], {"<blk>": "<blank>"}) == []
    assert told(["<0x0A>", "<reserved_3>", "[unused1]", "<"], ["<0x0B>", "[unused2]", "<>"]) == []
