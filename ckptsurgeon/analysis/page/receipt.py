"""The columns of a page that say, from an output's recipe, how each tensor was made."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from math import prod
from typing import Any

from ...planning.plan.step import CLASSES
from ...planning.recipe import Recipe, RecipeEntry
from ...tensors.info import TensorInfo
from .columns import figure
from .html import LISTED, brief

__all__ = ["receipt_of"]


def receipt_of(recipe: Recipe, tensors: Mapping[str, TensorInfo]) -> dict[str, Any]:
    """Return the class, source and rule of each row; -1 for a row without a source or rule.

    ``part`` has the rows whose values come only partly from a source, with the part from 0 to 1. A tensor for which the
    recipe does not hold (because the file was changed later) has the class "". ``numbers`` has the full length of lists
    that are shortened.
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
    """Yield the rows whose values may come partly from a source, and that part."""
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
    """Return an index for each distinct word, in order of appearance."""
    found: dict[str, int] = {}
    for word in words:
        found.setdefault(word, len(found))
    return found


def _moved(key: str, made: RecipeEntry) -> bool:
    return made.source is not None and made.source_key != key


def _vocabulary(recipe: Recipe) -> list[Any]:
    """Return the names of both vocabularies, and how many tokens keep their row, move and are new; [] without them."""
    rows = recipe.rows
    if rows is None:
        return []
    return [rows.source, rows.destination, rows.size, len(rows.rows), rows.kept, rows.moved, rows.fresh, rows.new]
