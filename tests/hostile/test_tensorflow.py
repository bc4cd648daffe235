"""TensorFlow's indexes that break a rule of LevelDB's tables or of the bundle."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.formats.test_tensorflow_broken import BROKEN

from ..promises.clauses import TENSORFLOW
from .case import all_named, broken, by_refusal, each, unsafe
from .holding import held

RULES = {
    broken("bundle header"): ("a header that is not there", "an empty table"),
    broken("protobuf"): ("no message", "a number without end", "a field that is cut short", "a shape below zero", "an offset below zero", "a hundred dimensions"),
    broken("shards"): ("no data files", "a billion data files"),
    broken("bundle version"): ("a later version",),
    broken("tensor size"): ("bytes that do not fit the shape", "a shape beyond int64"),
    broken("cut short"): ("an offset beyond the end",),
    broken("shard"): ("another data file",),
    unsafe("overlap"): ("tensors that overlap",),
    broken("slice"): ("a slice that is not there",),
    broken("keys"): ("names that are one key",),
    broken("name"): ("a name that is not text",),
    broken("table"): ("keys out of order", "a key twice", "an index that contradicts its block", "a restart point outside", "a restart point within an entry", "restart points without end", "a shared prefix of nothing", "a value beyond the block", "another compression", "a block that is itself the index", "a block beyond the end", "one block many times", "an empty block", "a block of no entries"),
}  # fmt: skip


def bundle(name: str) -> Callable[[], str]:
    def make() -> str:
        Path("x.index").write_bytes(BROKEN[name][0])
        Path("x.data-00000-of-00001").write_bytes(bytes(16))
        return "x"

    return make


CASES = by_refusal(TENSORFLOW, RULES, bundle)


@each(CASES)
def test_a_broken_index_is_refused(case: Any, ckpt: Any) -> None:
    held(case, ckpt)


def test_every_index_has_a_case() -> None:
    assert all_named(CASES, BROKEN)
