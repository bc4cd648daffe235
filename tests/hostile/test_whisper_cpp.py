"""Model files of whisper.cpp that break a rule of the format."""

from __future__ import annotations

from typing import Any

from tests.formats.exported.test_whisper_cpp import HOSTILE

from ..promises.clauses import WHISPER_CPP
from .case import all_named, broken, by_refusal, each, unsafe, written
from .holding import held

RULES = {
    broken("cut short"): ("the magic number alone", "cut in the hyper-parameters", "cut in the mel filters", "cut in front of the tokens", "cut in a token", "cut in the length of a token", "more tokens than bytes", "a token of 2^32 bytes", "mel filters of 2^33 bytes", "cut in a tensor's header", "cut in a tensor's sizes", "cut in a tensor", "a second tensor that is cut"),
    unsafe("counts"): ("2^32 tokens",),
    unsafe("token size"): ("a token of 5,000 bytes",),
    broken("whisper sizes"): ("no n_vocab", "negative heads", "mel filters without columns", "a negative ftype"),
    broken("byte order"): ("big-endian",),
    broken("no state dict"): ("no tensors",),
    broken("dimensions"): ("five dimensions", "minus one dimension"),
    broken("name length"): ("a name of 100,000 bytes", "a name of -1 bytes"),
    broken("name"): ("a name that is not text",),
    broken("duplicate key"): ("a tensor twice",),
    broken("tensor size"): ("a negative size", "sizes whose product overflows", "sizes that overflow beside a 0"),
    broken("tensor type"): ("an unknown type", "a negative type", "a type that was dropped"),
    broken("blocks"): ("a row that is not a whole block",),
    broken("quantisation version"): ("blocks of version 0", "blocks of version 1 that have changed since", "blocks of version 3"),
}  # fmt: skip

CASES = by_refusal(WHISPER_CPP, RULES, lambda name: written("x.bin", HOSTILE[name]))


@each(CASES)
def test_a_broken_file_is_refused(case: Any, ckpt: Any) -> None:
    held(case, ckpt)


def test_every_file_has_a_case() -> None:
    assert all_named(CASES, HOSTILE)
