"""The samplers, which propose the values of each trial: Sobol, random, grid, and optuna's TPE and CMA-ES."""

from __future__ import annotations

import importlib
import importlib.util
import warnings
from collections.abc import Mapping, Sequence
from itertools import product
from math import prod
from typing import Any, Protocol

from ...errors import ConfigError
from ...planning.search.space import Parameter, SearchSpace, Value

__all__ = ["AUTO", "SAMPLERS", "Sampler", "chosen_sampler", "make_sampler"]

AUTO = "auto"
SAMPLERS = ("cma-es", "tpe", "sobol", "random", "grid")
OPTUNA = ("cma-es", "tpe")
"""The samplers that need the extra ``search``."""
LEAST_DIMENSIONS = 2
"""CMA-ES needs at least this many parameters, because it adapts their covariance."""


class Sampler(Protocol):
    """Proposes the values of trials, and receives their scores; trials are numbered from 1.

    ``most`` is the number of trials after which proposals repeat; None if they never do.
    """

    most: int | None

    def ask(self, trial: int) -> dict[str, Value]:
        """Return {name of a parameter: value} for a trial."""
        ...

    def tell(self, trial: int, score: float | None) -> None:
        """Record the score of a trial whose values this sampler proposed; ``score`` is None if the trial failed."""
        ...

    def remember(self, values: Mapping[str, Value], score: float | None) -> None:
        """Record the score of values that this sampler did not propose."""
        ...


def chosen_sampler(name: str, space: SearchSpace) -> tuple[str, str]:
    """Return the name of the sampler, and a note if ``auto`` lacks optuna; raises ConfigError for an unknown name.

    ``auto`` is CMA-ES if the space has two or more parameters, all of them numbers, and the package cmaes is installed;
    otherwise it is TPE. Without optuna it is Sobol, and the note says why.
    """
    if name != AUTO:
        if name not in SAMPLERS:
            raise ConfigError(f"--sampler {name} is unknown.", hint=f"Use {AUTO}, {', '.join(SAMPLERS)}.")
        return name, ""
    if importlib.util.find_spec("optuna") is None:
        return "sobol", (
            "optuna is not installed, so the sampler is Sobol, which spreads values evenly and does not use the "
            "scores; pip install 'ckptsurgeon[search]' installs it"
        )
    numbers = [one for one in space.parameters if not one.choices]
    fits = len(numbers) == len(space.parameters) >= LEAST_DIMENSIONS
    return ("cma-es" if fits and importlib.util.find_spec("cmaes") is not None else "tpe"), ""


def make_sampler(name: str, space: SearchSpace, *, seed: int, trials: int, maximize: bool) -> Sampler:
    """Return the sampler with this name; raises ConfigError if its package is missing."""
    if name in OPTUNA:
        return _Optuna(name, space, seed, maximize=maximize)
    kind = {"sobol": _Sobol, "random": _Random, "grid": _Grid}[name]
    return kind(space, seed, trials)


class _Spread:
    """The base class of samplers whose proposals depend only on the number of the trial, not on scores."""

    most: int | None = None

    def __init__(self, space: SearchSpace, seed: int, trials: int) -> None:
        self._space, self._seed, self._trials = space, seed, trials

    def shares(self, trial: int) -> Sequence[float]:
        raise NotImplementedError

    def ask(self, trial: int) -> dict[str, Value]:
        shares = self.shares(trial)
        return self._space.at({one.name: share for one, share in zip(self._space.parameters, shares, strict=True)})

    def tell(self, trial: int, score: float | None) -> None:
        pass

    def remember(self, values: Mapping[str, Value], score: float | None) -> None:
        pass


class _Sobol(_Spread):
    """A scrambled Sobol sequence, which fills the space more evenly than random numbers."""

    def shares(self, trial: int) -> Sequence[float]:
        import torch

        kind: Any = torch.quasirandom.SobolEngine
        engine = kind(len(self._space.parameters), scramble=True, seed=self._seed)
        engine.fast_forward(trial - 1)
        found: list[float] = engine.draw(dtype=torch.float64)[0].tolist()
        return found


