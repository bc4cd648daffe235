"""Plans as JSON, versioned: fields are added, never renamed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import ConfigError
from .check import check_plan
from .costs import Costs
from .lora import Factor, Lora
from .merge import Merge
from .plan import Carried, Equal, FilePrint, Plan, PlanCompanion, PlanSource, PlanTarget
from .rows import Rows, rows_of_each
from .step import MERGES, Input, Step, with_vocabularies

__all__ = ["plan_from_json", "plan_to_json"]

OPS = (
    "copy", "slice", "pad", "overlap", "interpolate", "positions-1d", "positions-2d", "patch", "channels", "center",
    "map", "init", "keep", "lora", "factor", *MERGES,
)  # fmt: skip
VERSION = 1


def plan_to_json(plan: Plan) -> dict[str, Any]:
    """Return a plan as plain data."""
    names = [source.name for source in plan.sources]
    return {
        "kind": "ckpt.plan",
        "version": VERSION,
        "verb": plan.verb,
        "seed": plan.seed,
        "arguments": dict(plan.arguments),
        "sources": [_source_json(source) for source in plan.sources],
        "target": {
            "kind": plan.target.kind,
            "name": plan.target.name,
            "config": plan.target.config,
            "files": [_print_json(file) for file in plan.target.files],
            **_companions_json(plan.target),
        },
        "steps": [_step_json(step, names) for step in plan.steps],
        "unexpected": [{"source": names[i], "key": key} for i, key in plan.unexpected],
        "excluded": plan.excluded,
        "equal": [{"source": names[e.source], "first": e.first, "second": e.second} for e in plan.equal],
        **({"vocabulary": plan.rows.to_json()} if plan.rows is not None else {}),
        **({"vocabularies": [rows.to_json() for rows in plan.vocabularies]} if plan.vocabularies else {}),
        "carried": {"root": plan.carried.root, "entries": list(plan.carried.entries)},
        "counts": plan.counts,
        **({"costs": plan.costs.to_json()} if plan.costs is not None else {}),
        "metadata": dict(plan.metadata),
        "notes": list(plan.notes),
    }


def _companions_json(target: PlanTarget) -> dict[str, Any]:
    rows = [
        {"name": one.name, "size": one.size, "sha256": one.sha256}
        | ({"path": one.path} if one.path else {"text": one.text})
        for one in target.companions
    ]
    return {
        **({"companions": rows} if rows else {}),
        **({"implied": list(target.implied)} if target.implied else {}),
        **({"weights": target.weights} if target.weights else {}),
    }


def _read_companion(row: Mapping[str, Any]) -> PlanCompanion:
    return PlanCompanion(
        _text(row["name"]), int(row["size"]), _text(row["sha256"]), _text(row.get("path", "")),
        _text(row.get("text", "")),
    )  # fmt: skip


def _step_json(step: Step, names: Sequence[str]) -> dict[str, Any]:
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


def _input_json(one: Input, names: Sequence[str]) -> dict[str, Any]:
    return {"source": names[one.source], "key": one.key, "dtype": one.dtype, "shape": list(one.shape)}


def _read_input(row: Mapping[str, Any], index: Mapping[str, int]) -> Input:
    return Input(index[row["source"]], _text(row["key"]), _text(row["dtype"]), tuple(map(int, row["shape"])))


def plan_from_json(data: Any) -> Plan:
    """Return the plan that plain data spells; raises ConfigError where it is none."""
    if not isinstance(data, dict) or data.get("kind") != "ckpt.plan":
        raise ConfigError("this is not a plan.", hint="Make one with -n --json, as in ckpt transplant … -n --json.")
    if data.get("version") != VERSION or isinstance(data["version"], bool):
        raise ConfigError(f"the plan is of version {data.get('version')!r}; this program reads {VERSION}.")
    try:
        plan = _read_plan(data)
        check_plan(plan, data)
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
        raise ConfigError(f"the plan is malformed: {type(error).__name__} {error}.") from error
    return plan


def _source_json(source: PlanSource) -> dict[str, Any]:
    operations = [dict(row) for row in source.operations]
    return {
        "name": source.name,
        "role": source.role,
        "path": source.path,
        "root": source.root,
        "stripped": list(source.stripped),
        **({"operations": operations} if operations else {}),
        "files": [_print_json(file) for file in source.files],
    }


def _print_json(file: FilePrint) -> dict[str, Any]:
    return {"name": file.name, "size": file.size, "sha256": file.sha256, "mtime_ns": file.mtime_ns}


def _read_plan(data: Mapping[str, Any]) -> Plan:
    sources = tuple(
        PlanSource(
            _text(s["name"]), _text(s["path"]), _text(s["root"]), tuple(map(_text, s["stripped"])),
            _read_prints(s["files"]), _text(s["role"]), tuple(map(dict, s.get("operations", ()))),
        )
        for s in data["sources"]
    )  # fmt: skip
    index = {source.name: i for i, source in enumerate(sources)}
    target = data["target"]
    rows = Rows.from_json(data.get("vocabulary"))
    vocabularies = rows_of_each(data, len(sources))
    return Plan(
        verb=_text(data["verb"]),
        sources=sources,
        target=PlanTarget(
            _text(target["kind"]),
            _text(target["name"]),
            _text(target["config"]),
            _read_prints(target["files"]),
            tuple(_read_companion(row) for row in target.get("companions", ())),
            tuple(_text(key) for key in target.get("implied", ())),
            _text(target.get("weights", "")),
        ),
        steps=tuple(_read_step(step, index, rows, vocabularies) for step in data["steps"]),
        unexpected=tuple((index[row["source"]], _text(row["key"])) for row in data["unexpected"]),
        excluded=int(data["excluded"]),
        equal=tuple(Equal(index[e["source"]], _text(e["first"]), _text(e["second"])) for e in data["equal"]),
        carried=_read_carried(data.get("carried") or {}),
        rows=rows,
        vocabularies=vocabularies,
        seed=int(data["seed"]),
        arguments=dict(data["arguments"]),
        metadata={_text(k): _text(v) for k, v in data["metadata"].items()},
        notes=tuple(map(_text, data["notes"])),
        costs=Costs.from_json(data.get("costs")),
    )


def _read_carried(row: Mapping[str, Any]) -> Carried:
    return Carried(_text(row.get("root", "")), tuple(map(_text, row.get("entries", ()))))


def _read_prints(rows: Sequence[Mapping[str, Any]]) -> tuple[FilePrint, ...]:
    return tuple(FilePrint(_text(r["name"]), int(r["size"]), _text(r["sha256"]), r["mtime_ns"]) for r in rows)


def _read_step(
    row: Mapping[str, Any], index: Mapping[str, int], rows: Rows | None, vocabularies: Sequence[Rows]
) -> Step:
    if row["op"] not in OPS:
        raise ValueError(f"unknown op {row['op']!r}")
    origin = row["from"] or {}
    step = Step(
        key=_text(row["key"]),
        op=row["op"],
        dtype=_text(row["dtype"]),
        shape=tuple(map(int, row["shape"])),
        source=index[origin["source"]] if origin else None,
        source_key=_text(origin["key"]) if origin else "",
        source_dtype=_text(origin["dtype"]) if origin else "",
        source_shape=tuple(map(int, origin["shape"])) if origin else (),
        rule=_text(row["rule"] or ""),
        policy=_text(row["policy"] or ""),
        reason=_text(row["reason"] or ""),
        tied_to=_text(row["tied_to"] or ""),
        more=tuple(_read_input(one, index) for one in row.get("more") or ()),
        weights=tuple(map(float, row.get("weights") or ())),
        operation=_text(row.get("operation") or ""),
        made_of=tuple(map(_text, row.get("made_of") or ())),
        rows=rows if row["op"] == "map" else None,
        axis=int(row.get("axis") or 0),
        merge=Merge.from_json(row.get("merge")),
        lora=Lora.from_json(row.get("lora")),
        factor=Factor.from_json(row.get("factor")),
    )
    return with_vocabularies(step, vocabularies)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r:.60} is no text")
    return value
