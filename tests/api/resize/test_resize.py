"""Every network is resized in every way that makes sense, opened by transformers, and run beside its source."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch

import ckptsurgeon as cs
from fixtures.resizing.cases import CASES, CHANGED, EQUAL, TYPES, Case
from fixtures.resizing.figures import FIGURES, name_of

from ...helpers.depth import FULL, shared_out

transformers = pytest.importorskip("transformers", minversion="5")
running = importlib.import_module("fixtures.resizing.running")
outputs = running.outputs


def definition(pair: tuple[str, str]) -> str:
    """Return what is done: a dozen architectures are often resized in one way by the same fields, with the same result."""
    kind, name = pair
    case = CASES[kind][name]
    return f"{name} {sorted(case.set.items())} {sorted(case.more.items())} {case.expected}"


ALL = shared_out([(kind, name) for kind, cases in CASES.items() for name in cases], definition, share=8)
VERIFIED = {name: kind for kind, name in reversed(ALL)}
"""One network of each way: what verify builds of an output is what transformers opens, in all cases."""


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function that returns the folder of a network with random weights."""
    folder = tmp_path_factory.mktemp("networks")

    @cache
    def saved(kind: str) -> Path:
        running.save(kind, folder / kind)
        return folder / kind

    return saved


@pytest.mark.costly
@pytest.mark.parametrize(("kind", "name"), ALL)
def test_a_network_of_another_size_loads_and_computes_as_it_is_said(
    kind: str, name: str, source: Callable[[str], Path], tmp_path: Path
) -> None:
    check(kind, name, source(kind), tmp_path / "out")


def test_every_approximate_change_has_a_figure() -> None:
    wanted = {
        (kind, name)
        for kind, cases in {**CASES, **{name_of(*pair): cases for pair, cases in TYPES.items()}}.items()
        for name, case in cases.items()
        if case.expected == CHANGED
    }
    assert {(kind, name) for kind, figures in FIGURES.items() for name in figures} == wanted


@pytest.mark.costly
@pytest.mark.skipif(FULL, reason="each way of each network is a case of its own above")
@pytest.mark.parametrize("kind", ["llama", "whisper"])
def test_a_network_is_resized_in_every_way(kind: str, source: Callable[[str], Path], tmp_path: Path) -> None:
    """Whisper in those that Llama is not resized in, and in each second of the others."""
    for number, name in enumerate(CASES[kind]):
        if kind == "llama" or name not in CASES["llama"] or number % 2:
            check(kind, name, source(kind), tmp_path / name)


@pytest.mark.costly
@pytest.mark.parametrize("kind", ["gpt2", "bert", "whisper", "t5"])
def test_a_width_is_not_changed_while_the_output_layer_is_tied(kind: str, source: Callable[[str], Path]) -> None:
    fields = {name: value for name, value in CASES[kind]["wider"].set.items() if name != "tie_word_embeddings"}
    with pytest.raises(cs.PlanError, match="is tied to") as error:
        cs.resize(source(kind), set=fields)
    assert ("This network always ties the two." if kind == "t5" else "tie_word_embeddings=false") in str(
        error.value.hint
    )


@cache
def outputs_of_source(folder: Path, kind: str) -> torch.Tensor:
    """Return what a network computes whose folder all tests of this module use."""
    return outputs(folder, kind)


def check(kind: str, name: str, folder: Path, output: Path) -> None:
    case = CASES[kind][name]
    if case.expected not in (EQUAL, CHANGED):
        with pytest.raises((cs.PlanError, cs.ConfigError), match=case.expected):
            cs.resize(folder, set=case.set, **running.options(case, folder))
        return
    plan = cs.resize(folder, set=case.set, **running.options(case, folder))
    said = "the outputs stay equal" if case.expected == EQUAL else "the outputs change"
    assert any(note.endswith(said) for note in plan.notes), plan.notes
    assert not [key for _, key in plan.unexpected if "resized" in key]
    cs.apply(plan, output)
    if not FULL or VERIFIED[name] == kind:
        assert not cs.verify(output).failed
    compare(outputs_of_source(folder, kind), outputs(output, kind), case, FIGURES.get(kind, {}).get(name))


def compare(before: torch.Tensor, after: torch.Tensor, case: Case, figure: float | None) -> None:
    """See that outputs are equal, or that they change by what the page of results says."""
    difference = ((before - after).abs().max() / before.abs().max()).item()
    assert (difference < 1e-5) == (case.expected == EQUAL), difference
    if case.expected == CHANGED:
        assert figure == pytest.approx(running.error_of(before, after), rel=0.02)
