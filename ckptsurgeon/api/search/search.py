"""``search``: searches for the best values of the parameters that a recipe marks, by the score of a command."""

from __future__ import annotations

import hashlib
import os
import random
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from ...engine.output.companion_files import existing_checkpoint
from ...errors import CheckpointError, ConfigError, OutputError, PlanError, SourceError
from ...planning.plan.plan import Plan
from ...planning.search.picture import scores_svg
from ...planning.search.result import BEGUN, SearchResult, Trial
from ...storage.write.output_paths import check_is_path, check_parent
from ...storage.write.staged_file import write_text
from ...util.notes import with_prefix
from ...util.text import count, escape, listing
from ..apply import apply
from ..apply import check_output as check_output_format
from ..inputs.argument_types import Path, check_seed, checked
from ..inputs.inputs import close_plan
from ..verify import verify
from .evaluator import Evaluator
from .judge import Judging, opened_judge
from .marked_recipe import MarkedRecipe, plan_of_recipe, read_marked_recipe
from .samplers import AUTO, chosen_sampler, make_sampler
from .study import BEST, PICTURE, Study, opened_study
from .trials import Observer, Proposals, TrialRun, Trials

__all__ = ["check_free", "digests", "drawn_best", "model_name", "search", "unchanged", "unfinished", "written"]

ATTEMPTS = 10
"""Before a search begins, at most this many sets of values are tried, until a merge is possible with one."""


@checked
def search(
    recipe: Path,
    output: Path,
    *,
    evaluate: str | None = None,
    task: Path | None = None,
    maximize: bool | None = None,
    trials: int = 60,
    metric: str | None = None,
    test: str | None = None,
    study: Path | None = None,
    sampler: str = AUTO,
    seed: int = 0,
    parallel: int = 1,
    trial_timeout: float | None = None,
    keep_models: bool = False,
    force: bool = False,
    wait: float | None = None,
    key: Path | None = None,
    begin: Callable[[SearchResult], None] | None = None,
    observe: Observer | None = None,
) -> SearchResult:
    """Search for the best values of the parameters that a recipe marks, and write the best model to ``output``.

    ``recipe`` is a recipe of mergekit or of ckptsurgeon in which marks stand for parameters: ``{search: [0, 1]}`` for a
    number, ``{choice: [a, b]}`` for one of some values. For each trial, a model is made, and the command ``evaluate``
    is run on it, without a shell; ``{model}`` in the command stands for the path of the model. With ``metric``, the
    score is the value in the last line ``metric: value`` that the command prints. Otherwise, it is the value in the
    last line that is ``name: value`` or only a number, or else the last number. If ``maximize`` is true, larger scores
    are better. A command that fails, prints no number or runs for more than ``trial_timeout`` seconds makes a failed
    trial. ``test`` is a command of the same form that is run on the output alone, for data that the search does not
    see.

    In place of ``evaluate``, ``task`` is a configuration of ``ckpt train``: its task evaluates each model on its split
    dev, without training, in processes that ckptsurgeon starts. The score is the metric of the task, or ``metric``; the
    task knows whether larger scores are better, unless ``maximize`` is given. If the configuration has a split test,
    the output is evaluated on it, unless ``test`` is given.

    The trials are logged as JSON lines in the folder ``study`` (by default the path of the output with ".study" added).
    The same call continues a study that was stopped; ``trials`` is the number of trials of the whole study. ``sampler``
    is "cma-es" or "tpe" (which need the extra "search"), "sobol", "random", "grid", or "auto". ``parallel`` evaluations
    run at the same time; merges run one after the other. Models of trials are removed unless ``keep_models`` is set.
    ``begin`` is called once before the first trial, with the result so far, and ``observe`` with each trial that has
    ended. With zero ``trials``, nothing is run or written. ``force``, ``wait`` and ``key`` mean the same as in
    ``apply``.

    Raises ConfigError for a wrong mark, command or argument, and for a folder with the study of another recipe;
    CheckpointError if no trial has a score; and the errors of ``merge`` and ``apply``.
    """
    check_seed(seed)
    _check_counts(trials, parallel)
    marked = read_marked_recipe(os.fspath(recipe))
    name, note = chosen_sampler(sampler, marked.space)
    path = os.fspath(output)
    if trials:
        check_free(path, force=force)
    where = os.fspath(study) if study is not None else f"{path.rstrip('/')}.study"
    possible = _possible_plan(marked, seed, run_code=trials > 0)
    said = Judging(evaluate, os.fspath(task) if task is not None else None, metric, maximize, test, trial_timeout)
    with opened_judge(said, runs=trials > 0) as judge:
        possible = _fitting_plan(possible, marked, seed, judge.check)
        result = SearchResult(
            where, marked.name, name, seed, judge.metric, judge.maximize, marked.space.parameters,
            notes=tuple(filter(None, [note, *judge.notes, *possible.notes])),
        )  # fmt: skip
        if not trials:
            return result
        make = partial(make_sampler, name, marked.space, seed=seed, trials=trials, maximize=bool(judge.maximize))
        make()  # raises if its package is missing
        models = digests(possible)
        with opened_study(where, _settings(result, marked, judge.settings, trials, models=models), wait=wait) as opened:
            if begin is not None:
                begin(result)
            proposals = Proposals(make, opened)
            assert judge.evaluator is not None
            run = TrialRun(
                lambda values, folder: unchanged(
                    _planned(marked, values, os.path.join(folder, marked.name)), models
                ),
                judge.evaluator, model_name(path), parallel, keep_models, observe,
            )  # fmt: skip
            most = trials if proposals.sampler.most is None else min(trials, proposals.sampler.most)
            Trials(opened, run).run(unfinished(opened, most), proposals.begun, proposals.ended)
            best = drawn_best(opened, marked.name)
            opened.write(BEST, marked.filled(best.values))
            plan = plan_of_recipe(opened.path(BEST), is_mergekit=marked.is_mergekit)
            notes = tuple(filter(None, [*result.notes, proposals.note, *judge.evaluator.notes, _equal_note(opened)]))
            result = replace(
                result, trials=tuple(opened.trials.values()), best=best, recipe=opened.path(BEST), notes=notes
            )
            plugin = marked.plugin(best.values)
            return written(result, plan, path, judge.test, force=force, wait=wait, key=key, plugin=plugin)


