"""Folders with a file for each rank whose files lie or do not fit each other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import ckptsurgeon as cs
from tests.formats.ranks.test_deepspeed_universal import WRONG as WRONG_UNIVERSAL
from tests.formats.ranks.test_deepspeed_universal import universal
from tests.formats.ranks.test_fsdp_ranks import WRONG, changed
from tests.formats.ranks.test_megatron import WRONG as WRONG_MEGATRON
from tests.formats.ranks.test_megatron import save as save_megatron
from tests.formats.ranks.test_tensor_parallel import WRONG as WRONG_FILES
from tests.formats.ranks.test_tensor_parallel import written as written_files

from ..promises.clauses import RANKS
from .case import Case, all_named, broken, by_refusal, each
from .holding import held

pytestmark = pytest.mark.filterwarnings("ignore")

RULES = {
    broken("rank part"): (
        "a partial sum", "a dimension beyond", "too many placements", "a split factor of another mesh", "a split factor of zero",
        "an order of other cuts",
        "another placement", "a part of another shape", "a part of another dtype", "no part", "a huge mesh",
        "a mesh beyond its ranks", "ranks twice", "ranks that are none", "no ranks", "no mesh", "no specification", "a plain tensor",
    ),
    broken("ranks"): ("ranks of a larger run",),
    broken("rank keys"): ("a tensor less", "a buffer less"),
    broken("rank shapes"): ("another buffer",),
}  # fmt: skip
RULES_OF_FILES = {
    broken("index"): ("an index that is none", "no number of ranks", "too many ranks", "an axis that is none", "an axis beyond"),
    broken("ranks"): ("more ranks", "a file less", "the first file less"),
    broken("rank keys"): ("an axis of no tensor", "a tensor less"),
    broken("rank shapes"): ("another shape", "another dtype"),
}  # fmt: skip
RULES_OF_UNIVERSAL = {
    broken("missing file"): ("a file less",),
    broken("universal"): ("no param", "a param that is none", "a number"),
    broken("zero states"): ("states that are none",),
    broken("zero shapes"): ("shapes that are none",),
}  # fmt: skip


def lying(name: str) -> Callable[[], str]:
    def make() -> str:
        save_file({"even": torch.ones(8, 4), "uneven": torch.ones(5, 6), "buffer": torch.arange(3)}, "w.safetensors")
        cs.apply(cs.convert("w.safetensors"), "d", to="fsdp", ranks=4)
        rank, change, _ = WRONG[name]
        changed(rank, change)
        return "d"

    return make


def unfit(name: str) -> Callable[[], str]:
    def make() -> str:
        written_files(2)
        WRONG_FILES[name][0]()
        return "d"

    return make


def unfinished(name: str) -> Callable[[], str]:
    def make() -> str:
        universal("d")
        WRONG_UNIVERSAL[name][0]()
        return "d"

    return make


def of_megatron(name: str) -> Callable[[], str]:
    def make() -> str:
        save_megatron("d", 2, 1)
        WRONG_MEGATRON[name][0]()
        return "d"

    return make


CASES = by_refusal(RANKS, RULES, lying)
FILES = by_refusal(RANKS, RULES_OF_FILES, unfit)
MEGATRON = [
    Case(f"Megatron: {name}", RANKS, broken(rule), of_megatron(name)) for name, (_, _, rule) in WRONG_MEGATRON.items()
]
UNIVERSAL = by_refusal(RANKS, RULES_OF_UNIVERSAL, unfinished)


@each(CASES)
def test_ranks_that_lie_are_refused(case: Any, ckpt: Any) -> None:
    held(case, ckpt)


@each(FILES)
def test_files_of_tensor_parallelism_that_do_not_fit_are_refused(case: Any, ckpt: Any) -> None:
    held(case, ckpt)


@each(UNIVERSAL)
def test_universal_checkpoints_that_do_not_fit_are_refused(case: Any, ckpt: Any) -> None:
    held(case, ckpt)


@each(MEGATRON)
def test_ranks_of_megatron_that_do_not_fit_are_refused(case: Any, ckpt: Any) -> None:
    held(case, ckpt)


def test_every_lie_has_a_case() -> None:
    assert all_named(CASES, WRONG)
    assert {case.name for case in FILES} | {"a file cut short"} >= set(WRONG_FILES)
    assert {case.name for case in UNIVERSAL} | {"a file cut short"} >= set(WRONG_UNIVERSAL)
