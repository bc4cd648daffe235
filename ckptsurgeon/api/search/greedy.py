"""``greedy_soup``: averages several models, and leaves out those that make the score of the average worse."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...errors import ConfigError
from ...planning.plan.plan import Plan
from ...planning.search.result import BEGUN, SearchResult, Trial
from ...storage.yaml_text import dump_yaml
from ...util.text import listing
from ..average import average
from ..inputs.argument_types import Path, checked
from ..inputs.inputs import close_plan, names_of
from ..recipes import plan_recipe
from .judge import Judging, opened_judge
from .search import check_free, digests, drawn_best, model_name, unchanged, written
from .study import BEST, Study, opened_study
from .trials import Observer, TrialRun, Trials

__all__ = ["greedy_soup"]

GREEDY, MODELS = "greedy", "models"


@checked
def greedy_soup(
    sources: Sequence[Path],
    output: Path,
    *,
    evaluate: str | None = None,
    task: Path | None = None,
    maximize: bool | None = None,
    metric: str | None = None,
    test: str | None = None,
    study: Path | None = None,
    int_buffers: str = "last",
    vocab: str | None = None,
    encoding: str = "keep",
    parallel: int = 1,
    trial_timeout: float | None = None,
    keep_models: bool = False,
    force: bool = False,
    wait: float | None = None,
    key: Path | None = None,
    observe: Observer | None = None,
) -> SearchResult:
    """Average several models without those that make the score of the average worse; write the result to ``output``.

    Each model is scored by the command ``evaluate`` or by ``task``, as in ``search``. Then, from the best model to the
    worst, each model is averaged with the models kept so far, and is kept if the score is not worse (recipe 1 in
    https://arxiv.org/abs/2203.05482). A model whose own evaluation fails is left out, with a note. ``parallel`` models
    are scored at the same time; averages are scored one after the other. ``int_buffers``, ``vocab`` and ``encoding``
    mean the same as in ``average``, the other arguments the same as in ``search``. The result has a trial for each
    model and for each average.

    Raises ConfigError for an invalid number ``parallel``, and the errors of ``average`` and ``search``.
    """
    if parallel < 1:
        raise ConfigError(f"--parallel {parallel} is not a valid number of evaluations.", hint="Give 1 or more.")
    path = os.fspath(output)
    check_free(path, force=force)
    paths = [os.path.abspath(os.fspath(one)) for one in sources]
    options = {"int_buffers": int_buffers, "vocab": vocab, "encoding": encoding}
    plan = average(paths, **options)  # type: ignore[arg-type]
    close_plan(plan)
    names = names_of(paths)
    where = os.fspath(study) if study is not None else f"{path.rstrip('/')}.study"
    said = repr((names, sorted(options.items(), key=str)))
    judging = Judging(evaluate, os.fspath(task) if task is not None else None, metric, maximize, test, trial_timeout)
    with opened_judge(judging) as judge:
        judge.check(plan)
        settings = {
            "kind": "ckpt.study", "version": 1, "recipe": "a greedy soup",
            "sha256": hashlib.sha256(said.encode()).hexdigest(), "sampler": GREEDY, "seed": 0, **judge.settings,
            MODELS: digests(plan),
        }  # fmt: skip
        with opened_study(where, settings, wait=wait) as opened:
            soup = _Soup(dict(zip(names, paths, strict=True)), options, bool(judge.maximize), digests(plan))
            assert judge.evaluator is not None
            run = TrialRun(soup.made, judge.evaluator, model_name(path), parallel, keep_models, observe)
            kept = soup.cooked(opened, run)
            best = drawn_best(opened, "a greedy soup")
            recipe = opened.path(BEST)
            opened.write(BEST, dump_yaml(soup.recipe(kept)))
            result = SearchResult(
                where, f"{len(kept)} of {len(names)} models", GREEDY, 0, judge.metric, judge.maximize, (),
                trials=tuple(opened.trials.values()), best=soup.last or best, recipe=recipe,
                notes=(*_notes(opened, kept, len(names)), *judge.notes, *judge.evaluator.notes),
            )  # fmt: skip
            plan = plan_recipe(recipe).plan
            return written(result, plan, path, judge.test, force=force, wait=wait, key=key)


def _notes(study: Study, kept: Sequence[str], models: int) -> Iterator[str]:
    """Yield notes on the models that are in the output, and on models whose evaluation failed."""
    yield f"{listing(kept)}: {'these are' if len(kept) > 1 else 'this is'} in the output, out of {models} models"
    lost = [one.values[MODELS][0] for one in list(study.trials.values())[:models] if one.score is None]
    if lost:
        yield f"models that are not in the output, because their evaluation failed: {listing(lost)}"


@dataclass
class _Soup:
    """The models from which a soup is made, by name, and the options of ``average``.

    ``last`` is the trial whose model is the best soup so far. ``known`` are the digests of the models when the search
    began.
    """

    paths: Mapping[str, str]
    options: Mapping[str, Any]
    maximize: bool
    known: Mapping[str, str]
    last: Trial | None = None

    def made(self, values: Mapping[str, Any], folder: str) -> Plan | str:
        """Return the plan that averages the trial's models; if it has a single model, the path of this model."""
        names = values[MODELS]
        if len(names) == 1:
            return self.paths[names[0]]
        return unchanged(average([self.paths[name] for name in names], **self.options), self.known)

    def recipe(self, names: Sequence[str]) -> dict[str, Any]:
        """Return a recipe of ckptsurgeon that averages the models ``names``; a single model is copied."""
        paths = [self.paths[name] for name in names]
        if len(paths) == 1:
            return {"verb": "convert", "source": paths[0]}
        options = {name: value for name, value in self.options.items() if value is not None}
        return {"verb": "average", "sources": paths, **options}

    def cooked(self, study: Study, run: TrialRun) -> list[str]:
        """Run the trials, and return the names of the models that were kept, in the order in which they were given."""
        alone = {number: [name] for number, name in enumerate(self.paths, 1)}
        _run(study, run, alone)
        sign = 1.0 if self.maximize else -1.0
        scored = [study.trials[number] for number in alone if study.trials[number].score is not None]
        ordered = sorted(scored, key=lambda one: -sign * (one.score or 0.0))
        kept: list[str] = []
        for place, one in enumerate(ordered):
            if not kept:
                kept, self.last = list(one.values[MODELS]), one
                continue
            names = [name for name in self.paths if name in (*kept, *one.values[MODELS])]
            number = len(alone) + place
            _run(study, run, {number: names})
            trial = study.trials[number]
            assert self.last is not None
            if trial.score is not None and sign * trial.score >= sign * (self.last.score or 0.0):
                kept, self.last = names, trial
        return kept


def _run(study: Study, run: TrialRun, values: Mapping[int, list[str]]) -> None:
    """Run the trials in ``values``: {number of a trial: names of the models that it averages}.

    Trials that have ended already are not run again.
    """

    def begun(number: int) -> Trial:
        return study.begin(number, {MODELS: values[number]})

    todo = [number for number in values if number not in study.trials or study.trials[number].state == BEGUN]
    if todo:
        Trials(study, run).run(todo, begun, study.end)
