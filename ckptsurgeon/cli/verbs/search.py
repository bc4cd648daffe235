"""The command ``ckpt search``: searches for the best parameters of a recipe by the score of a command or a task."""

from __future__ import annotations

from typing import Annotated

import typer

from ..first_process import run_by_the_first
from ..searching import (
    ByTask,
    Evaluate,
    KeepModels,
    Maximize,
    Metric,
    Parallel,
    Searching,
    StudyFolder,
    TestCommand,
    TrialTimeout,
)
from ..writing import AdapterWriting

NAME = "search"
HELP = """Search the parameters of a merge by the score of a command or a task.

In the recipe, write {search: [0, 1]} in place of a number, or {choice: [a, b]} in place of a value, for each parameter
to search. Each trial merges a model with some values and runs the command of --evaluate on it, without a shell. The
score is the last number that the command prints, or, with --metric NAME, the number in the last line NAME: NUMBER. If
the command fails, prints no number or takes too long, the trial has failed. With --task, the task of a configuration of
ckpt train scores each model on the split dev, without training, and the output on the split test. A folder (--study)
keeps all trials: if the search is interrupted, the same command continues it. The best model is written to -o, as by
ckpt merge, and verified.
"""
EXAMPLES = """\b
Examples:
  ckpt search recipe.yaml --evaluate 'python evaluate.py {model} dev.csv' --maximize --trials 60 -o merged/
  ckpt search recipe.yaml --evaluate './wer.sh {model}' --minimize --test './wer.sh {model} test' -o merged/
  ckpt search recipe.yaml --task asr.yaml --trials 30 -o merged.safetensors
  ckpt search recipe.yaml --evaluate 'python evaluate.py {model}' --maximize -o merged/ -n
"""


@run_by_the_first
def run(
    recipe: Annotated[
        str, typer.Argument(metavar="RECIPE.yaml", help="A recipe, of mergekit or ckpt, with parameters to search.")
    ],
    evaluate: Evaluate = None,
    task: ByTask = None,
    maximize: Maximize = None,
    metric: Metric = None,
    trials: Annotated[
        int,
        typer.Option(
            "--trials", metavar="N", help="Run this many trials in total; trials of an earlier, interrupted run count."
        ),
    ] = 60,
    test: TestCommand = None,
    study: StudyFolder = None,
    sampler: Annotated[
        str,
        typer.Option(
            "--sampler",
            metavar="auto|cma-es|tpe|sobol|random|grid",
            help="How to choose the values of the next trial; cma-es and tpe need optuna. auto: cma-es for numbers, "
            "tpe for choices, sobol if optuna is missing.",
        ),
    ] = "auto",
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Seed the sampler with this number.")] = 0,
    parallel: Parallel = 1,
    trial_timeout: TrialTimeout = None,
    keep_models: KeepModels = False,
    *,
    writing: AdapterWriting,
) -> None:
    """Search the parameters of a recipe, and write the best model."""
    from ...api.search.search import search

    searching = Searching(writing, trials)
    with searching.running(study):
        found = search(
            recipe, searching.output, evaluate=evaluate, task=task, maximize=maximize,
            trials=searching.trials, metric=metric, test=test, study=study, sampler=sampler, seed=seed,
            parallel=parallel, trial_timeout=trial_timeout, keep_models=keep_models, force=writing.force,
            wait=writing.wait, key=writing.key, begin=searching.begin, observe=searching.observe,
        )  # fmt: skip
    searching.show(found)
