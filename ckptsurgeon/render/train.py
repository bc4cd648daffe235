"""Shows a training run, while it runs and after it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.text import Text

from ..trainer.checks.check import Check
from ..trainer.run.result import Controls, Trained
from ..util.text import count, escape, percent
from .columns import Columns, Hanging, SpacedWords, next_view

__all__ = [
    "HEADS",
    "TITLES",
    "checking_line",
    "checks_view",
    "control_line",
    "dev_line",
    "figures_said",
    "filled_line",
    "filling_line",
    "report_view",
    "step_line",
    "testing_line",
    "trained_view",
]

TITLES = {"before": "before the first step", "during": "while it trained", "after": "after the last step"}
STYLES = {"PASS": "green", "WARN": "yellow", "FAIL": "bold red", "NOT RUN": "dim"}
WIDTH = 33
"""The width of the column with the names of checks; it is fixed so that consecutive tables are aligned."""
HEADS = {True: "body frozen", False: "all parts trained"}
WAYS = {
    "unchecked": "not done: the checks after the last step have not run; --resume runs them (--controls too)",
    "patience": "ended early: the results have not improved for a long time",
    "nonfinite": "stopped: too many steps in a row were not finite",
    "collapsed": "stopped: the model has collapsed and cannot learn any more",
    "failed": "not started: a check failed before the first step; --keep-going trains nevertheless",
    "lost": "stopped: another of its processes ended",
    "SIGTERM": "terminated by a signal, after it finished its step and saved",
    "SIGHUP": "stopped when its terminal closed, after it finished its step and saved",
    "SIGINT": "interrupted, after it finished its step and saved",
    "prepared": "prepared; nothing was trained",
    "evaluated": "evaluated; nothing was trained",
}


def checks_view(checks: Sequence[Check], *, every: bool = False) -> RenderableType:
    """Return a table of checks by phase; checks that did not run share one line, unless ``every`` is set."""
    return Group(*_sections(checks, every=every))


def _sections(checks: Sequence[Check], *, every: bool) -> Iterator[RenderableType]:
    for when, title in TITLES.items():
        made = [check for check in checks if check.when == when]
        rows = [_row(check) for check in made if every or check.status != "NOT RUN"]
        idle = [check.name for check in made if not every and check.status == "NOT RUN"]
        if made:
            yield Text(f"  {title}", style="dim")
        if rows:
            yield Columns(rows)
        if idle:
            yield Hanging(Text("  not run: ", style="dim"), Text(", ".join(idle), style="dim"))


def _row(check: Check) -> list[str | Text]:
    dim = "dim" if check.status == "NOT RUN" else ""
    return [
        Text(check.status.ljust(7), STYLES[check.status]), Text(check.name.ljust(WIDTH), dim),
        Text(escape(check.says, 1000), dim),
    ]  # fmt: skip


def trained_view(
    found: Trained, *, checked: Iterable[str] = (), next_steps: Sequence[str] = (), every: bool = False
) -> RenderableType:
    """Return the result of a run, without checks of the phases in ``checked``, which were shown before."""
    shown = set(checked)
    left = [check for check in found.checks if check.when not in shown]
    parts: list[RenderableType] = [checks_view(left, every=every)] if left else []
    if found.controls is not None:
        parts += _controls(found.controls)
    parts += [*_state(found), *_tested(found)]
    failed = [check.name for check in found.checks if check.status == "FAIL"]
    if failed:
        said = Text(f"{count(len(failed), 'check')} failed: {', '.join(failed)}", "bold red")
        parts.append(Hanging(Text("  FAIL    ", "bold red"), said))
    return Group(*parts, *next_view(next_steps))


def report_view(found: Trained, *, next_steps: Sequence[str] = (), every: bool = False) -> RenderableType:
    """Return the report of a run: state, verdict of the controls, failures, warnings, figures, list of all checks."""
    parts: list[RenderableType] = [*_state(found)]
    if found.controls is not None:
        parts += _controls(found.controls)
    tally = Counter[str](check.status for check in found.checks)
    said = [Text(f"{tally[status]} {status}", STYLES[status]) for status in STYLES if tally[status]]
    if said:
        parts.append(SpacedWords(Text("  checks  "), said))
    wrong = [_row(check) for status in ("FAIL", "WARN") for check in found.checks if check.status == status]
    if wrong:
        parts.append(Columns(wrong))
    if found.figures:
        parts.append(SpacedWords(Text("  dev     "), [f"step {found.step}", *figures_said(found.figures)]))
    parts += _tested(found)
    return Group(*parts, checks_view(found.checks, every=every), *next_view(next_steps))


def _state(found: Trained) -> Iterator[RenderableType]:
    """Yield the reason why a run ended, if it did not end as planned, and the number of its steps that are done."""
    if found.ended in WAYS:
        yield Text(f"  {WAYS[found.ended]}", style="" if found.ended == "prepared" else "yellow")
    if found.run is not None:
        yield SpacedWords(Text("  trained "), [Text(escape(found.run), "bold"), *_summary(found)])


def _tested(found: Trained) -> Iterator[RenderableType]:
    """Yield the figures of the evaluation on the split ``test``, if there was one."""
    if found.test_clips:
        yield SpacedWords(Text("  test    "), [count(found.test_clips, "clip"), *figures_said(found.test)])


def _controls(found: Controls) -> Iterator[RenderableType]:
    """Yield the table of the control runs, with a row for each kind of initial weights, and the verdict.

    The table has a column for the runs that train only new tensors, and a column for the runs that train all tensors.
    """
    ways = list(dict.fromkeys(arm.name for arm in found.arms))
    kinds = [frozen for frozen in (True, False) if any(arm.frozen == frozen for arm in found.arms)]
    rows: list[list[str | Text]] = [[Text(""), *(Text(HEADS[kind], "dim") for kind in kinds), Text("")]]
    values = {(arm.name, arm.frozen): arm for arm in found.arms}
    for way in ways:
        rows.append([way, *(_mean(values[way, kind].values) for kind in kinds), ""])
    yield Text(f"  {escape(found.metric)} after {found.steps} steps, {count(found.seeds, 'seed')}", style="dim")
    yield Columns(rows)
    style = {"KNOWLEDGE": "bold green", "NONE": "bold red"}.get(found.verdict, "bold yellow")
    line = Text("  verdict  ").append(found.verdict, style=style)
    yield line.append(f"  from the dev results after the last step, {HEADS[found.decided_on == 'frozen']}", style="dim")
    if found.plateau:
        flat = f"{' and '.join(found.plateau)} {'has' if len(found.plateau) == 1 else 'have'} learned nothing yet"
        yield Hanging(Text("           "), Text(flat, style="yellow"))


def _mean(values: Sequence[float]) -> str:
    spread = f" ({min(values):.3g} to {max(values):.3g})" if len(values) > 1 else ""
    return f"{sum(values) / len(values):.3g}{spread}"


def _summary(found: Trained) -> list[str]:
    words = [f"{found.step}/{found.steps} steps", _time(found.elapsed_s)]
    if found.first_loss is not None and found.last_loss is not None:
        words.append(f"loss {found.first_loss:.3g} to {found.last_loss:.3g}")
    if found.best is not None:
        words.append(f"best {found.metric} {found.best:.3g} at step {found.best_step}")
    return words


def _time(seconds: float) -> str:
    """Return a duration: ``4.2 s``, ``1:05``, ``2:03:07``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def figures_said(figures: Mapping[str, float]) -> list[str]:
    """Return a text for each figure: its name and its value."""
    return [f"{escape(name)} {_figure(value)}" for name, value in figures.items()]


