"""The recipe: what made an output, carried by the output itself.

Version, verb, arguments, seed, sources (name, path relative to the output, size, header SHA-256), what became of
each tensor and its CRC-32. No times, no absolute paths: the same inputs give the same bytes. The seal is a digest
over everything in the output that is not a tensor.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from .errors import VerifyError
from .formats import UNSEALED
from .plan import Factor, FilePrint, Lora, Merge, Plan, PlanCompanion, PlanSource, PlanTarget, Rows, Step, rows_of_each

__all__ = ["Made", "Recipe", "made_of", "make_recipe", "parse_recipe", "recipe_text"]

VERSION = 1


@dataclass(frozen=True, slots=True)
class Made:
    """What a recipe says of one tensor: how it came about, from which source, and its CRC-32.

    ``more`` are (source, key) of further inputs, ``weights`` what each counts, ``axis`` where a vocabulary runs along.
    ``merge`` is the method that merged them, ``lora`` what adapters did, ``factor`` which factor it is. ``implied`` is
    set where the output leaves the name to its reader, who ties it.
    """

    op: str
    kind: str
    source: int | None = None
    source_key: str = ""
    policy: str = ""
    tied_to: str = ""
    crc32: int = 0
    more: tuple[tuple[int, str], ...] = ()
    weights: tuple[float, ...] = ()
    axis: int = 0
    implied: bool = False
    merge: Merge | None = None
    lora: Lora | None = None
    factor: Factor | None = None


@dataclass(frozen=True)
class Recipe:
    """A recipe as data. Paths of ``sources`` and ``target`` are relative to the output's folder."""

    version: str
    verb: str
    seed: int
    arguments: Mapping[str, Any]
    sources: tuple[PlanSource, ...]
    target: PlanTarget
    tensors: Mapping[str, Made]
    unexpected: tuple[tuple[int, str], ...] = ()
    metadata: Mapping[str, str] | None = None
    rows: Rows | None = None
    vocabularies: tuple[Rows, ...] = ()
    seal: str = UNSEALED

    def with_checksums(self, checksums: Mapping[str, int]) -> Recipe:
        """Return the recipe with the CRC-32 of every tensor."""
        made = {key: replace(tensor, crc32=checksums[key]) for key, tensor in self.tensors.items()}
        return replace(self, tensors=made)


def make_recipe(plan: Plan, output: str, version: str) -> Recipe:
    """Return the recipe of a plan's output at ``output``, its checksums still zero."""
    folder = os.path.dirname(os.path.abspath(output))
    tensors = {step.key: made_of(step) for step in plan.steps}
    target = replace(
        plan.target,
        config=_relative(plan.target.config, folder),
        files=tuple(replace(_timeless(file), name=_relative(file.name, folder)) for file in plan.target.files),
    )
    return Recipe(
        version=version,
        verb=plan.verb,
        seed=plan.seed,
        arguments=plan.arguments,
        sources=tuple(_relocated(source, folder) for source in plan.sources),
        target=target,
        tensors=tensors,
        unexpected=plan.unexpected,
        metadata=plan.metadata,
        rows=plan.rows,
        vocabularies=plan.vocabularies,
    )


def made_of(step: Step) -> Made:
    """Return what a recipe says of a step, its checksum still zero."""
    more = tuple((one.source, one.key) for one in step.more)
    return Made(
        step.op, step.kind, step.source, step.source_key, step.policy, step.tied_to, more=more, weights=step.weights,
        axis=step.axis, merge=step.merge, lora=step.lora, factor=step.factor,
    )  # fmt: skip


def _relative(path: str, folder: str) -> str:
    if not path or "://" in path:
        return path
    return os.path.relpath(os.path.abspath(path), folder)


def _timeless(file: FilePrint) -> FilePrint:
    return replace(file, mtime_ns=None)


def _relocated(source: PlanSource, folder: str) -> PlanSource:
    files = tuple(_timeless(file) for file in source.files)
    return replace(source, path=_relative(source.path, folder), files=files)


def recipe_text(recipe: Recipe) -> str:
    """Return a recipe as JSON; its length depends on neither the checksums nor the seal."""
    data = {
        "kind": "ckpt.recipe",
        "version": VERSION,
        "ckptsurgeon": recipe.version,
        "verb": recipe.verb,
        "arguments": dict(recipe.arguments),
        "seed": recipe.seed,
        "sources": [
            {
                "name": source.name,
                "role": source.role,
                "path": source.path,
                "root": source.root,
                "stripped": list(source.stripped),
                **({"operations": [dict(row) for row in source.operations]} if source.operations else {}),
                "files": [_file_json(file) for file in source.files],
            }
            for source in recipe.sources
        ],
        "target": {
            "kind": recipe.target.kind,
            "name": recipe.target.name,
            "config": recipe.target.config,
            "files": [_file_json(file) for file in recipe.target.files],
            **(
                {"companions": [_file_json(one) for one in recipe.target.companions]}
                if recipe.target.companions
                else {}
            ),
        },
        **({"vocabulary": recipe.rows.to_json()} if recipe.rows is not None else {}),
        **({"vocabularies": [rows.to_json() for rows in recipe.vocabularies]} if recipe.vocabularies else {}),
        "metadata": dict(recipe.metadata or {}),
        "unexpected": [[source, key] for source, key in recipe.unexpected],
        "tensors": {key: _made_json(key, made) for key, made in recipe.tensors.items()},
        "seal": recipe.seal,  # the last entry: formats/_seal.py finds it at the end of the text
    }
    return json.dumps(data, separators=(",", ":"), ensure_ascii=True)


