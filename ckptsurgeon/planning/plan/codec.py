"""Plans as JSON, versioned: fields are added, never renamed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ...errors import ConfigError
from .check import check_plan
from .costs import Costs
from .merge import truth
from .plan import Carried, Equal, FilePrint, Plan, PlanCompanion, PlanSource, PlanTarget
from .rows import Rows, rows_of_each
from .step_codec import read_step, step_json, text

__all__ = ["plan_from_json", "plan_to_json"]

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
        "steps": [step_json(step, names) for step in plan.steps],
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
        **({"lists": list(target.lists)} if target.lists else {}),
        **({"notes": list(target.notes)} if target.notes else {}),
    }


def _read_companion(row: Mapping[str, Any]) -> PlanCompanion:
    return PlanCompanion(
        text(row["name"]), int(row["size"]), text(row["sha256"]), text(row.get("path", "")),
        text(row.get("text", "")),
    )  # fmt: skip


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
        **({"memory": True} if source.memory else {}),
        **({"operations": operations} if operations else {}),
        "files": [_print_json(file) for file in source.files],
        **({"beside": [_print_json(file) for file in source.beside]} if source.beside else {}),
    }


def _print_json(file: FilePrint) -> dict[str, Any]:
    row = {"name": file.name, "size": file.size, "sha256": file.sha256, "mtime_ns": file.mtime_ns}
    return {**row, **({"validator": file.validator} if file.validator else {})}


def _read_plan(data: Mapping[str, Any]) -> Plan:
    sources = tuple(
        PlanSource(
            text(s["name"]), text(s["path"]), text(s["root"]), tuple(map(text, s["stripped"])),
            _read_prints(s["files"]), text(s["role"]), tuple(map(dict, s.get("operations", ()))),
            truth(s.get("memory", False)), _read_prints(s.get("beside", ())),
        )
        for s in data["sources"]
    )  # fmt: skip
    index = {source.name: i for i, source in enumerate(sources)}
    target = data["target"]
    rows = Rows.from_json(data.get("vocabulary"))
    vocabularies = rows_of_each(data, len(sources))
    return Plan(
        verb=text(data["verb"]),
        sources=sources,
        target=PlanTarget(
            text(target["kind"]),
            text(target["name"]),
            text(target["config"]),
            _read_prints(target["files"]),
            tuple(_read_companion(row) for row in target.get("companions", ())),
            tuple(text(key) for key in target.get("implied", ())),
            text(target.get("weights", "")),
            tuple(text(path) for path in target.get("lists", ())),
            tuple(map(text, target.get("notes", ()))),
        ),
        steps=tuple(read_step(step, index, rows, vocabularies) for step in data["steps"]),
        unexpected=tuple((index[row["source"]], text(row["key"])) for row in data["unexpected"]),
        excluded=int(data["excluded"]),
        equal=tuple(Equal(index[e["source"]], text(e["first"]), text(e["second"])) for e in data["equal"]),
        carried=_read_carried(data.get("carried") or {}),
        rows=rows,
        vocabularies=vocabularies,
        seed=int(data["seed"]),
        arguments=dict(data["arguments"]),
        metadata={text(k): text(v) for k, v in data["metadata"].items()},
        notes=tuple(map(text, data["notes"])),
        costs=Costs.from_json(data.get("costs")),
    )


def _read_carried(row: Mapping[str, Any]) -> Carried:
    return Carried(text(row.get("root", "")), tuple(map(text, row.get("entries", ()))))


def _read_prints(rows: Sequence[Mapping[str, Any]]) -> tuple[FilePrint, ...]:
    return tuple(
        FilePrint(text(r["name"]), int(r["size"]), text(r["sha256"]), r["mtime_ns"], text(r.get("validator", "")))
        for r in rows
    )