def _figure(value: float) -> str:
    """Return a number with three decimals, so that columns stay aligned.

    Whole numbers, and numbers below 0.001, have three significant digits.
    """
    return f"{value:.3f}" if value % 1 and abs(value) >= 0.001 else f"{value:.3g}"


# Progress: a line for each event.


class _Fitting:
    """Words on one line; if the line is too long, the words with the indices ``spared`` are left out, one by one."""

    def __init__(self, words: Sequence[str], spared: Sequence[int]) -> None:
        self._words, self._spared = words, spared

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        left_out: set[int] = set()
        for place in (*self._spared, None):
            line = Text("  " + "  ".join(word for i, word in enumerate(self._words) if i not in left_out))
            if line.cell_len <= options.max_width or place is None:
                break
            left_out.add(place)
        line.no_wrap, line.overflow = True, "ellipsis"
        yield line


def step_line(row: Mapping[str, Any], steps: int, left_s: float | None) -> RenderableType:
    """Return a training step in one line; if it is too long, words are left out, but not the remaining time.

    ``row`` is the step's row of the log, ``steps`` the number of steps of the run, ``left_s`` the remaining seconds.
    """
    loss, norm = (row[name] for name in ("loss", "grad_norm"))
    rate = max(row["lr"].values(), default=0.0)
    words = [
        f"step {str(row['step']).rjust(len(str(steps)))}/{steps}",
        f"loss {loss:.3g}" if loss is not None else "loss is not finite",
        f"grad {norm:.2g}" if norm is not None else "grad is not finite",
        f"lr {rate:.1e}",
        f"{row['clips_s']:,.0f} clips/s".replace(",", " "),
        f"padding {percent(row['padding'], 1)}",
    ]
    return _Fitting([*words, *_left(left_s)], spared=(5, 3, 4, 2))


