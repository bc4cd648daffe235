"""msgpack files of Flax that break a rule of the format."""

from __future__ import annotations

from typing import Any

from tests.formats.exported.test_flax import HOSTILE

from ..promises.clauses import FLAX
from .case import all_named, broken, by_refusal, each, unsafe, written
from .holding import held

RULES = {
    broken("cut short"): ("a map alone", "cut in an array", "2^32 entries", "2^32 items", "a text of 2^32 bytes", "an extension of 2^32 bytes", "an empty extension", "a recipe of 2^31 bytes"),
    broken("msgpack end"): ("bytes behind",),
    broken("no state dict"): ("no array",),
    broken("msgpack"): ("a byte that means nothing",),
    broken("msgpack key"): ("a key that is a number",),
    broken("recipe size"): ("a recipe that is a number", "a recipe that is a map"),
    broken("duplicate key"): ("a key twice", "two recipes", "two paths of one key"),
    broken("msgpack text"): ("a key that is no text", "a key of 100,000 bytes"),
    unsafe("tree depth"): ("nested too deeply",),
    broken("msgpack array"): ("an array of two", "an array that is a map", "a shape that is a number", "a dtype that is a number", "data that are a text", "bytes behind an array", "a chunk that is missing", "chunks of two dtypes", "no chunks"),
    broken("tensor shape"): ("a negative size", "a size that is a text", "a size that is true", "100 dimensions", "chunks without a shape"),
    broken("tensor size"): ("2^62 elements", "sizes whose product overflows", "too few bytes", "too many bytes", "chunks with fewer elements"),
}  # fmt: skip

CASES = by_refusal(FLAX, RULES, lambda name: written("x.msgpack", HOSTILE[name]))


@each(CASES)
def test_a_broken_file_is_refused(case: Any, ckpt: Any) -> None:
    held(case, ckpt)


def test_every_file_has_a_case() -> None:
    assert all_named(CASES, HOSTILE)
