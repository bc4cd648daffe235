"""The samplers of optuna itself: they find the minimum of a bowl, follow the scores, and go on after an interruption."""

from __future__ import annotations

from typing import Any

import pytest

from ckptsurgeon.api.search.samplers import chosen_sampler, make_sampler
from ckptsurgeon.api.search.study import Study
from ckptsurgeon.api.search.trials import Proposals
from ckptsurgeon.planning.search.space import Parameter, SearchSpace

pytest.importorskip("optuna")
pytest.importorskip("cmaes")

# Optuna marks arguments that it may change, and warns if CMA-ES draws a parameter independently.
pytestmark = pytest.mark.filterwarnings("ignore:.*xperimental", "ignore:.*independent")

BOWL = SearchSpace((Parameter("x", 0, 1), Parameter("y", 0.01, 10, log=True)), None)
MIXED = SearchSpace((*BOWL.parameters, Parameter("k", 1, 5, whole=True), Parameter("m", choices=("ties", "sce"))), None)


def score(values: Any) -> float:
    """The squared distance to x = 0.3, y = 1 (halfway along the logarithm: 0.67), and 1 for the wrong choice."""
    from math import log10

    away = (float(values["x"]) - 0.3) ** 2 + (log10(float(values["y"])) / 3) ** 2
    return away + (values.get("m", "ties") != "ties")


def searched(name: str, space: SearchSpace, trials: int, *, sign: int = 1, seed: int = 0) -> list[dict[str, Any]]:
    sampler = make_sampler(name, space, seed=seed, trials=trials, maximize=sign < 0)
    found = []
    for trial in range(1, trials + 1):
        values = sampler.ask(trial)
        assert all(one.holds(values[one.name]) for one in space.parameters), values
        sampler.tell(trial, None if trial == 3 else sign * score(values))
        found.append(values)
    return found


@pytest.mark.long
@pytest.mark.costly
@pytest.mark.parametrize(("name", "space"), [("cma-es", BOWL), ("tpe", BOWL), ("tpe", MIXED)])
@pytest.mark.parametrize("sign", [1, -1])
def test_later_trials_are_nearer_to_the_optimum(name: str, space: SearchSpace, sign: int) -> None:
    scores = [score(one) for one in searched(name, space, 60, sign=sign)]
    assert sum(scores[-20:]) < 0.5 * sum(scores[:20])
    assert min(scores) < 0.01


@pytest.mark.parametrize("name", ["cma-es", "tpe"])
def test_a_seed_repeats_the_proposals(name: str) -> None:
    assert searched(name, BOWL, 12) == searched(name, BOWL, 12)
    assert searched(name, BOWL, 3) != searched(name, BOWL, 3, seed=1)


def study_of(name: str, trials: int, ended: int) -> Study:
    study = Study("folder", {"maximize": False})
    study._write = lambda trial: None  # type: ignore[method-assign]
    proposals = Proposals(lambda: make_sampler(name, BOWL, seed=0, trials=20, maximize=False), study)
    for number in range(1, trials + 1):
        trial = proposals.begun(number)
        if number <= ended:
            trial.score = score(trial.values)
            proposals.ended(trial)
    return study


@pytest.mark.costly
@pytest.mark.parametrize("name", ["cma-es", "tpe"])
def test_an_interrupted_search_goes_on_as_it_would_have(name: str) -> None:
    whole = study_of(name, 20, 20)
    cut = study_of(name, 9, 8)
    again = Proposals(lambda: make_sampler(name, BOWL, seed=0, trials=20, maximize=False), cut)
    assert again.note == ""
    for number in range(9, 21):
        trial = again.begun(number)
        assert trial.values == whole.trials[number].values, number
        trial.score = score(trial.values)
        again.ended(trial)


@pytest.mark.parametrize("name", ["cma-es", "tpe"])
def test_scores_of_another_sampler_are_remembered(name: str) -> None:
    sampler = make_sampler(name, BOWL, seed=0, trials=20, maximize=False)
    for x in (0.1, 0.3, 0.9):
        sampler.remember({"x": x, "y": 1.0}, score({"x": x, "y": 1.0}))
    sampler.remember({"x": 0.5, "y": 1.0}, None)
    sampler.tell(1, score(sampler.ask(1)))


def test_auto_chooses_cma_es_for_numbers_and_tpe_for_choices() -> None:
    assert chosen_sampler("auto", BOWL) == ("cma-es", "")
    assert chosen_sampler("auto", MIXED) == ("tpe", "")
