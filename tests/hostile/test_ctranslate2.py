"""Files of CTranslate2 that break a rule of the format."""

from __future__ import annotations

from typing import Any

from tests.formats.exported.test_ctranslate2 import HOSTILE

from ..promises.clauses import CTRANSLATE2
from .case import all_named, broken, by_refusal, each, unsafe, written
from .holding import held

RULES = {
    broken("ctranslate2 version"): ("version 2", "version 3", "version 7"),
    broken("cut short"): ("a name alone", "no number of variables", "cut in a name", "cut in the sizes", "cut in the values", "cut in the aliases", "no aliases", "more variables than bytes", "more aliases than bytes"),
    unsafe("counts"): ("2^32 variables", "2^32 aliases"),
    broken("duplicate key"): ("a variable twice",),
    broken("name"): ("a name of no bytes", "a name of a zero", "a name without a zero", "a name with two zeros", "a name that is not text"),
    unsafe("key length"): ("a name of 60,000 bytes",),
    broken("dimensions"): ("65 dimensions",),
    broken("tensor size"): ("2^64 elements", "sizes that overflow in front of a 0", "too few bytes", "too many bytes", "a setting of 5 bytes"),
    broken("tensor type"): ("an unknown type",),
    broken("alias"): ("an alias of no variable", "an alias of an alias", "an alias of itself", "an alias of a setting", "an alias twice", "an alias that is a setting", "an alias that is the scale of another"),
    broken("ctranslate2 end"): ("bytes behind",),
}  # fmt: skip

CASES = by_refusal(CTRANSLATE2, RULES, lambda name: written("x.bin", HOSTILE[name]))


@each(CASES)
def test_a_broken_file_is_refused(case: Any, ckpt: Any) -> None:
    held(case, ckpt)


def test_every_file_has_a_case() -> None:
    assert all_named(CASES, HOSTILE)
