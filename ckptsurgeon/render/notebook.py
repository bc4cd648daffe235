"""Results in a notebook: which view is whose, and what of it the terminal would show."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING
from weakref import ref

from rich.console import RenderableType
from rich.text import Text

from .html import Lines, html_of_lines, lines_of, text_of_lines
from .notes import notes_view

if TYPE_CHECKING:
    from ..analysis.compare.difference import Difference
    from ..analysis.explain.facts import Explained
    from ..analysis.inspect.inspection import Inspection
    from ..analysis.match.proposal import Proposal
    from ..analysis.scan.base.findings import Scan
    from ..checkpoint.checkpoint import Checkpoint
    from ..planning.plan.plan import Plan
    from ..planning.plan.receipt import Receipt, Verification
    from ..trainer.run.result import Trained

__all__ = ["html_of", "text_of"]

Views = Iterator[RenderableType]


def html_of(result: object) -> str:
    """Return what a notebook shows of a result."""
    return html_of_lines(_lines_of(result))


def text_of(result: object) -> str:
    """Return the same as text."""
    return text_of_lines(_lines_of(result))


class _Last:
    """The lines of the result that was shown last: a notebook asks for the text and for the HTML of each."""

    shown: tuple[ref[object], Lines] | None = None


def _lines_of(result: object) -> Lines:
    if _Last.shown is not None and _Last.shown[0]() is result:
        return _Last.shown[1]
    lines = lines_of(_views(result))
    _Last.shown = ref(result), lines
    return lines


def _views(result: object) -> Views:
    """Return the views of a result, by the name of its class: to look at the classes would import them all."""
    return next(VIEWS[kind.__name__] for kind in type(result).__mro__ if kind.__name__ in VIEWS)(result)


def _checkpoint(found: Checkpoint) -> Views:
    from ..analysis.inspect.inspection import inspection_of

    yield from _inspection(inspection_of(found))


def _inspection(found: Inspection) -> Views:
    from .inspect import inspection_view
    from .stats import stats_view

    yield inspection_view(found)
    if found.stats is not None:
        yield ""
        yield stats_view(found)


def _plan(found: Plan) -> Views:
    from .plan import plan_view

    yield from _notes(found.notes)
    yield plan_view(found)


def _receipt(found: Receipt) -> Views:
    from .receipt import counts_line, receipt_view

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


def _proposal(found: Proposal) -> Views:
    from .match import proposal_view

    yield from _rules(found.rules)
    yield proposal_view(found)
    yield from _notes(found.notes)


def _scan(found: Scan) -> Views:
    from .scan import scan_view

    yield scan_view(found)


def _explained(found: Explained) -> Views:
    from .explanation import explained_view

    yield explained_view(found)


def _trained(found: Trained) -> Views:
    from .train import trained_view

    yield trained_view(found)


def _rules(rules: Sequence[str], *, unwrap: bool = False) -> Views:
    from .match import rule_lines

    for line in rule_lines(rules, unwrap=unwrap):
        yield Text(line, no_wrap=True, overflow="ignore")


def _notes(notes: Iterable[str]) -> Views:
    notes = list(notes)
    if notes:
        yield notes_view(notes)


VIEWS: dict[str, Callable[..., Views]] = {
    "Checkpoint": _checkpoint,
    "Difference": _difference,
    "Explained": _explained,
    "Inspection": _inspection,
    "Plan": _plan,
    "Proposal": _proposal,
    "Receipt": _receipt,
    "Scan": _scan,
    "Trained": _trained,
    "Verification": _verification,
}
