"""With weights of 16 bits, a note says up to which rounding the outputs stay equal; they are, by the figure in it."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest
import torch

import ckptsurgeon as cs
from fixtures.resizing.cases import CASES

pytest.importorskip("transformers", minversion="5")
running = importlib.import_module("fixtures.resizing.running")

EXACT, SUMS, WEIGHTS = "", "sums in", "weights to"
OPERATIONS = [
    ("llama", "layers added", EXACT),
    ("llama", "wider", SUMS),
    ("llama", "width added", WEIGHTS),
    ("wav2vec2", "wider", SUMS),
    ("clip", "width added", WEIGHTS),
    ("clip", "copies with noise", WEIGHTS),
]


@pytest.mark.long
@pytest.mark.costly
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize(("kind", "name", "rounded"), OPERATIONS)
def test_outputs_of_16_bits_differ_by_no_more_than_the_note_says(
    kind: str, name: str, rounded: str, dtype: str, tmp_path: Path
) -> None:
    running.save(kind, tmp_path / "full")
    cs.apply(cs.convert(tmp_path / "full", dtype=dtype), tmp_path / "half")
    case = CASES[kind][name]
    plan = cs.resize(tmp_path / "half", set=case.set, **running.options(case, tmp_path / "half"))
    (*_, said) = [one for one in plan.notes if "stay equal" in one]
    figure = re.search(rf" stay equal up to the rounding of {rounded} {dtype} \(a difference of up to (\S+) in", said)
    assert said.endswith("; the outputs stay equal") if not rounded else figure, said
    cs.apply(plan, tmp_path / "out")
    before, after = (running.outputs(tmp_path / one, kind, getattr(torch, dtype)) for one in ("half", "out"))
    assert running.error_of(before.double(), after.double()) <= (float(figure[1]) if figure else 0)


@pytest.mark.costly
@pytest.mark.parametrize(("dtype", "is_rounded"), [("bf16", True), ("float32", False), ("keep", False)])
def test_weights_that_are_cast_are_rounded(dtype: str, is_rounded: bool, tmp_path: Path) -> None:
    running.save("llama", tmp_path / "full")
    case = CASES["llama"]["layers added"]
    plan = cs.resize(tmp_path / "full", set=case.set, dtype=dtype, **case.more)
    (said,) = [one for one in plan.notes if "stay equal" in one]
    assert ("up to the rounding of weights to bfloat16" in said) == is_rounded


@pytest.mark.costly
@pytest.mark.parametrize(("parts", "rounded"), [(2, "sums in bfloat16"), (3, "weights to bfloat16")])
def test_a_factor_that_is_no_power_of_two_rounds_weights(parts: int, rounded: str, tmp_path: Path) -> None:
    running.save("llama", tmp_path / "full")
    cs.apply(cs.convert(tmp_path / "full", dtype="bf16"), tmp_path / "half")
    sizes = {"intermediate_size": 96 // parts, "num_local_experts": 2 * parts, "num_experts_per_tok": parts}
    plan = cs.resize(tmp_path / "half", set=sizes, model_type="mixtral")
    assert any(f"stay equal up to the rounding of {rounded} (" in one for one in plan.notes), plan.notes
