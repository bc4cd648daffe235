"""Collects the content of a page, as plain data; for an output with a recipe, also the origin of each tensor."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from html import escape
from itertools import islice
from math import prod
from typing import TYPE_CHECKING, Any

from ...planning.plan.step import CLASSES
from ...planning.recipe import Recipe, RecipeEntry
from ...tensors.info import TensorInfo
from ...util.notes import is_serious
from ...util.short_repr import Brief
from ...util.text import count, listing, natural_key
from ...util.version import __version__
from ..adapter_settings import AdapterSettings
from ..check.report import CheckReport
from ..compare.changes import Changes
from ..compare.results import Difference
from ..inspection import Inspection
from ..merge_survey import MergeSurvey
from .columns import Table, changes_of, difference_of, figure, figures_of, rows_of_both
from .html import LISTED, brief
from .merging import merge_of
from .quantised_weights import coded_of
from .runs import Run

if TYPE_CHECKING:
    from ..stats import Stats

__all__ = ["Page", "PageContents", "contents_of", "receipt_of"]

TARGETS = 8
"""At most this many target modules of an adapter are named."""
NAMED = 50
"""At most this many tensors are listed for one finding of ``check``."""

# The columns that show how each tensor was made, from an output's recipe.


def receipt_of(recipe: Recipe, tensors: Mapping[str, TensorInfo]) -> dict[str, Any]:
    """Return the origin of the tensor of each row, from an output's recipe: its class, source and rule.

    The class is a word such as "copied". It is "" if the tensor is not in the recipe, because the file was changed
    later. The source is -1 for a tensor without a source. ``part`` lists the rows whose values come only partly from a
    source, with the share from 0 to 1. ``numbers`` has the full lengths of the lists that are shortened.
    """
    made = [recipe.tensors.get(key, NOTHING) for key in tensors]
    gone = [key for key in recipe.tensors if key not in tensors]
    kinds = [one.kind if one.kind in CLASSES else "" for one in made]
    classes, ops = _numbered(sorted(kinds, key=_rank)), _numbered(one.op for one in made)
    rules, policies = _numbered(one.rule for one in made), _numbered(one.policy for one in made)
    reasons = _numbered(one.reason for one in made)
    return {
        "verb": recipe.verb,
        "version": recipe.version,
        "seed": recipe.seed,
        "arguments": [[brief(name), brief(json.dumps(value))] for name, value in recipe.arguments.items()],
        "sources": [[one.name, one.path, one.role] for one in recipe.sources],
        "target": [recipe.target.kind, recipe.target.name],
        "vocabulary": _vocabulary(recipe),
        "classes": list(classes), "class": [classes[kind] for kind in kinds],
        "ops": list(ops), "op": [ops[one.op] for one in made],
        "rules": list(rules), "rule": [rules[one.rule] for one in made],
        "policies": list(policies), "policy": [policies[one.policy] for one in made],
        "reasons": list(reasons), "reason": [reasons[one.reason] for one in made],
        "from": [-1 if one.source is None else one.source for one in made],
        "part": [[row, share] for row, share in _parts(recipe, made, tensors.values()) if share < 1],
        "key": [[row, made[row].source_key] for row, key in enumerate(tensors) if _moved(key, made[row])],
        "more": [[row, *map(list, one.more)] for row, one in enumerate(made) if one.more],
        "weights": [[row, *map(figure, one.weights)] for row, one in enumerate(made) if one.weights],
        "method": [[row, one.merge.method] for row, one in enumerate(made) if one.merge is not None],
        "unexpected": [[source, brief(key)] for source, key in recipe.unexpected[:LISTED]],
        "gone": [brief(key) for key in gone[:LISTED]],
        "numbers": {"unexpected": len(recipe.unexpected), "gone": len(gone)},
    }  # fmt: skip


NOTHING = RecipeEntry("", "")


def _parts(recipe: Recipe, made: Iterable[RecipeEntry], tensors: Iterable[TensorInfo]) -> Iterator[tuple[int, float]]:
    """Yield (row, share) for each tensor that is kept, mapped by token, or copied in part.

    ``row`` is the tensor's index. ``share`` is the part of its values that comes from a source: from 0 for none to 1
    for all.
    """
    for row, (one, info) in enumerate(zip(made, tensors, strict=True)):
        elements = prod(info.shape)
        if one.kind == "kept":
            yield row, 0.0
        elif one.op == "map" and recipe.rows is not None:
            yield row, recipe.rows.share
        elif one.shared is not None and elements:
            yield row, min(max(one.shared, 0), elements) / elements


def _rank(kind: str) -> int:
    return CLASSES.index(kind) if kind in CLASSES else len(CLASSES)


def _numbered(words: Iterable[str]) -> dict[str, int]:
    """Return an index for each distinct word, from 0, in order of first appearance."""
    found: dict[str, int] = {}
    for word in words:
        found.setdefault(word, len(found))
    return found


def _moved(key: str, made: RecipeEntry) -> bool:
    return made.source is not None and made.source_key != key


def _vocabulary(recipe: Recipe) -> list[Any]:
    """Return [source vocabulary, destination vocabulary, source rows, destination rows, kept, moved, new, method].

    The vocabularies are names; ``kept``, ``moved`` and ``new`` count tokens; ``method`` says how the rows of new tokens
    were made. Returns [] if the output was made without vocabularies.
    """
    rows = recipe.rows
    if rows is None:
        return []
    return [rows.source, rows.destination, rows.size, len(rows.rows), rows.kept, rows.moved, rows.fresh, rows.new]


# The result of ``view``.


@dataclass(frozen=True, repr=False)
class Page(Brief):
    """A page as HTML. ``output`` is its path if it was written to a file; ``tensors`` is the number of its rows.

    ``merge`` has the figures of a page about a merge.
    """

    html: str = field(repr=False)
    tensors: int
    output: str | None = None
    notes: tuple[str, ...] = ()
    merge: MergeSurvey | None = None

    @property
    def nbytes(self) -> int:
        """The size of the page in bytes."""
        return len(self.html.encode("utf-8", "surrogatepass"))

    def to_json(self) -> dict[str, Any]:
        """Return the page's path, size and number of tensors as plain data, without the HTML."""
        return {
            "kind": "ckpt.view",
            "version": 1,
            "output": self.output,
            "tensors": self.tensors,
            "nbytes": self.nbytes,
            "notes": list(self.notes),
            **({"merge": self.merge.to_json()} if self.merge is not None else {}),
        }

    def _repr_html_(self) -> str:
        """Return HTML that shows the page in a frame, for notebooks."""
        return f'<iframe srcdoc="{escape(self.html)}" sandbox="allow-scripts" width="100%" height="640"></iframe>'