def _left(seconds: float | None) -> list[str]:
    return [] if seconds is None else [f"{int(seconds) // 60}:{int(seconds) % 60:02} left"]


def filling_line(row: Mapping[str, Any], left_s: float | None) -> RenderableType:
    """Return a line about computing features: how many clips of a split are done, and the remaining time.

    ``left_s`` is the remaining time in seconds.
    """
    clips = f"{row['clips']:,}/{row['of']:,} clips".replace(",", " ")
    return _Fitting([f"features  {escape(row['split'])}", clips, *_left(left_s)], spared=())


def filled_line(row: Mapping[str, Any]) -> Text:
    """Return a line with the number of clips whose features were computed, and the path where they are kept."""
    return Text(f"  features of {count(row['clips'], 'clip')} computed, kept in {escape(row['cache'])}")


def dev_line(row: Mapping[str, Any], steps: int) -> RenderableType:
    """Return the figures of an evaluation on the dev split, in one line if the terminal is wide enough.

    If the evaluation lowered the learning rate, the line has the factor by which evaluations have lowered it so far.
    """
    step = str(row["step"]).rjust(len(str(steps)))
    lowered = [f"lr from now on x {row['anneal_scale']:.3g}"] if "anneal_scale" in row else []
    return SpacedWords(Text(f"  step {step}/{steps}  dev  "), [*figures_said(row["dev"]), *lowered])


def checking_line(row: Mapping[str, Any]) -> Text:
    """Return a line about checks that are running, with the number of checks that are done."""
    line = f"  checks {TITLES[row['when']]}  {row['done']} done"
    return Text(line, no_wrap=True, overflow="ellipsis")


def testing_line(row: Mapping[str, Any]) -> Text:
    """Return a line about the evaluation of the best weights."""
    return Text(f"  test  the best weights, of step {row['step']}", no_wrap=True, overflow="ellipsis")


def control_line(row: Mapping[str, Any]) -> Text:
    """Return a line about one control run, with its result if it is done."""
    number = str(row["number"]).rjust(len(str(row["of"])))
    body = HEADS[row["frozen"]].ljust(max(map(len, HEADS.values())))
    value = "training" if row["value"] is None else f"{escape(row['metric'])} {row['value']:.3f}"
    words = (f"control {number}/{row['of']}", body, row["way"].ljust(8), f"seed {row['seed']}", value)
    return Text("  " + "  ".join(words), no_wrap=True, overflow="ellipsis")
