"""Files of PaddlePaddle that break a rule of the format."""

from __future__ import annotations

from typing import Any

from tests.formats.exported.test_paddle import HOSTILE

from ..promises.clauses import PADDLE
from .case import all_named, broken, by_refusal, each, written
from .holding import held

RULES = {
    broken("paddle slices"): ("slices that are a list", "slices that are a number", "no names", "names that are numbers", "a slice that is missing", "a slice that is a number", "a slice that is not flat", "slices of two dtypes", "a slice twice", "a slice of two tensors"),
    broken("duplicate key"): ("a tensor that is there whole",),
    broken("tensor size"): ("too few elements", "sizes whose product overflows"),
    broken("tensor shape"): ("no shape", "a negative size"),
}  # fmt: skip

CASES = by_refusal(PADDLE, RULES, lambda name: written("x.pdparams", HOSTILE[name]))


@each(CASES)
def test_a_broken_file_is_refused(case: Any, ckpt: Any) -> None:
    held(case, ckpt)


def test_every_file_has_a_case() -> None:
    assert all_named(CASES, HOSTILE)
