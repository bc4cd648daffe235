"""Steps of a plan as JSON, and back."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from .lora import Factor, Lora
from .merge import Merge
from .rows import Rows
from .step import MERGES, Input, Step, with_vocabularies

__all__ = ["read_step", "step_json", "step_texts", "text"]

OPS = (
    "copy", "slice", "pad", "overlap", "interpolate", "positions-1d", "positions-2d", "patch", "channels", "center",
    "map", "init", "keep", "lora", "factor", *MERGES,
)  # fmt: skip


def step_json(step: Step, names: Sequence[str]) -> dict[str, Any]:
    """Return a step as plain data; ``names`` are the sources'."""
    inputs = [_input_json(one, names) for one in step.inputs]
    origin, more = (inputs[0], inputs[1:]) if inputs else (None, [])
    several = {"more": more, "weights": list(step.weights) or None} if more else {}
    return {
        "key": step.key,
        "op": step.op,
        "class": step.kind,
        "from": origin,
        "rule": step.rule or None,
        "policy": step.policy or None,
        "reason": step.reason or None,
        "dtype": step.dtype,
        "shape": list(step.shape),
        "tied_to": step.tied_to or None,
        **({"operation": step.operation, "made_of": list(step.made_of)} if step.operation else {}),
        **({"axis": step.axis} if step.rows is not None or step.vocabularies else {}),
        **({"merge": step.merge.to_json()} if step.merge is not None else {}),
        **({"lora": step.lora.to_json()} if step.lora is not None else {}),
        **({"factor": step.factor.to_json()} if step.factor is not None else {}),
        **several,
    }


_dumps = json.JSONEncoder(sort_keys=True, separators=(",", ":")).encode
_FROM, _KEY = "\0from", "\0key"
MOST = 10_000
"""Different things said of steps that are kept."""


def step_texts(steps: Iterable[Step], names: Sequence[str]) -> Iterator[str]:
    """Yield the JSON of each step, its keys sorted. Most say one of a few things, each of which is spelled once."""
    spelled: dict[tuple[object, ...], tuple[str, str, list[str]]] = {}
    for step in steps:
        said = _said(step)
        if said is None or (said not in spelled and len(spelled) == MOST):
            yield _dumps(step_json(step, names))
            continue
        if said not in spelled:
            more = tuple(one._replace(key=_FROM) for one in step.more)
            text = _dumps(step_json(replace(step, source_key=_FROM, key=_KEY, more=more), names))
            before, middle, *others = text.split(_dumps(_FROM))
            between, _, after = middle.partition(_dumps(_KEY))
            spelled[said] = (before, between, [after, *others])
        (before, between, rest), origin = spelled[said], _dumps(step.source_key)
        yield f"{before}{origin}{between}{_dumps(step.key)}{origin.join(rest)}"


def _said(step: Step) -> tuple[object, ...] | None:
    """Return all that is written of a step but its keys, once for many alike; None where there is more."""
    if step.tied_to or step.operation or step.rows or step.lora or step.factor or step.vocabularies:
        return None
    if step.source is None or any(one.key != step.source_key for one in step.more):
        return None
    more = tuple((one.source, one.dtype, one.shape) for one in step.more)
    return (step.op, step.dtype, step.shape, step.source, step.source_dtype, step.source_shape, step.rule, step.policy,
            step.reason, more, step.weights, id(step.merge))  # fmt: skip


def _input_json(one: Input, names: Sequence[str]) -> dict[str, Any]:
    return {"source": names[one.source], "key": one.key, "dtype": one.dtype, "shape": list(one.shape)}


def _read_input(row: Mapping[str, Any], index: Mapping[str, int]) -> Input:
    return Input(index[row["source"]], text(row["key"]), text(row["dtype"]), tuple(map(int, row["shape"])))


def read_step(
    row: Mapping[str, Any], index: Mapping[str, int], rows: Rows | None, vocabularies: Sequence[Rows]
) -> Step:
    """Return the step that plain data spells; raises KeyError, TypeError or ValueError where it is none.

    ``index`` has the place of each source by its name, ``rows`` are the plan's, ``vocabularies`` those of its sources.
    """
    if row["op"] not in OPS:
        raise ValueError(f"unknown op {row['op']!r}")
    origin = row["from"] or {}
    step = Step(
        key=text(row["key"]),
        op=row["op"],
        dtype=text(row["dtype"]),
        shape=tuple(map(int, row["shape"])),
        source=index[origin["source"]] if origin else None,
        source_key=text(origin["key"]) if origin else "",
        source_dtype=text(origin["dtype"]) if origin else "",
        source_shape=tuple(map(int, origin["shape"])) if origin else (),
        rule=text(row["rule"] or ""),
        policy=text(row["policy"] or ""),
        reason=text(row["reason"] or ""),
        tied_to=text(row["tied_to"] or ""),
        more=tuple(_read_input(one, index) for one in row.get("more") or ()),
        weights=tuple(map(float, row.get("weights") or ())),
        operation=text(row.get("operation") or ""),
        made_of=tuple(map(text, row.get("made_of") or ())),
        rows=rows if row["op"] == "map" else None,
        axis=int(row.get("axis") or 0),
        merge=Merge.from_json(row.get("merge")),
        lora=Lora.from_json(row.get("lora")),
        factor=Factor.from_json(row.get("factor")),
    )
    return with_vocabularies(step, vocabularies)


def text(value: Any) -> str:
    """Return what is text; raises TypeError for anything else."""
    if not isinstance(value, str):
        raise TypeError(f"{value!r:.60} is no text")
    return value
