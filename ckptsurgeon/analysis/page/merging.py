"""The view Merge of a page: layers in which models oppose each other, and the results of merge methods."""

from __future__ import annotations

from typing import Any

from ..merge_survey import MOST, NAMED, MergeSurvey, MethodSurvey
from .columns import figure
from .html import LISTED, brief

__all__ = ["merge_of"]


def merge_of(found: MergeSurvey) -> dict[str, Any]:
    """Return the content of the view as plain data, without the changes of the models."""
    return {
        "conflicts": [
            [
                brief(one.name),
                list(one.pair),
                figure(one.weight),
                figure(one.agreement.cosine),
                figure(one.agreement.share_of_same_sign),
                [brief(tensor.name) for tensor in one.tensors[:NAMED]],
                len(one.tensors[NAMED:]),
            ]
            for one in found.conflicts[:MOST]
        ],
        "more_conflicts": len(found.conflicts[MOST:]),
        "opposition": figure(found.opposition),
        "methods": [_method(one) for one in found.methods if not one.why],
        "not_tried": [[brief(one.method), brief(one.why)] for one in found.methods if one.why],
        "not_compared": [[brief(key), brief(why)] for key, why in list(found.changes.not_compared.items())[:LISTED]],
        "more_not_compared": max(0, len(found.changes.not_compared) - LISTED),
        "sampled": found.sampled,
        "values": found.values,
    }


def _method(one: MethodSurvey) -> list[Any]:
    """Return [name, text of its parameters, true for the plan's method, norm, shares of each model]."""
    said = [f"{name}={_value(value)}" for name, value in one.parameters.items()]
    models = [[figure(model.trimmed), figure(model.elected), figure(model.kept)] for model in one.models]
    return [brief(one.method), [brief(each) for each in said], one.is_planned, figure(one.norm), models]


def _value(value: object) -> str:
    if isinstance(value, tuple):
        return ",".join(map(_value, value))
    return f"{value:g}" if isinstance(value, float) else str(value).lower() if isinstance(value, bool) else str(value)
