"""Pickles of arrays that break a rule of the format."""

from __future__ import annotations

from typing import Any

import pytest

from tests.formats.exported.test_pickled_arrays import HOSTILE

from ..promises.clauses import PICKLED
from .case import all_named, broken, by_refusal, each, unsafe, written
from .holding import divide, held

RULES = {
    broken("no state dict"): ("no array", "an array of strings alone", "a joblib file"),
    unsafe("out-of-band buffers"): ("buffers out of band",),
    broken("pickle"): ("cut in an array", "cut behind an array", "cut in a name", "a string of 2^62 bytes", "a string longer than its frame", "a frame beyond the end", "a frame in a frame", "a stop in a frame", "an unknown opcode", "protocol 6", "an endless line"),
    broken("persistent id"): ("a persistent id", "a persistent id as text"),
    broken("numpy"): ("too few bytes", "too many bytes", "too few bytes of text", "too many bytes of text", "a state of three"),
    broken("tensor size"): ("a negative size", "2^70 elements", "sizes whose product overflows", "100 dimensions"),
    broken("duplicate key"): ("two paths of one key",),
    unsafe("tree size"): ("nested too deeply", "dicts that are shared at 40 levels"),
}  # fmt: skip

CASES = by_refusal(PICKLED, RULES, lambda name: written("x.pkl", HOSTILE[name]))


@each(CASES, costly=["dicts that are shared at 40 levels"])
def test_a_broken_pickle_is_refused(case: Any, ckpt: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    divide(["TREE_NODES"], 4, monkeypatch)
    held(case, ckpt, share=4)


def test_every_pickle_has_a_case() -> None:
    assert all_named(CASES, HOSTILE)