class _Random(_Spread):
    def shares(self, trial: int) -> Sequence[float]:
        import numpy as np

        found: list[float] = np.random.default_rng([self._seed, trial]).random(len(self._space.parameters)).tolist()
        return found


class _Grid(_Spread):
    """All combinations of the parameters' values; a range gets evenly spaced values, as many as ``trials`` allows."""

    def __init__(self, space: SearchSpace, seed: int, trials: int) -> None:
        super().__init__(space, seed, trials)
        self._points = list(product(*_levels(space.parameters, trials)))
        self.most = len(self._points)

    def ask(self, trial: int) -> dict[str, Value]:
        point = self._points[(trial - 1) % len(self._points)]
        return {one.name: value for one, value in zip(self._space.parameters, point, strict=True)}


def _levels(parameters: Sequence[Parameter], trials: int) -> list[list[Value]]:
    """Return the values of each parameter for a grid of at most ``trials`` points; a range includes both ends.

    Raises ConfigError if even the smallest grid has more points.
    """

    def of(number: int) -> list[list[Value]]:
        return [list(dict.fromkeys(one.choices or _evenly(one, number))) for one in parameters]

    found = of(2)
    if prod(map(len, found)) > trials:
        raise ConfigError(
            f"--sampler grid needs at least {prod(map(len, found))} trials for these parameters, not {trials}.",
            hint="Give more --trials, or use another sampler.",
        )
    number = 3
    while prod(map(len, finer := of(number))) <= trials and number <= trials:
        found, number = finer, number + 1
    return found


def _evenly(one: Parameter, number: int) -> list[Value]:
    return [one.at(place / (number - 1)) for place in range(number)]


class _Optuna:
    """A sampler of optuna; its state is only in memory, so a resumed study passes the earlier trials to it again."""

    most: int | None = None

    def __init__(self, name: str, space: SearchSpace, seed: int, *, maximize: bool) -> None:
        self._optuna = optuna = _package("optuna")
        if name == "cma-es":
            _package("cmaes")
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # warnings about experimental arguments
            kind = optuna.samplers.CmaEsSampler if name == "cma-es" else optuna.samplers.TPESampler
            self._study = optuna.create_study(direction="maximize" if maximize else "minimize", sampler=kind(seed=seed))
        self._space = space
        self._distributions = {one.name: self._distribution(one) for one in space.parameters}
        self._asked: dict[int, Any] = {}

    def ask(self, trial: int) -> dict[str, Value]:
        self._asked[trial] = self._study.ask(self._distributions)
        found = self._asked[trial].params
        return {one.name: one.plain(found[one.name]) for one in self._space.parameters}

    def tell(self, trial: int, score: float | None) -> None:
        asked = self._asked.pop(trial)
        if score is None:
            self._study.tell(asked, state=self._optuna.trial.TrialState.FAIL)
        else:
            self._study.tell(asked, score)

    def remember(self, values: Mapping[str, Value], score: float | None) -> None:
        state = self._optuna.trial.TrialState
        self._study.add_trial(
            self._optuna.trial.create_trial(
                params=dict(values), distributions=self._distributions, value=score,
                state=state.FAIL if score is None else state.COMPLETE,
            )
        )  # fmt: skip

    def _distribution(self, one: Parameter) -> Any:
        kinds = self._optuna.distributions
        if one.choices:
            return kinds.CategoricalDistribution(list(one.choices))
        if one.whole:
            return kinds.IntDistribution(int(one.low), int(one.high))
        return kinds.FloatDistribution(one.low, one.high, log=one.log)


def _package(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ConfigError(
            f"the samplers tpe and cma-es need the package {name}, which cannot be imported: {error}.",
            hint="Run pip install 'ckptsurgeon[search]', or use --sampler sobol.",
        ) from error
