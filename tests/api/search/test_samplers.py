"""The samplers: each proposes values of the space, and goes on after an interruption as it would have without one."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from ckptsurgeon.api.search import samplers
from ckptsurgeon.api.search.samplers import Sampler, chosen_sampler, make_sampler
from ckptsurgeon.api.search.study import Study
from ckptsurgeon.api.search.trials import Proposals
from ckptsurgeon.errors import ConfigError
from ckptsurgeon.planning.search.space import Parameter, SearchSpace

SPACE = SearchSpace(
    (
        Parameter("w", 0, 1),
        Parameter("log", 0.001, 10, log=True),
        Parameter("k", 1, 5, whole=True),
        Parameter("m", choices=("ties", "linear")),
    ),
    None,
)
NUMBERS = SearchSpace(SPACE.parameters[:2], None)


def made(name: str, space: SearchSpace = SPACE, *, seed: int = 0, trials: int = 40) -> Sampler:
    return make_sampler(name, space, seed=seed, trials=trials, maximize=True)


@pytest.mark.parametrize("name", ["sobol", "random", "grid"])
def test_every_proposal_is_in_the_space_and_the_same_again(name: str) -> None:
    first, again = made(name), made(name)
    for trial in range(1, 41):
        values = first.ask(trial)
        assert values == again.ask(trial)
        assert all(one.holds(values[one.name]) for one in SPACE.parameters), values


@pytest.mark.parametrize("name", ["sobol", "random"])
def test_another_seed_proposes_others_and_numbers_are_spread(name: str) -> None:
    assert made(name).ask(1) != made(name, seed=1).ask(1)
    points = [made(name).ask(trial)["w"] for trial in range(1, 33)]
    assert len({int(float(point) * 4) for point in points}) == 4


def test_sobol_has_one_point_in_each_part_of_each_range() -> None:
    points = [made("sobol", NUMBERS).ask(trial)["w"] for trial in range(1, 33)]
    assert sorted(int(float(point) * 32) for point in points) == list(range(32))


def test_a_grid_has_both_ends_and_as_many_values_as_fit() -> None:
    space = SearchSpace((Parameter("a", 0, 1), Parameter("b", 0, 1)), None)
    grid = made("grid", space, trials=10)
    assert grid.most == 9
    assert {tuple(grid.ask(trial).values()) for trial in range(1, 10)} == {
        (a, b) for a in (0.0, 0.5, 1.0) for b in (0.0, 0.5, 1.0)
    }
    choices = SearchSpace((Parameter("m", choices=("x", "y", "z")),), None)
    assert made("grid", choices, trials=50).most == 3


def test_auto_is_sobol_without_optuna_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    there = set[str]()
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec",
        lambda name: (object() if name in there else None) if name in ("optuna", "cmaes") else find(name),
    )  # fmt: skip
    name, note = chosen_sampler("auto", SPACE)
    assert name == "sobol"
    assert "pip install 'ckptsurgeon[search]'" in note
    there.add("optuna")
    assert chosen_sampler("auto", NUMBERS) == ("tpe", "")
    there.add("cmaes")
    assert chosen_sampler("auto", NUMBERS) == ("cma-es", "")
    assert chosen_sampler("auto", SPACE) == ("tpe", "")  # choices
    assert chosen_sampler("auto", SearchSpace(SPACE.parameters[:1], None)) == ("tpe", "")  # one dimension
    assert chosen_sampler("random", SPACE) == ("random", "")
    with pytest.raises(ConfigError, match='sampler="cmaes" is unknown'):
        chosen_sampler("cmaes", SPACE)


@pytest.mark.parametrize(("name", "package"), [("tpe", "optuna"), ("cma-es", "optuna"), ("cma-es", "cmaes")])
def test_a_missing_package_is_an_error_that_names_the_extra(
    name: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_optuna(monkeypatch)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError) as error:
        made(name, NUMBERS)
    assert f"need the package {package}" in error.value.message
    assert "pip install 'ckptsurgeon[search]'" in error.value.hint


class FakeStudy:
    """As optuna's study: it proposes the middle of what it was told to be good, and takes only what it asked."""

    def __init__(self, direction: str, sampler: Any) -> None:
        self.direction, self.sampler = direction, sampler
        self.told: list[tuple[Mapping[str, Any], Any]] = []

    def ask(self, distributions: Mapping[str, Any]) -> Any:
        share = 1 / (2 + self.sampler.seed + len(self.told))
        return SimpleNamespace(params={name: one(share) for name, one in distributions.items()})

    def tell(self, trial: Any, value: Any = None, state: Any = None) -> None:
        assert (value is None) != (state is None)
        self.told.append((trial.params, state or value))

    def add_trial(self, trial: Mapping[str, Any]) -> None:
        self.told.append((trial["params"], trial["state"] if trial["value"] is None else trial["value"]))


