"""Runs the trials of a study: each model is merged, evaluated and recorded; evaluations run in parallel."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from ...errors import ConfigError, PlanError
from ...planning.plan.plan import Plan
from ...planning.search.result import BEGUN, Trial
from ..apply import apply
from ..inputs.inputs import close_plan
from .evaluator import Evaluator, Outcome
from .reuse import MadeModel, equal_steps, with_copies
from .samplers import Sampler
from .study import Study

__all__ = ["Proposals", "TrialRun", "Trials"]

Observer = Callable[[Trial], None]
"""A function that is called with each trial that has ended."""


class Proposals:
    """The proposals of a sampler for a study, which may have been interrupted.

    For a resumed study, the sampler proposes the earlier trials again, and receives their scores in the order of the
    JSON lines. If it proposes other values than before (another version of its library may do this), it receives all
    earlier values and scores instead, and ``note`` says this.
    """

    def __init__(self, make: Callable[[], Sampler], study: Study) -> None:
        self.sampler = make()
        self._study, self._asked = study, set[int]()
        self.note = ""
        if not self._is_replayed():
            self.sampler, self._asked = make(), set()
            for one in study.trials.values():
                if one.state != BEGUN:
                    self.sampler.remember(one.values, one.score)
            self.note = (
                "with these versions of the libraries, the sampler does not repeat the earlier trials of this study; "
                "it continues from their results"
            )

    def _is_replayed(self) -> bool:
        for number, is_end in self._study.events:
            one = self._study.trials[number]
            if is_end:
                self._told(one)
            elif self._ask(number) != one.values:
                return False
        return True

    def _ask(self, number: int) -> dict[str, Any]:
        self._asked.add(number)
        return self.sampler.ask(number)

    def _told(self, trial: Trial) -> None:
        if trial.number in self._asked:
            self.sampler.tell(trial.number, trial.score)
            self._asked.discard(trial.number)
        else:
            self.sampler.remember(trial.values, trial.score)

    def begun(self, number: int) -> Trial:
        """Return the trial with this number, with newly proposed values if it has not begun before."""
        there = self._study.trials.get(number)
        return there if there is not None else self._study.begin(number, self._ask(number))

    def ended(self, trial: Trial) -> None:
        """Record a trial that has ended, and pass its score to the sampler."""
        self._study.end(trial)
        self._told(trial)


@dataclass(frozen=True)
class TrialRun:
    """How the trials of a study are run.

    ``made`` takes the values and the folder of a trial, and returns the plan of its model, or the path of a model that
    exists already. ``model`` is the name of the model in that folder; it ends in a slash if the model is a folder.
    ``keep`` is true if models are kept after their evaluation.
    """

    made: Callable[[Mapping[str, Any], str], Plan | str]
    evaluator: Evaluator
    model: str
    parallel: int = 1
    keep: bool = False
    observe: Observer | None = None


class Trials:
    """Runs trials: merges one at a time, in this thread, and evaluations in parallel."""

    def __init__(self, study: Study, run: TrialRun) -> None:
        self._study, self._run = study, run
        self._rooms: dict[int, ExitStack] = {}
        self._before: MadeModel | None = None
        self._reuses = True
        self._evaluated = set[int]()

    def run(self, numbers: Iterable[int], begun: Callable[[int], Trial], ended: Callable[[Trial], None]) -> None:
        """Run the trials ``numbers``; ``begun`` returns the trial of a number, and ``ended`` records a finished trial.

        If the run is interrupted, it ends the evaluations, and removes the models of unfinished trials.
        """
        todo, running = iter(numbers), dict[Future[Outcome], Trial]()
        pool = ThreadPoolExecutor(self._run.parallel, thread_name_prefix="ckpt-trial")
        try:
            more = True
            while more or running:
                while more and len(running) < self._run.parallel:
                    number = next(todo, None)
                    more = number is not None
                    if number is None:
                        break
                    trial = begun(number)
                    model = self._merged(trial)
                    if model:
                        running[pool.submit(self._run.evaluator.evaluate, model)] = trial
                    else:
                        self._end(trial, ended)
                for future in wait(running, return_when=FIRST_COMPLETED).done if running else ():
                    trial, outcome = running.pop(future), future.result()
                    trial.score, trial.why, trial.evaluate_s = outcome.score, outcome.why, outcome.seconds
                    self._end(trial, ended)
        except BaseException:
            self._run.evaluator.stop()
            raise
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
            for room in self._rooms.values():
                room.close()

    def _merged(self, trial: Trial) -> str:
        """Merge the model of a trial, and return its path; '' if the models cannot be merged with these values."""
        room = self._rooms[trial.number] = ExitStack()
        folder = room.enter_context(self._study.room(trial.number, keep=self._run.keep))
        model = os.path.join(os.path.abspath(folder), self._run.model)
        begin = time.monotonic()
        try:
            plan = self._run.made(trial.values, folder)
            if isinstance(plan, str):
                return plan
            self._apply(trial.number, plan, model)
        except (ConfigError, PlanError) as error:
            trial.why = f"the models cannot be merged with these values: {error.message}"
            return ""
        finally:
            trial.merge_s = time.monotonic() - begin
        return model

    def _apply(self, number: int, plan: Plan, model: str) -> None:
        """Write the model of a trial; tensors that are equal in the trial before are copied from its model.

        For this, each model is kept until the next trial is merged. Once two successive trials have no equal tensors,
        no more models are kept, and no more tensors are copied.
        """
        made, before = plan, self._before
        try:
            if before is not None:
                self._reuses = bool(equal_steps(plan, before.plan))
                made = with_copies(plan, before)
            apply(made, model)
        finally:
            close_plan(made)
        self._before = MadeModel.of(number, plan, model) if self._reuses else None
        if before is not None:
            self._close(before.trial)

    def _close(self, number: int) -> None:
        """Remove the files of a trial if its evaluation has ended, and no later trial copies from them."""
        is_read = self._before is not None and self._before.trial == number
        if number not in self._evaluated or is_read:
            return
        self._rooms.pop(number).close()

    def _end(self, trial: Trial, ended: Callable[[Trial], None]) -> None:
        self._evaluated.add(trial.number)
        self._close(trial.number)
        ended(trial)
        if self._run.observe is not None:
            self._run.observe(trial)
