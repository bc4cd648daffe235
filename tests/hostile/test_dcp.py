"""Folders of torch.distributed.checkpoint whose metadata lies."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.formats.test_torch_dcp import WRONG, edited, save

from ..promises.clauses import DCP
from .case import all_named, broken, by_refusal, each, unsafe
from .holding import held

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is ")

RULES = {
    broken("missing file"): ("a file that is not there",),
    broken("outside"): ("a file outside",),
    broken("slice"): ("a piece beyond the file", "a piece before the file"),
    unsafe("pieces"): ("a piece in the middle", "pieces that overlap"),
    broken("dcp metadata"): ("no place", "no places", "no tensors", "pieces that are none", "a chunk again and again", "a file by another way", "two entries of one name"),
    broken("piece"): ("another dtype", "another shape"),
    broken("pieces"): ("a hole", "no piece", "more dimensions"),
    broken("tensor size"): ("a size that is none",),
    broken("tensor dtype"): ("a dtype that is none",),
}  # fmt: skip


def lying(name: str) -> Callable[[], str]:
    def make() -> str:
        save({"w": torch.ones(2), "v": torch.ones(3)})
        edited(WRONG[name][0])
        return "d"

    return make


CASES = by_refusal(DCP, RULES, lying)


@each(CASES)
def test_a_folder_that_lies_is_refused(case: Any, ckpt: Any) -> None:
    held(case, ckpt)


def test_every_lie_has_a_case() -> None:
    assert all_named(CASES, WRONG)
