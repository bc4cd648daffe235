"""A training run as a person wants to see it: what was checked, how it went, what knowledge did."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from rich.console import Group, RenderableType
from rich.text import Text

from ..trainer.checks._check import Check
from ..trainer.run.result import Controls, Trained
from ..util.text import count, escape
from .columns import Columns
from .notes import Hanging, Spread, next_view

__all__ = ["HEADS", "TITLES", "checks_view", "figures_said", "trained_view"]

TITLES = {"before": "before the first step", "during": "while it trained", "after": "after the last step"}
STYLES = {"PASS": "green", "WARN": "yellow", "FAIL": "bold red", "NOT RUN": "dim"}
WIDTH = 33
"""Of the names of checks: tables that are printed one after the other are aligned."""
HEADS = {True: "body frozen", False: "all of it trained"}
WAYS = {
    "unchecked": "not done: the checks after its last step are still to come; --resume makes them (--controls too)",
    "patience": "ended early: it has not become better for long",
    "nonfinite": "stopped: too many steps in a row were not finite",
    "collapsed": "stopped: nothing more can come of it",
    "lost": "stopped: another of its processes ended",
    "SIGTERM": "terminated; it finished its step and saved",
    "SIGHUP": "hung up; it finished its step and saved",
    "SIGINT": "interrupted; it finished its step and saved",
    "prepared": "prepared; nothing was trained",
}


def checks_view(checks: Sequence[Check], *, every: bool = False) -> RenderableType:
    """Return a table of checks, those of one time together; those that did not run in one line, unless ``every``."""
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
    """Return what came of a run; checks of the times in ``checked`` were shown already."""
    shown = set(checked)
    left = [check for check in found.checks if check.when not in shown]
    parts: list[RenderableType] = [checks_view(left, every=every)] if left else []
    if found.controls is not None:
        parts += _controls(found.controls)
    if found.ended in WAYS:
        style = "" if found.ended == "prepared" else "yellow"
        parts.append(Text(f"  {WAYS[found.ended]}", style=style))
    if found.run is not None:
        parts.append(Spread(Text("  trained "), [Text(escape(found.run), "bold"), *_summary(found)]))
    if found.test_clips:
        parts.append(Spread(Text("  test    "), [count(found.test_clips, "clip"), *figures_said(found.test)]))
    failed = [check.name for check in found.checks if check.status == "FAIL"]
    if failed:
        said = Text(f"{count(len(failed), 'check')} failed: {', '.join(failed)}", "bold red")
        parts.append(Hanging(Text("  FAIL    ", "bold red"), said))
    return Group(*parts, *next_view(next_steps))


def _controls(found: Controls) -> Iterator[RenderableType]:
    """Yield the table of the controls: a row for each way to start, a column for what was trained."""
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
    yield line.append(f"  by dev after the last step, {HEADS[found.decided_on == 'frozen']}", style="dim")
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
    """Return each figure with its name."""
    return [f"{escape(name)} {_figure(value)}" for name, value in figures.items()]


def _figure(value: float) -> str:
    """Return three digits behind the point, so that what follows stays in its column; none for a count."""
    return f"{value:.3f}" if value % 1 and abs(value) >= 0.001 else f"{value:.3g}"
