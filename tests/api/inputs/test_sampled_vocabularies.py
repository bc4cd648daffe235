"""Verbs that copy codes look at the scales of embeddings and output layers too, which have no siblings in other layers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ckptsurgeon.tensors.odd_scales.kinds import NARROW, OPPOSED, SAID
from ckptsurgeon.tensors.odd_scales.shifted import UNCENTRED, WRONG_OFFSETS, uncentred_names

from ...helpers.coded_matrices import SETTINGS, Encode, mlx, old_mlx
from ...helpers.coded_models import QUICK, TABLES, coded_tensors, said_by, silent, write_model

Change = Callable[[torch.Tensor], torch.Tensor]
CASES: tuple[tuple[Encode, str, Change, str], ...] = (
    (mlx, ".biases", torch.neg, SAID[OPPOSED]),
    (mlx, ".scales", lambda one: one / 17, SAID[NARROW]),
    (old_mlx, ".biases", torch.neg, WRONG_OFFSETS),
)


@pytest.mark.costly
@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize(("encode", "end", "change", "said"), CASES)
def test_wrong_scales_or_biases_of_a_table_are_said(
    encode: Encode, end: str, change: Change, said: str, name: str
) -> None:
    """Every verb says it of each case, of one of the tables; those that look at most say it of both."""
    state = coded_tensors(encode, layers=4, tables=TABLES)
    assert said_by(write_model(Path("m"), state, SETTINGS["mlx"]), said) == []
    state[f"{name}{end}"] = change(state[f"{name}{end}"])
    path = write_model(Path("m"), state, SETTINGS["mlx"])
    if (TABLES.index(name) + CASES.index((encode, end, change, said))) % 2 == 0:
        assert silent(path, said, f"{name}.weight") == []
    else:
        assert said_by(path, said, f"{name}.weight") == [*QUICK]


def test_a_matrix_without_siblings_is_compared_with_many_others() -> None:
    every = [f"layers.{number}.up" for number in range(8)]
    assert uncentred_names({UNCENTRED: ["lm_head"]}, [*every, "lm_head"]) == {"lm_head"}
    assert not uncentred_names({UNCENTRED: ["lm_head"]}, [*every[1:], "lm_head"])