def fake_optuna(monkeypatch: pytest.MonkeyPatch) -> list[FakeStudy]:
    """Put modules in the place of optuna and cmaes that have what we call; returns the studies that are created."""
    created: list[FakeStudy] = []

    def create(*, direction: str, sampler: Any) -> FakeStudy:
        created.append(FakeStudy(direction, sampler))
        return created[-1]

    def ranged(low: float, high: float, log: bool = False) -> Callable[[float], float]:
        return lambda share: low + share * (high - low)

    def whole(low: int, high: int) -> Callable[[float], int]:
        return lambda share: round(low + share * (high - low))

    def one_of(choices: Sequence[Any]) -> Callable[[float], Any]:
        return lambda share: choices[0]

    optuna = SimpleNamespace(
        logging=SimpleNamespace(WARNING=30, set_verbosity=lambda level: None),
        samplers=SimpleNamespace(TPESampler=sampler_kind("tpe"), CmaEsSampler=sampler_kind("cma-es")),
        distributions=SimpleNamespace(
            FloatDistribution=ranged, IntDistribution=whole, CategoricalDistribution=one_of
        ),
        trial=SimpleNamespace(TrialState=SimpleNamespace(FAIL="fail", COMPLETE="complete"), create_trial=dict),
        create_study=create,
    )  # fmt: skip
    monkeypatch.setitem(sys.modules, "optuna", optuna)
    monkeypatch.setitem(sys.modules, "cmaes", SimpleNamespace())
    return created


def sampler_kind(name: str) -> Callable[..., Any]:
    return lambda seed: SimpleNamespace(seed=seed, name=name)


@pytest.mark.parametrize("name", ["tpe", "cma-es"])
def test_optuna_is_asked_and_told(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    created = fake_optuna(monkeypatch)
    sampler = made(name, seed=3)
    (study,) = created
    assert (study.direction, study.sampler.name, study.sampler.seed) == ("maximize", name, 3)
    values = sampler.ask(1)
    assert all(one.holds(values[one.name]) for one in SPACE.parameters)
    assert {key: type(value) for key, value in values.items()} == {"w": float, "log": float, "k": int, "m": str}
    other = sampler.ask(2)
    sampler.tell(2, None)
    sampler.tell(1, 0.5)
    sampler.remember(values, 0.25)
    assert [score for _, score in study.told] == ["fail", 0.5, 0.25]
    assert other
    assert make_sampler(name, SPACE, seed=0, trials=1, maximize=False)
    assert created[-1].direction == "minimize"


def studied(trials: int) -> Study:
    """A study in memory, whose trials were run one by one; the last one has no end."""
    study = Study("folder", {"maximize": True})
    study._write = lambda trial: None  # type: ignore[method-assign]
    proposals = Proposals(lambda: made("tpe"), study)
    for number in range(1, trials + 1):
        trial = proposals.begun(number)
        if number < trials:
            trial.score = float(trial.values["w"])
            proposals.ended(trial)
    return study


def test_an_interrupted_sampler_is_told_again_what_it_proposed(monkeypatch: pytest.MonkeyPatch) -> None:
    created = fake_optuna(monkeypatch)
    study = studied(4)
    told = list(created[-1].told)
    again = Proposals(lambda: made("tpe"), study)
    assert again.note == ""
    assert created[-1].told == told
    resumed = again.begun(4)
    assert resumed is study.trials[4]
    resumed.score = 1.0
    again.ended(resumed)
    assert created[-1].told[3][1] == 1.0


def test_a_sampler_that_proposes_others_now_is_given_the_results(monkeypatch: pytest.MonkeyPatch) -> None:
    created = fake_optuna(monkeypatch)
    study = studied(4)
    changed = Proposals(lambda: made("tpe", seed=7), study)
    assert "does not repeat the earlier trials" in changed.note
    assert [score for _, score in created[-1].told] == [study.trials[number].score for number in (1, 2, 3)]
    resumed = changed.begun(4)
    resumed.score = 0.5
    changed.ended(resumed)  # which it was never asked for
    assert created[-1].told[3] == (resumed.values, 0.5)


def test_the_list_of_samplers_is_complete() -> None:
    assert {*samplers.SAMPLERS} == {"cma-es", "tpe", "sobol", "random", "grid"}