def _file_json(file: FilePrint | PlanCompanion) -> dict[str, Any]:
    return {"name": file.name, "size": file.size, "sha256": file.sha256}


def _made_json(key: str, made: Made) -> dict[str, Any]:
    row: dict[str, Any] = {"class": made.kind}
    if made.op != "copy":
        row["op"] = made.op
    if made.source is not None:
        row["from"] = [made.source] if made.source_key == key else [made.source, made.source_key]
    if made.policy:
        row["policy"] = made.policy
    if made.tied_to:
        row["tied_to"] = made.tied_to
    if made.more:
        row["more"] = [[source] if other == key else [source, other] for source, other in made.more]
    if made.weights:
        row["weights"] = list(made.weights)
    if made.axis:
        row["axis"] = made.axis
    if made.merge is not None:
        row["merge"] = made.merge.to_json()
    if made.lora is not None:
        row["lora"] = made.lora.to_json()
    if made.factor is not None:
        row["factor"] = made.factor.to_json()
    if made.implied:
        row["implied"] = True
    row["crc32"] = f"{made.crc32:08x}"
    return row


def parse_recipe(text: str) -> Recipe:
    """Return the recipe that a text spells; raises VerifyError where it is damaged."""
    try:
        data = json.loads(text)
        if data["kind"] != "ckpt.recipe" or data["version"] != VERSION:
            raise ValueError(f"it is {data['kind']} {data['version']}")
        return Recipe(
            version=str(data["ckptsurgeon"]),
            verb=str(data["verb"]),
            seed=int(data["seed"]),
            arguments=dict(data["arguments"]),
            sources=tuple(_read_source(row) for row in data["sources"]),
            target=PlanTarget(
                str(data["target"]["kind"]), str(data["target"]["name"]), str(data["target"]["config"]),
                tuple(_read_file(row) for row in data["target"]["files"]),
                tuple(_read_companion(row) for row in data["target"].get("companions", ())),
            ),
            tensors={str(key): _read_made(str(key), row) for key, row in data["tensors"].items()},
            unexpected=tuple((int(source), str(key)) for source, key in data["unexpected"]),
            metadata={str(k): str(v) for k, v in data["metadata"].items()},
            rows=Rows.from_json(data.get("vocabulary")),
            vocabularies=rows_of_each(data, len(data["sources"])),
            seal=str(data["seal"]),
        )  # fmt: skip
    except (ValueError, KeyError, TypeError, OverflowError, AttributeError, IndexError, RecursionError) as error:
        why = f"{type(error).__name__} {error}"
        raise VerifyError(f"its recipe is damaged, or is none of ckptsurgeon's ({why}).") from error


def _read_source(row: Mapping[str, Any]) -> PlanSource:
    return PlanSource(
        str(row["name"]), str(row["path"]), str(row["root"]), tuple(map(str, row["stripped"])),
        tuple(_read_file(file) for file in row["files"]), str(row["role"]),
        tuple(map(dict, row.get("operations", ()))),
    )  # fmt: skip


def _read_file(row: Mapping[str, Any]) -> FilePrint:
    return FilePrint(str(row["name"]), int(row["size"]), str(row["sha256"]))


def _read_companion(row: Mapping[str, Any]) -> PlanCompanion:
    companion = PlanCompanion(str(row["name"]), int(row["size"]), str(row["sha256"]))
    if not companion.is_plain:
        raise ValueError(f"a companion {companion.name!r:.80}")
    return companion


def _read_made(key: str, row: Mapping[str, Any]) -> Made:
    origin = row.get("from")
    return Made(
        op=str(row.get("op", "copy")),
        kind=str(row["class"]),
        source=int(origin[0]) if origin else None,
        source_key=(str(origin[1]) if len(origin) > 1 else key) if origin else "",
        policy=str(row.get("policy", "")),
        tied_to=str(row.get("tied_to", "")),
        crc32=int(row["crc32"], 16),
        more=tuple((int(one[0]), str(one[1]) if len(one) > 1 else key) for one in row.get("more", ())),
        weights=tuple(map(float, row.get("weights", ()))),
        axis=int(row.get("axis", 0)),
        implied=bool(row.get("implied", False)),
        merge=Merge.from_json(row.get("merge")),
        lora=Lora.from_json(row.get("lora")),
        factor=Factor.from_json(row.get("factor")),
    )