def _settings(
    result: SearchResult, marked: MarkedRecipe, judged: Mapping[str, Any], trials: int, *, models: Mapping[str, str]
) -> dict[str, Any]:
    """Return the settings that a study records: a search continues the study only if its settings are the same.

    ``judged`` are the settings of the evaluation.
    """
    return {
        "kind": "ckpt.study",
        "version": 1,
        "recipe": marked.name,
        "sha256": marked.sha256,
        "sampler": result.sampler,
        "seed": result.seed,
        **judged,
        "models": models,
        **({"trials": trials} if result.sampler == "grid" else {}),
    }


def _check_counts(trials: int, parallel: int) -> None:
    if trials < 0:
        raise ConfigError(f"--trials {trials} is not a valid number of trials.", hint="Give 1 or more.")
    if parallel < 1:
        raise ConfigError(f"--parallel {parallel} is not a valid number of evaluations.", hint="Give 1 or more.")


def check_free(path: str, *, force: bool) -> None:
    """Raise OutputError if ``path`` cannot be written as an output, so that no trial runs in vain.

    ``path`` cannot be written if its parent folder is missing, or, unless ``force`` is true, if it is an existing file
    or a folder that holds a checkpoint.
    """
    check_is_path(path)
    check_output_format(path)
    check_parent(path.rstrip("/"))
    if force or not os.path.lexists(path.rstrip("/")):
        return
    if not os.path.isdir(path):
        raise OutputError(f"{escape(path)} exists.", hint="Use --force to replace this file.")
    if found := existing_checkpoint(path):
        raise OutputError(
            f"{escape(path)} holds a checkpoint: {listing(found)}.", hint="Use --force to replace this checkpoint."
        )


def model_name(output: str) -> str:
    """Return the name for each trial's model: the output's name without its path; with a slash if it is a folder."""
    name = os.path.basename(output.rstrip("/"))
    is_folder = output.endswith("/") or os.path.isdir(output) or not os.path.splitext(name)[1]
    return f"{name}/" if is_folder else name


def unfinished(study: Study, trials: int) -> list[int]:
    """Return the numbers of the trials that still have to run, including interrupted trials."""
    there = study.trials
    return [number for number in range(1, trials + 1) if number not in there or there[number].state == BEGUN]


def _fitting_plan(possible: Plan, marked: MarkedRecipe, seed: int, check: Callable[[Plan], None]) -> Plan:
    """Return the plan ``possible`` if ``check`` accepts it, else a plan for other values that it accepts.

    The values are those of the recipe's parameters; they may change the shapes of the output, and so whether ``check``
    accepts the plan. Such a new plan is closed. Raises the errors of ``check`` if it accepts no plan.
    """
    try:
        check(possible)
    except ConfigError:
        return _possible_plan(marked, seed, run_code=True, check=check)
    return possible


