"""GGUF files that break a rule of the format."""

from __future__ import annotations

from typing import Any

from tests.formats.test_gguf import HOSTILE

from ..promises.clauses import GGUF
from .case import all_named, broken, by_refusal, each, unsafe, written
from .holding import held

RULES = {
    broken("gguf version"): ("version 1", "version 4", "version 0", "big-endian"),
    broken("cut short"): ("magic alone", "no counts", "cut in the metadata", "cut in a tensor's header", "cut in the tensors", "more tensors than bytes", "a name of 2^60 bytes", "a key of 2^60 bytes", "a text of 2^60 bytes", "an array of 2^60 numbers", "an array whose size overflows", "a text in an array of 2^60 bytes", "an offset of 2^63"),
    unsafe("counts"): ("2^60 tensors", "2^60 entries"),
    unsafe("metadata size"): ("an array of 2^60 texts",),
    broken("metadata type"): ("an array of arrays", "an array of an unknown type", "an entry of an unknown type", "a bool of 2"),
    broken("duplicate key"): ("an entry twice", "a tensor twice"),
    broken("name"): ("a name that is not text",),
    broken("name length"): ("a name of 100,000 bytes",),
    broken("dimensions"): ("five dimensions", "2^31 dimensions"),
    broken("tensor size"): ("2^60 elements", "sizes whose product overflows", "sizes that overflow in front of a 0"),
    broken("blocks"): ("a row that is not a whole block", "blocks without dimensions"),
    broken("tensor type"): ("an unknown type", "a type that was dropped"),
    broken("aligned"): ("an offset that is not aligned",),
    broken("overlap"): ("tensors that overlap", "tensors at one place"),
    broken("alignment"): ("an alignment of 0", "an alignment of 24", "an alignment that is a text"),
    broken("split"): ("one of three files",),
}  # fmt: skip

CASES = by_refusal(GGUF, RULES, lambda name: written("x.gguf", HOSTILE[name]))


@each(CASES)
def test_a_broken_file_is_refused(case: Any, ckpt: Any) -> None:
    held(case, ckpt)


def test_every_file_has_a_case() -> None:
    assert all_named(CASES, HOSTILE)
