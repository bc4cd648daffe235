"""The command ``ckpt search``: searches the parameters of a recipe by the score of an evaluation command."""

from __future__ import annotations

from typing import Annotated

import typer

from ..searching import (
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
HELP = """Search the parameters of a merge by the score that a command prints.

In the recipe, {search: [0, 1]} stands in place of a number, or {choice: [a, b]} in place of a value. For each trial a
model is made and the command of --evaluate is run on it, without a shell; its score is the last metric: value, or the
last number, that it prints. A command that fails, prints no number or takes too long is a failed trial. The trials are
lines in a folder, where the same command goes on if it was interrupted. The best model is written with -o, as ckpt
merge writes it, and verified.
"""
EXAMPLES = """\b
Examples:
  ckpt search recipe.yaml --evaluate 'python evaluate.py {model} dev.csv' --maximize --trials 60 -o merged/
  ckpt search recipe.yaml --evaluate './wer.sh {model}' --minimize --test './wer.sh {model} test' -o merged/
  ckpt search recipe.yaml --evaluate 'python evaluate.py {model}' --maximize -o merged/ -n
"""


def run(
    recipe: Annotated[
        str, typer.Argument(metavar="RECIPE.yaml", help="A recipe, of mergekit or ckpt, that marks parameters.")
    ],
    evaluate: Evaluate,
    maximize: Maximize = None,
    metric: Metric = None,
    trials: Annotated[
        int, typer.Option("--trials", metavar="N", help="Run this many trials, with those that are there already.")
    ] = 60,
    test: TestCommand = None,
    study: StudyFolder = None,
    sampler: Annotated[
        str,
        typer.Option(
            "--sampler",
            metavar="auto|cma-es|tpe|sobol|random|grid",
            help="How values are proposed; cma-es and tpe need optuna. auto: cma-es for numbers, tpe for choices, "
            "sobol without optuna.",
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
            recipe, searching.output, evaluate=evaluate, maximize=searching.direction(maximize),
            trials=searching.trials, metric=metric, test=test, study=study, sampler=sampler, seed=seed,
            parallel=parallel, trial_timeout=trial_timeout, keep_models=keep_models, force=writing.force,
            wait=writing.wait, key=writing.key, begin=searching.begin, observe=searching.observe,
        )  # fmt: skip
    searching.show(found)
