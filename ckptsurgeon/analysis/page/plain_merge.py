"""The main figures of a page about a merge as plain tables of HTML, for browsers that run no JavaScript."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from html import escape as html_escape
from itertools import islice

from ...util.text import count, escape, natural_key, percent_number
from ..compare.changes import ChangeSums, TensorChanges, layer_of, pairs_of, summed, weights_of
from ..merge_survey import MergeSurvey, MethodSurvey
from .html import brief

__all__ = ["plain_merge"]

ROWS = 200
"""At most this many layers and roles are listed; the others are counted."""
COLUMNS = 6
"""At most this many models, and pairs of models, have columns."""
LONGEST = 200
"""The largest number of characters of a name."""
ENDS = (".weight", ".bias")


def plain_merge(found: MergeSurvey) -> str:
    """Return tables of the changes by layer and role, and of the result of each method, as HTML without a style."""
    models = [f"model {number}" for number in range(1, len(found.changes.models) + 1)][:COLUMNS]
    names = "".join(
        f"<li>{_text(name)}</li>" for name in islice(found.changes.models, COLUMNS)
    )  # fmt: skip
    parts = [f"<p>Changes from {_text(found.changes.base)} of:</p><ol>{names}</ol>", *_left_out(found, len(models))]
    parts.append(_layers(found, models))
    if methods := [one for one in found.methods if not one.why]:
        parts.append(_methods(methods, models))
    if others := [f"{_text(one.method)} ({_text(one.why)})" for one in found.methods if one.why]:
        parts.append(f"<p>Not tried: {', '.join(others)}.</p>")
    return "".join(parts)


def _left_out(found: MergeSurvey, shown: int) -> Iterator[str]:
    """Yield a paragraph on further models, and one on further pairs of the first ``shown`` models: without columns."""
    models, pairs = len(found.changes.models) - shown, len(pairs_of(range(shown))) - COLUMNS
    if models > 0:
        yield f"<p>And {count(models, 'more model')}, without columns.</p>"
    if pairs > 0:
        yield f"<p>The table has no columns for {count(pairs, 'other pair')} of the models in this list.</p>"


def _layers(found: MergeSurvey, models: Sequence[str]) -> str:
    """Return the table of changes by layer and role, with the whole model in its first row."""
    groups: dict[tuple[str, str], list[TensorChanges]] = {}
    for one in sorted(weights_of(found.changes.tensors), key=lambda one: natural_key(one.key)):
        layer = layer_of(one.key)
        groups.setdefault((layer, _role(one.key, layer)), []).append(one)
    pairs = pairs_of(range(len(models)))[:COLUMNS]
    head = ["layer", "role", *(f"change of {name}" for name in models)]
    for first, second in pairs:
        head += [f"cosine of {first + 1} and {second + 1}", f"same sign of {first + 1} and {second + 1}"]
    rows = [["all", "", *_figures(found.changes.total, len(models), pairs)]]
    for (layer, role), some in islice(groups.items(), ROWS):
        rows.append([layer, role, *_figures(summed(one.sums for one in some), len(models), pairs)])
    more = len(groups) - ROWS
    rest = f"<p>And {count(more, 'more row')}.</p>" if more > 0 else ""
    return _table("Changes by layer and role", head, rows) + rest


def _role(key: str, layer: str) -> str:
    rest = key[len(layer) + 1 :]
    return next((rest.removesuffix(end) for end in ENDS if rest.endswith(end)), rest)


def _figures(sums: ChangeSums, models: int, pairs: Iterable[tuple[int, int]]) -> Iterator[str]:
    for index in range(models):
        one = sums.models.get(index)
        yield _percent(one.relative if one is not None else None)
    for pair in pairs:
        agreement = sums.pairs.get(pair)
        cosine = agreement.cosine if agreement is not None else None
        yield "-" if cosine is None else f"{cosine:.2f}"
        yield _percent(agreement.share_of_same_sign if agreement is not None else None)


def _methods(methods: Iterable[MethodSurvey], models: Sequence[str]) -> str:
    head = ["method", "norm", *(f"kept of {name}" for name in models)]
    rows = [
        [
            f"{one.method}{' (planned)' if one.is_planned else ''}",
            "-" if one.norm is None else f"{one.norm:.2f}",
            *(_percent(model.kept) for model in one.models[: len(models)]),
        ]
        for one in methods
    ]
    return _table("What methods keep of each change, from samples", head, rows)


def _table(title: str, head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    first = "".join(f"<th>{_text(one)}</th>" for one in head)
    lines = ("".join(f"<td>{_text(one)}</td>" for one in row) for row in rows)
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f"<table><caption>{_text(title)}</caption><tr>{first}</tr>{body}</table>"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{percent_number(share)} %"


def _text(text: str) -> str:
    """Return untrusted text, escaped for HTML: no tag can begin in it."""
    return html_escape(escape(brief(text, LONGEST)))
