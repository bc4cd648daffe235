"""Folders of DeepSpeed ZeRO whose states do not fit each other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.formats.test_deepspeed_zero import WRONG, changed, zero_folder

from ..promises.clauses import ZERO
from .case import all_named, broken, by_refusal, each
from .holding import held

RULES = {
    broken("zero states"): ("no shapes", "no module", "no buffer names", "no optimizer", "no stage", "no values", "fewer groups"),
    broken("zero shapes"): ("shapes that are none",),
    broken("zero"): ("a larger shape", "a smaller shape", "another group", "values of another type", "paddings that are none"),
    broken("zero frozen"): ("no frozen parameter",),
}  # fmt: skip


def unfit(name: str) -> Callable[[], str]:
    def make() -> str:
        zero_folder("d", 2, 2)
        path, change, _ = WRONG[name]
        changed(path, change)
        return "d"

    return make


CASES = by_refusal(ZERO, RULES, unfit)


@each(CASES)
def test_states_that_do_not_fit_are_refused(case: Any, ckpt: Any) -> None:
    held(case, ckpt)


def test_every_folder_has_a_case() -> None:
    assert all_named(CASES, WRONG)
