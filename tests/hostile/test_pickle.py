"""Pickles that no pickler wrote, in a zip and in a legacy file."""

from __future__ import annotations

from typing import Any

from tests.formats.pickle.test_machine import MALFORMED

from ..promises.clauses import PICKLE
from .bombs import zipped
from .case import all_named, broken, by_refusal, each, unsafe, written
from .holding import held

RULES = {
    broken("pickle"): ("empty", "no stop", "unknown opcode", "future protocol", "stack underflow", "pop from nothing", "memo never made", "text memo never made", "mark never opened", "stop inside a mark", "short text", "short bytes", "false length of 2**63", "false length of 2**40", "negative long", "negative string", "huge frame", "bad utf-8", "bad int", "long int", "bad float", "string without quotes", "key without value", "append to a number", "setitem on a list", "global without text", "line without end", "no persistent line"),
    unsafe("out-of-band buffers"): ("buffer",),
    unsafe("pickle depth"): ("deep",),
    unsafe("integer size"): ("too large an integer",),
}  # fmt: skip

ZIPPED = by_refusal(PICKLE, RULES, lambda name: written("x.pth", zipped(MALFORMED[name])))


@each(ZIPPED)
def test_a_malformed_pickle_in_an_archive_is_refused(case: Any, ckpt: Any) -> None:
    held(case, ckpt)


def test_every_stream_has_a_case() -> None:
    assert all_named(ZIPPED, MALFORMED)