@dataclass(frozen=True)
class PageContents:
    """The content of a page. If the page compares two checkpoints, ``second`` and ``difference`` are set, too.

    ``report`` is the result of ``check``. ``changes`` are the changes of several models from their base, the first
    checkpoint. ``histograms`` maps keys to the counts of a histogram's bins. ``outermost`` maps keys of codes to the
    number of codes that are the lowest or the highest code, and the number of all. If there are two checkpoints,
    ``histograms``, ``outermost`` and all statistics describe the second.
    """

    inspection: Inspection | None
    second: Inspection | None = None
    difference: Difference | None = None
    recipe: Recipe | None = None
    run: Run | None = None
    report: CheckReport | None = None
    changes: Changes | None = None
    merge: MergeSurvey | None = None
    histograms: Mapping[str, Sequence[int]] = field(default_factory=dict)
    outermost: Mapping[str, tuple[int, int] | None] = field(default_factory=dict)


def contents_of(shown: PageContents) -> dict[str, Any]:
    """Return all data of a page as plain data."""
    about = [one for one in (shown.inspection, shown.second) if one is not None]
    rows = _rows(shown)
    table = Table(rows, _parameters(shown))
    data: dict[str, Any] = {
        "made": f"ckptsurgeon {__version__}",
        "sources": [_source(one) for one in about],
        "run": shown.run.to_json() if shown.run is not None else None,
        "receipt": receipt_of(shown.recipe, rows) if shown.recipe is not None else None,
        "difference": None,
        "changes": None,
        "merge": merge_of(shown.merge) if shown.merge is not None else None,
        "figures": None,
        "coded": coded_of(about[-1], table.places, shown.outermost) if about else None,
        "check": _checked(shown.report) if shown.report is not None else None,
    }
    if shown.difference is not None and shown.inspection is not None:
        data["difference"] = difference_of(shown.difference, table)
    if shown.changes is not None and shown.inspection is not None:
        coded = {one.name: one.codes for one in shown.inspection.codes.tensors}
        data["changes"] = changes_of(shown.changes, coded, table.places)
    stats = _stats(about)
    if stats is not None:
        data["figures"] = figures_of(stats, shown.histograms, table.places)
    return {**data, "tensors": table.to_json(_ties(shown))}


