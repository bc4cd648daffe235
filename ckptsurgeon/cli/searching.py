"""Defines options and shows results of ``ckpt search`` and ``ckpt average --greedy``, which evaluate models."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import ConfigError
from .printing import quoted
from .stopping import set_study_folder
from .writing import AdapterWriting, Writing

if TYPE_CHECKING:
    from ..planning.search.result import SearchResult, Trial

__all__ = [
    "ByTask",
    "Evaluate",
    "KeepModels",
    "Maximize",
    "Metric",
    "Parallel",
    "Searching",
    "StudyFolder",
    "TestCommand",
    "TrialTimeout",
    "check_soup",
]

EVALUATE = typer.Option(
    "--evaluate",
    metavar="CMD",
    help="Run this command on each model, without a shell; {model} is the model's path. The last number that it "
    "prints is the score.",
)
Evaluate = Annotated[str | None, EVALUATE]
ByTask = Annotated[
    str | None,
    typer.Option(
        "--task",
        metavar="CONFIG",
        help="Score each model by the task of this configuration of ckpt train, on the split dev, without training; "
        "score the output on the split test, too.",
    ),
]
Maximize = Annotated[
    bool | None,
    typer.Option("--maximize/--minimize", help="Whether a larger or a smaller score is better.", show_default=False),
]
Metric = Annotated[
    str | None,
    typer.Option(
        "--metric",
        metavar="NAME",
        help="The score is the number in the last line NAME: NUMBER; with --task, this figure of the task.",
    ),
]
TestCommand = Annotated[
    str | None,
    typer.Option(
        "--test",
        metavar="CMD",
        help="At the end, run this command on the output, with data that --evaluate does not use.",
    ),
]
StudyFolder = Annotated[
    str | None,
    typer.Option("--study", metavar="DIR", help="Log the trials in this folder. [default: OUTPUT.study]"),
]
Parallel = Annotated[
    int,
    typer.Option("--parallel", metavar="N", help="Run this many evaluations at the same time; merges run one by one."),
]
TrialTimeout = Annotated[
    float | None,
    typer.Option(
        "--trial-timeout",
        metavar="SECONDS",
        help="Kill a command or a task that evaluates a model longer than this; its trial fails.",
    ),
]
KeepModels = Annotated[
    bool, typer.Option("--keep-models", help="Keep the models of the trials, in the folder of the study.")
]


class Searching:
    """Shows a search while it runs: each trial when it has ended, and then the result."""

    def __init__(self, writing: AdapterWriting, trials: int) -> None:
        writing.check()
        self._writing, self._shown = writing, trials
        self.trials = 0 if writing.dry_run else trials
        self.output = writing.output or "output/"
        self._noted: tuple[str, ...] = ()
        if trials < 1:
            raise ConfigError(f"--trials {trials} is not a valid number of trials.", hint="Give 1 or more.")

    @contextmanager
    def running(self, study: str | None) -> Iterator[None]:
        """Let a signal stop the search in the folder ``study``: commands are killed, and no incomplete file is left."""
        if self.trials:
            set_study_folder(study or f"{self.output.rstrip('/')}.study")
        with self._writing.printer.working("searching", self._writing.output or ""):
            yield

    def begin(self, found: SearchResult) -> None:
        """Show the parameters that will be searched, and the notes of the search."""
        from ..render.search import space_view

        self._noted = found.notes
        self._writing.printer.show(space_view(found))
        self._writing.printer.notes(found.notes)

    def observe(self, trial: Trial) -> None:
        """Show a trial that has ended."""
        from ..render.search import trial_line

        self._writing.printer.show(trial_line(trial, max(self._shown, trial.number)))

    def show(self, found: SearchResult) -> None:
        """Show the result, or print it as JSON."""
        from ..render.search import search_view
        from ..render.verification import receipt_view

        printer = self._writing.printer
        if printer.answer(found):
            return
        if found.best is None:
            self.begin(found)
            return
        printer.show(search_view(found, every=printer.verbose))
        printer.notes(note for note in found.notes if note not in self._noted)
        if found.receipt is not None:
            steps = [f"ckpt verify {quoted(found.receipt.output)}"]
            left = tuple(note for note in found.receipt.notes if note not in (*self._noted, *found.notes))
            printer.notes(left)
            printer.show(receipt_view(found.receipt, next_steps=steps, every=printer.verbose))


def check_soup(*, greedy: bool, given: Mapping[str, object], others: Mapping[str, object], writing: Writing) -> None:
    """Raise ConfigError if an option that needs --greedy is given without it, or an option that --greedy excludes.

    ``given`` are the options for evaluating a soup, which need --greedy. ``others`` are the options for other kinds of
    averages, which --greedy excludes. Both map the option's name to its value.
    """
    if not greedy:
        wrong = [name for name, value in given.items() if value]
        if wrong:
            raise ConfigError(f"{wrong[0]} is only for --greedy.", hint=f"Add --greedy, or leave {wrong[0]} out.")
        return
    wrong = [name for name, value in {**others, **writing.more}.items() if value]
    if wrong:
        raise ConfigError(f"{wrong[0]} cannot be used with --greedy.", hint="Leave it out.")
    if writing.dry_run:
        raise ConfigError(
            "-n cannot be used with --greedy, because the scores decide which models are averaged.",
            hint="Leave it out.",
        )
    if not (given["--evaluate"] or given["--task"]):
        raise ConfigError(
            "--greedy needs a command that scores a model, or a task.",
            hint="Give the command with --evaluate, or the task with --task.",
        )
