"""Shows results in notebooks, as HTML or text."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from html import escape as escape_html
from typing import TYPE_CHECKING
from weakref import ref

from rich.console import Console, RenderableType
from rich.segment import Segment
from rich.style import Style
from rich.text import Text

from ..util.text import count, escape
from .columns import notes_view

if TYPE_CHECKING:
    from ..analysis.check.report import CheckReport
    from ..analysis.compare.changes import Changes
    from ..analysis.compare.results import Difference
    from ..analysis.explanation import Explained
    from ..analysis.fits.fit import Fit
    from ..analysis.inspection import Inspection
    from ..analysis.match.proposal import Proposal
    from ..analysis.merge_explanation import ExplainedMerge
    from ..analysis.patch import Patch
    from ..analysis.prove.barrier import LossBarrier
    from ..analysis.prove.proof import Proof
    from ..analysis.scan.findings import Scan
    from ..checkpoint.checkpoint import Checkpoint
    from ..planning.plan.plan import Plan
    from ..planning.plan.receipt import Receipt, Verification
    from ..planning.search.result import SearchResult
    from ..trainer.run.result import Trained

__all__ = ["COLOURS", "Lines", "as_html", "as_text", "html_of", "html_of_lines", "lines_of", "text_of", "text_of_lines"]

WIDTH = 100
LINES = 400
"""The largest number of lines of a view; if it has more, only the first and the last are shown."""
TAIL = 12
COLOURS = {
    "green": "#148d3c", "yellow": "#a17204", "red": "#d84747", "cyan": "#0c8797",
    "blue": "#3d77dd", "magenta": "#b553b5",
}  # fmt: skip
"""Colours with a contrast of about 4 to 1 on both light and dark backgrounds."""
# Shown left to right, as in a terminal; right-to-left letters would move the columns.
BLOCK = (
    "white-space:pre;overflow-x:auto;line-height:1.3;margin:0;text-align:left;color:inherit;background:none;"
    "direction:ltr;unicode-bidi:bidi-override;font-family:ui-monospace,'DejaVu Sans Mono',Menlo,Consolas,monospace"
)
UNCUT = 1 << 30
_OPTIONS = re.compile(r"\((?:-v|--json|-v or --json) (lists|shows) all\)")
"""Matches the advice under a list that is cut."""

Lines = list[list[Segment]]


def as_html(views: Iterable[RenderableType]) -> str:
    """Return views as one HTML element ``<pre>``, with colours."""
    return html_of_lines(lines_of(views))


def as_text(views: Iterable[RenderableType]) -> str:
    """Return views as plain text, without colours."""
    return text_of_lines(lines_of(views))


def html_of_lines(lines: Lines) -> str:
    """Return lines as one HTML element ``<pre>``, with colours."""
    spans = ["".join(_span(segment) for segment in Segment.simplify(line)) for line in lines]
    return f'<pre style="{BLOCK}">\n' + "\n".join(spans) + "</pre>"


def text_of_lines(lines: Lines) -> str:
    """Return lines as plain text, without colours."""
    return "\n".join("".join(segment.text for segment in line).rstrip() for line in lines)


def lines_of(views: Iterable[RenderableType]) -> Lines:
    """Return the lines of views; if there are too many, only the first and the last lines."""
    # Independent of the environment: of the notebook's own support for rich, and of a terminal's colours and width.
    console = Console(
        file=io.StringIO(), width=WIDTH, force_jupyter=False, force_terminal=False, no_color=False, color_system=None,
        highlight=False, markup=False, emoji=False, legacy_windows=False, _environ={},
    )  # fmt: skip
    lines = [line for view in views for line in Segment.split_lines(console.render(view))]
    left_out = len(lines) - LINES
    if left_out <= 0:
        return lines
    said = Segment(f"  … {count(left_out + 1, 'more line')} …", Style(dim=True))
    return [*lines[: LINES - TAIL - 1], [said], *lines[-TAIL:]]


def _span(segment: Segment) -> str:
    """Return a piece of a line as escaped HTML."""
    text = escape_html(escape(segment.text, UNCUT), quote=True)
    style = _css(segment.style)
    return f'<span style="{style}">{text}</span>' if style and text else text


def _css(style: Style | None) -> str:
    if style is None:
        return ""
    colour = COLOURS.get(style.color.name) if style.color else None
    said = [
        ("color", colour),
        ("font-weight", "bold" if style.bold else None),
        ("opacity", ".7" if style.dim else None),
    ]
    return ";".join(f"{name}:{value}" for name, value in said if value)


# The view of each result, as the terminal would show it.

Views = Iterator[RenderableType]


def html_of(result: object) -> str:
    """Return a result of the API as HTML, for a notebook."""
    return html_of_lines(_lines_of(result))


def text_of(result: object) -> str:
    """Return a result of the API as plain text, for a notebook."""
    return text_of_lines(_lines_of(result))


class _Last:
    """Keeps the lines of the last result, because a notebook asks for each result twice: as text and as HTML."""

    shown: tuple[ref[object], Lines] | None = None


def _lines_of(result: object) -> Lines:
    if _Last.shown is not None and _Last.shown[0]() is result:
        return _Last.shown[1]
    lines = [[_for_python(segment) for segment in line] for line in lines_of(_views(result))]
    _Last.shown = ref(result), lines
    return lines


def _for_python(segment: Segment) -> Segment:
    """Return a piece of a line that names ``to_json()`` in place of the options of the command line."""
    return segment._replace(text=_OPTIONS.sub(r"(to_json() \1 all)", segment.text))


def _views(result: object) -> Views:
    """Return the views (rich renderables) of a result of the API.

    They are chosen by the name of the result's class, so that not all classes must be imported.
    """
    return next(VIEWS[kind.__name__] for kind in type(result).__mro__ if kind.__name__ in VIEWS)(result)


def _checkpoint(found: Checkpoint) -> Views:
    from ..analysis.inspection import inspection_of
    from ..analysis.model_by_keys import summary_of_file

    yield from _inspection(replace(inspection_of(found), model=summary_of_file(found, found.codes)))


def _inspection(found: Inspection) -> Views:
    from .inspect import inspection_view
    from .stats import stats_view

    yield inspection_view(found)
    if found.stats is not None:
        yield ""
        yield stats_view(found)
    yield from _notes(note for note in found.notes if not note.startswith("took "))


def _plan(found: Plan) -> Views:
    from .plan import plan_view

    yield from _notes(found.notes)
    yield plan_view(found)


def _receipt(found: Receipt) -> Views:
    from .verification import counts_line, receipt_view

    yield from _notes(found.notes)
    yield counts_line(found)
    yield receipt_view(found)


def _verification(found: Verification) -> Views:
    from .verification import verification_view

    yield verification_view(found)


def _difference(found: Difference) -> Views:
    from .diff import difference_view

    yield difference_view(found)
    yield from _rules(found.rules, unwrap=found.unwrap)
    yield from _notes(found.notes)


def _changes(found: Changes) -> Views:
    from .changes import changes_view

    yield changes_view(found)
    yield from _notes(found.notes)


def _fit(found: Fit) -> Views:
    from .fits import command_lines, fit_view

    yield fit_view(found)
    if found.command:
        yield Text("\n".join(command_lines(found)))
    yield from _notes(found.notes)


def _proposal(found: Proposal) -> Views:
    from .match import operation_lines, proposal_view

    yield from _plain(operation_lines(found.operations))
    yield from _rules(found.rules)
    yield proposal_view(found)
    yield from _notes(found.notes)


def _proof(found: Proof) -> Views:
    from .prove import proof_view

    yield proof_view(found)
    yield from _notes(found.notes)


def _barrier(found: LossBarrier) -> Views:
    from .prove import barrier_view

    yield barrier_view(found)
    yield from _notes(found.notes)


def _checked(found: CheckReport) -> Views:
    from .check import check_view

    yield check_view(found)


def _scan(found: Scan) -> Views:
    from .scan import scan_view

    yield scan_view(found)


def _explained(found: Explained) -> Views:
    from .explanation import explained_view

    yield explained_view(found)


def _explained_merge(found: ExplainedMerge) -> Views:
    from .merge_explanation import explained_merge_view

    yield explained_merge_view(found)


def _search(found: SearchResult) -> Views:
    from .search import search_view, space_view

    yield space_view(found)
    yield search_view(found)
    yield from _notes(found.notes)


def _trained(found: Trained) -> Views:
    from .train import trained_view

    yield trained_view(found)
    yield from _notes(found.notes)


def _patch(found: Patch) -> Views:
    from .patch import patch_view

    yield from _notes(found.notes)
    yield patch_view(found, "patch")


def _rules(rules: Sequence[str], *, unwrap: bool = False) -> Views:
    from .match import rule_lines

    yield from _plain(rule_lines(rules, unwrap=unwrap))


def _plain(lines: Iterable[str]) -> Views:
    """Yield lines that are never broken, so that they can be copied."""
    for line in lines:
        yield Text(line, no_wrap=True, overflow="ignore")


def _notes(notes: Iterable[str]) -> Views:
    notes = list(notes)
    if notes:
        yield notes_view(notes)


VIEWS: dict[str, Callable[..., Views]] = {
    "Changes": _changes,
    "Checkpoint": _checkpoint,
    "Difference": _difference,
    "Explained": _explained,
    "ExplainedMerge": _explained_merge,
    "Inspection": _inspection,
    "Patch": _patch,
    "Plan": _plan,
    "Proof": _proof,
    "LossBarrier": _barrier,
    "Fit": _fit,
    "Proposal": _proposal,
    "Receipt": _receipt,
    "CheckReport": _checked,
    "Scan": _scan,
    "SearchResult": _search,
    "Trained": _trained,
    "Verification": _verification,
}