def _rows(shown: PageContents) -> dict[str, TensorInfo]:
    """Return the tensors of a page in natural order: ``layers.2`` before ``layers.10``."""
    tensors: dict[str, TensorInfo] = {}
    if shown.inspection is not None:
        tensors |= shown.inspection.tensors
    if shown.inspection is not None and shown.second is not None and shown.difference is not None:
        tensors = rows_of_both(shown.difference, shown.inspection, shown.second)
    return {key: tensors[key] for key in sorted(tensors, key=natural_key)}


def _parameters(shown: PageContents) -> Callable[[str, TensorInfo], int]:
    """Return a function that counts the parameters of a tensor, from the second checkpoint if there are two."""
    last = shown.second or shown.inspection
    return last.codes.parameters if last is not None else lambda key, info: info.parameters


def _ties(shown: PageContents) -> dict[str, str]:
    """Return a mapping from each tied key to the first key of the same tensor.

    If there are two checkpoints, it has the ties of the second, and the ties of the first whose keys the second lacks.
    """
    first, second = shown.inspection, shown.second
    if first is None or second is None:
        return dict(first.ties) if first is not None else {}
    gone = {key: owner for key, owner in first.ties.items() if not {key, owner} & second.tensors.keys()}
    return {**gone, **second.ties}


def _stats(about: Sequence[Inspection]) -> Mapping[str, Stats | None] | None:
    """Return the statistics of the tensors of one or two checkpoints, by key; None if none were computed.

    For a tensor with codes of a quantised weight, they are the statistics of the dequantised weight.
    """
    found = [one for one in about if one.stats is not None]
    return {key: stats for one in found for key, stats in _measured(one).items()} if found else None


def _measured(one: Inspection) -> dict[str, Stats | None]:
    weights = {coded.codes: one.decoded[coded.name] for coded in one.codes.tensors if coded.name in one.decoded}
    return {**(one.stats or {}), **weights}


def _source(one: Inspection) -> dict[str, Any]:
    return {
        "path": one.path,
        "said": [brief(said) for said in _description(one)],
        "format": one.format,
        "root": one.root,
        "other_roots": list(one.passed[:LISTED]),
        "stripped": list(one.stripped),
        "nbytes_files": one.nbytes_files,
        "tensors": len(one.tensors),
        "parameters": one.parameters_at_least,
        "counted": one.parameters is not None,
        "nbytes": one.nbytes,
        "extras": [[brief(extra.key), brief(extra.type), _said(extra.value)] for extra in one.extras[:LISTED]],
        "metadata": [[brief(key), brief(value)] for key, value in islice(one.metadata.items(), LISTED)],
        "more": {"extras": len(one.extras[LISTED:]), "metadata": max(0, len(one.metadata) - LISTED)},
        "notes": [brief(note) for note in sorted(one.notes, key=is_serious, reverse=True)[:LISTED]],
        "serious": sum(map(is_serious, one.notes)),
    }


def _description(one: Inspection) -> list[str]:
    """Return a description of a checkpoint: its model, its adapter and its quantised tensors, as far as known."""
    said = [str(replace(one.model, parameters=None))] if one.model is not None else []  # the head has the parameters
    if one.adapter is not None:
        said.append(_adapter(one.adapter))
    said += [f"{count(number, 'tensor')} {method}" for method, number in one.codes.methods().items()]
    return said + ([count(len(one.ties), "tied tensor")] if one.ties else [])


def _adapter(found: AdapterSettings) -> str:
    """Return an adapter's settings: ``LoRA, rank 8, alpha 16, q_proj, v_proj, base org/model``."""
    numbers = [f"{name} {value:g}" for name, value in (("rank", found.rank), ("alpha", found.alpha)) if value]
    numbers += [count(found.modules, "module")] if found.modules is not None else []
    targets = [listing(found.target_modules, TARGETS, where="")] if found.target_modules else []
    return ", ".join([found.kind, *numbers, *targets, *([f"base {found.base_model}"] if found.base_model else [])])


def _checked(report: CheckReport) -> dict[str, Any]:
    """Return the results of ``check`` as plain data, with lists of bounded length."""
    rows = [
        {
            "id": row.id,
            "title": row.title,
            "status": row.status.value,
            "why": row.why,
            "found": [
                {
                    "status": one.status.value,
                    "what": brief(one.what),
                    "todo": brief(one.todo),
                    "keys": [brief(key) for key in one.keys[:NAMED]],
                }
                for one in row.found[:LISTED]
            ],
        }
        for row in report.rows
    ]
    return {"verdict": report.verdict.value, "rows": rows}


def _said(value: object) -> str | None:
    """Return a value as a string, shortened if it is long; None if the value is None."""
    return None if value is None else brief(value if isinstance(value, str) else str(value))