def _possible_plan(
    marked: MarkedRecipe, seed: int, *, run_code: bool, check: Callable[[Plan], None] = lambda plan: None
) -> Plan:
    """Return the closed plan for the first values of the parameters with which the models can be merged.

    The first values are in the middle of the search space, the next ones random. If all attempts fail, or ``check``
    raises an error for each plan, the error of the first attempt is raised. So a wrong recipe causes an error before
    anything is written, instead of a study of failed trials.
    """
    draw = random.Random(seed)
    names = [one.name for one in marked.space.parameters]
    first: CheckpointError | None = None
    for attempt in range(ATTEMPTS):
        shares = {name: draw.random() if attempt else 0.5 for name in names}
        try:
            plan = _planned_once(marked, marked.space.at(shares), run_code=run_code)
            close_plan(plan)
            check(plan)
        except (ConfigError, PlanError) as error:
            first = first or error
            continue
        return plan
    assert first is not None
    raise first


def digests(plan: Plan) -> dict[str, str]:
    """Return {name of a source of the plan: digest of the sizes, headers and times of its files}."""
    return {one.name: hashlib.sha256(repr(one.files).encode()).hexdigest()[:16] for one in plan.sources}


def unchanged(plan: Plan, known: Mapping[str, str]) -> Plan:
    """Return ``plan`` if its models have not changed since the search began; else raise SourceError.

    ``known`` are the digests of the models when the search began.
    """
    changed = [name for name, digest in digests(plan).items() if known.get(name, digest) != digest]
    if changed:
        close_plan(plan)
        raise SourceError(
            f"{listing(changed)} {'has' if len(changed) == 1 else 'have'} changed since the search began, so scores "
            "cannot be compared.",
            hint="Begin another study with --study.",
        )
    return plan


def _planned_once(marked: MarkedRecipe, values: Mapping[str, Any], *, run_code: bool) -> Plan:
    with tempfile.TemporaryDirectory(prefix="ckpt-search-") as folder:
        return _planned(marked, values, os.path.join(folder, marked.name), run_code=run_code)


def _planned(marked: MarkedRecipe, values: Mapping[str, Any], path: str, *, run_code: bool = True) -> Plan:
    """Write the recipe with ``values`` in place of its marks to ``path``, and return the plan of this recipe."""
    write_text(path, marked.filled(values), inputs=(), force=True)
    return plan_of_recipe(path, is_mergekit=marked.is_mergekit, run_code=run_code)


def _equal_note(study: Study) -> str:
    """Return a note if the scores of all trials are equal; '' if they differ, or if fewer than two trials have one."""
    scores = [one.score for one in study.trials.values() if one.score is not None]
    if len(scores) < 2 or len(set(scores)) > 1:
        return ""
    advice = (
        "that the parameters change the model, and that the split dev of the task can show this"
        if "task" in study.settings
        else "that the evaluation reads the model that it is given, and that this number is its score (--metric NAME "
        "reads a line NAME: NUMBER)"
    )
    return f"all {len(scores)} scores are {scores[0]:g}, so no values are better than others: check {advice}"


def drawn_best(study: Study, title: str) -> Trial:
    """Write a plot of the scores of a study, and return its best trial; raises CheckpointError if none has a score."""
    trials: Sequence[Trial] = [one for one in study.trials.values() if one.state != BEGUN]
    best = study.best()
    maximize = bool(study.settings["maximize"])
    study.write(PICTURE, scores_svg(trials, maximize=maximize, title=f"{title}: scores by trial"))
    if best is None:
        last = trials[-1].why if trials else "no trial was run"
        raise CheckpointError(
            f"none of {count(len(trials), 'trial')} has a score; reason of the last trial: {last.rstrip('.')}.",
            hint=f"Read the reason for each failed trial in {escape(study.path('trials.jsonl'))}.",
            details=[f"trial {one.number}: {one.why}" for one in trials],
        )
    return best


def written(
    result: SearchResult, plan: Plan, output: str, test: Evaluator | None, *, force: bool, wait: float | None,
    key: Path | None, plugin: str | None = None,
) -> SearchResult:  # fmt: skip
    """Write and verify the output, evaluate it with the test, and return the completed result.

    Raises VerifyError if the output differs from its recipe, and the errors of ``apply``.
    """
    receipt = apply(plan, output, force=force, wait=wait, key=key)
    verification = verify(output, plugin=plugin)
    verification.raise_if_failed()
    notes, score = list(result.notes), None
    if test is not None:
        outcome = test.evaluate(os.path.abspath(output))
        score = outcome.score
        notes += [with_prefix("the test: ", note) for note in test.notes]
        notes += [f"the test gave no score: {outcome.why}"] if score is None else []
    return replace(result, test=score, receipt=receipt, verification=verification, notes=tuple(notes))
