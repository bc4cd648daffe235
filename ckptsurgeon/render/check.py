"""Shows the report of a check: the verdict, then each FAIL and WARN with advice, then the other checks in one line."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import Group, RenderableType
from rich.text import Text

from ..analysis.check.report import DAMAGED, CheckReport, CheckRow, Found, Status
from ..util.text import count, escape, human_bytes
from .columns import Columns, Hanging

__all__ = ["check_view"]

STYLES = {Status.PASS: "green", Status.WARN: "bold yellow", Status.FAIL: "bold red", Status.NOT_RUN: "dim"}
FOUND = 5
"""The largest number of findings of one check that are shown; ``-v`` shows all."""


CARD = "model-card"
"""The id of the check that is shown last: it says nothing on the weights."""
LENIENT = "  Warnings alone leave the exit status at 0; with --strict it is 1."


def check_view(report: CheckReport, *, every: bool = False, is_lenient: bool = False) -> RenderableType:
    """Return the verdict of a report, its findings, and one line on the other checks; with ``every``, their list.

    ``is_lenient`` is true if the command exits with 0 although a check gave WARN; then a line says so.
    """
    views: list[RenderableType] = [_verdict(report), *_groups(report)]
    rows = report.with_status(Status.FAIL, Status.WARN)
    for row in sorted(rows, key=lambda one: (one.status is not Status.FAIL, one.id == CARD)):
        views += _findings(row, 1 << 30 if every else FOUND)
    if report.verdict is Status.WARN and is_lenient:
        views.append(Text(LENIENT, "dim"))
    if every:
        views.append(Columns(_line(row) for row in report.with_status(Status.PASS, Status.NOT_RUN)))
    else:
        views += _folded(report)
    return Group(*views)


def _verdict(report: CheckReport) -> RenderableType:
    label = Text(f"{report.verdict.value} ", STYLES[report.verdict])
    counts = ", ".join(
        f"{report.counts[status]} {status.value}" for status in (Status.FAIL, Status.WARN) if report.counts[status]
    )
    what = f"{count(report.tensors, 'tensor')}, {human_bytes(report.nbytes)} read"
    text = Text(f"{escape(report.path)}", "bold")
    text.append(f"  {report.format}, {what}{f': {counts}' if counts else ''}", "not bold")
    return Hanging(label, text)


def _groups(report: CheckReport) -> Iterator[RenderableType]:
    """Yield a line with the outcome of each group of checks, if only some groups warn.

    So the user sees, for example, that the only warnings are about the model card.
    """
    found = report.groups
    if report.verdict is Status.WARN and len(set(found.values())) > 1:
        words = [Text.assemble(f"{group} ", (status.value, STYLES[status])) for group, status in found.items()]
        yield Text("  ").append_text(Text(", ").join(words))


def _findings(row: CheckRow, most: int) -> Iterator[RenderableType]:
    for found in row.found[:most]:
        label = Text(f"  {found.status.value}  ", STYLES[found.status])
        yield Hanging(label, _said(row, found))
        if found.todo:
            yield Hanging(Text("        "), Text(f"{found.todo}", "dim"))
    if len(row.found) > most:
        yield Text(f"        and {len(row.found) - most} more of {row.id} (-v or --json lists all)")


def _said(row: CheckRow, found: Found) -> Text:
    text = Text(f"{row.id}  ")
    text.append(escape(found.what, 1000))
    return text


def _line(row: CheckRow) -> Sequence[str | Text]:
    more = row.why or row.looked_at
    return [Text(row.status.value, STYLES[row.status]), row.id, f"{row.title}{f' ({more})' if more else ''}"]


def _folded(report: CheckReport) -> Iterator[RenderableType]:
    """Yield a line on the checks without findings: how many passed, could not run or do not apply; and the skipped."""
    passed = report.counts[Status.PASS]
    stopped = sum(row.why == DAMAGED for row in report.rows)
    others = report.counts[Status.NOT_RUN] - stopped
    told = [f"{count(passed, 'check')} passed"] if passed else []
    told += [f"{stopped} could not run on damaged files"] if stopped else []
    told += [f"{others} {'does' if others == 1 else 'do'} not apply"] if others else []
    told += [f"skipped {', '.join(report.skipped)}"] if report.skipped else []
    yield Hanging(Text("  "), Text(f"{', '.join(told)} (-v lists them)", "dim"))
