"""Shows a search: each trial as it ends, and then the best trials, and the values of the best trial."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.text import Text

from ..planning.search.result import DONE, SearchResult, Trial
from ..util.text import count, escape, value_text
from .columns import Columns, Hanging

__all__ = ["search_view", "space_view", "trial_line"]

SHOWN = 5
"""The number of trials in the table, unless all are wanted."""


def trial_line(trial: Trial, trials: int) -> RenderableType:
    """Return the line of a trial that has ended: its number, its score or why it failed, and its time."""
    head = f"  trial {trial.number:>{len(str(trials))}} of {trials}  "
    times = f"merge {trial.merge_s:.1f} s, evaluation {trial.evaluate_s:.1f} s"
    if trial.score is None:
        return Hanging(Text(head), Text(f"failed: {escape(trial.why, 400)}", "red"))
    return Hanging(Text(head), Text.assemble((f"{trial.score:.6g}", "bold"), f"  {times}"))


def space_view(found: SearchResult) -> RenderableType:
    """Return the parameters that are searched, with their ranges."""
    rows = [[escape(one.name), one.said] for one in found.parameters]
    what = f"{count(len(rows), 'parameter')} of {escape(found.source)}, searched by {found.sampler}"
    return Group(Text(f"  {what}", "bold"), Columns(rows, indent=4))


def search_view(found: SearchResult, *, every: bool = False) -> RenderableType:
    """Return the best trials (with ``every``, all), the parameter values of the best trial, and its test score."""
    if found.best is None:
        return Text()
    sign = -1 if found.maximize else 1
    scored = sorted((one for one in found.trials if one.state == DONE), key=lambda one: sign * (one.score or 0.0))
    failed = [one for one in found.trials if one.state != DONE]
    shown = scored if every else scored[:SHOWN]
    names = list(dict.fromkeys(name for one in found.trials for name in one.values))
    rows = [[str(one.number), f"{one.score:.6g}", _values(one, names)] for one in shown]
    best = "largest" if found.maximize else "smallest"
    head = f"  {count(len(found.trials), 'trial')}, {len(failed)} failed; the {best} {found.metric or 'score'} is best"
    table = Columns([["trial", found.metric or "score", "values"], *rows], right=(0, 1))
    test = [] if found.test is None else [Text.assemble("  test  ", (f"{found.test:.6g}", "bold"))]
    return Group(Text(head, "bold"), table, *test, Text(f"  recipe {escape(found.recipe)}"))


def _values(trial: Trial, names: list[str]) -> str:
    if len(names) == 1:
        return _said(trial.values[names[0]])
    return ", ".join(f"{_short(name)} {_said(trial.values[name])}" for name in names if name in trial.values)


def _said(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(value_text(one) for one in value)
    return f"{value:.4g}" if isinstance(value, float) else value_text(value)


def _short(name: str) -> str:
    """Return the short name of a searched parameter: ``[0].weight`` for ``models[0].parameters.weight``."""
    return escape(name.replace(".parameters.", ".").removeprefix("models"), 60)
