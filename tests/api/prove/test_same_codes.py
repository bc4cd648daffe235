"""Two quantised networks with the same codes: rounding explains no difference, except that of the scales' dtype."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import ckptsurgeon as cs

from ...helpers.coded_matrices import SETTINGS, auto_round, gptq
from ...helpers.coded_models import coded_tensors, write_model

pytest.importorskip("transformers", minversion="5")
Change = Callable[[str, torch.Tensor], torch.Tensor]


def in_order(key: str, one: torch.Tensor) -> torch.Tensor:
    return one.sort().values if key.endswith(".g_idx") else one


def cast(key: str, one: torch.Tensor) -> torch.Tensor:
    return one.bfloat16() if key.endswith(".scales") else one


@pytest.mark.long
@pytest.mark.costly
@pytest.mark.parametrize(("change", "verdict"), [(in_order, "DIFFERENT"), (cast, "EQUIVALENT")])
def test_rounding_explains_no_difference_of_the_same_codes(change: Change, verdict: str) -> None:
    draw = torch.Generator().manual_seed(1)
    state = coded_tensors(gptq, layers=2)
    for key, one in state.items():
        if key.endswith(".g_idx"):
            state[key] = one[torch.randperm(len(one), generator=draw)]
    settings = {**SETTINGS["gptq"], "desc_act": True}
    write_model(Path("a"), state, settings)
    write_model(Path("b"), {key: change(key, one) for key, one in state.items()}, settings)
    assert cs.prove("a", "b").verdict == verdict


def test_other_codes_of_the_same_weights_are_equivalent() -> None:
    for name, encode in (("a", gptq), ("b", auto_round)):
        write_model(Path(name), coded_tensors(encode, layers=2), SETTINGS["gptq"])
    assert cs.prove("a", "b").verdict == "EQUIVALENT"
