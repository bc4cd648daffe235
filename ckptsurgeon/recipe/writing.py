"""Recipes as text."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ..plan import FilePrint, PlanCompanion, PlanSource, PlanTarget
from .recipe import VERSION, Made, Recipe

__all__ = ["recipe_text"]


def recipe_text(recipe: Recipe) -> str:
    """Return a recipe as JSON; its length depends on neither the checksums nor the seal."""
    rules = {rule: number for number, rule in enumerate(_rules(recipe))}
    data = {
        "kind": "ckpt.recipe",
        "version": VERSION,
        "ckptsurgeon": recipe.version,
        "verb": recipe.verb,
        "arguments": dict(recipe.arguments),
        "seed": recipe.seed,
        "sources": [_source_json(source) for source in recipe.sources],
        "target": _target_json(recipe.target),
        **({"vocabulary": recipe.rows.to_json()} if recipe.rows is not None else {}),
        **({"vocabularies": [rows.to_json() for rows in recipe.vocabularies]} if recipe.vocabularies else {}),
        "metadata": dict(recipe.metadata or {}),
        "unexpected": [[source, key] for source, key in recipe.unexpected],
        **({"rules": list(rules)} if rules else {}),
        "tensors": {key: _made_json(key, made, rules) for key, made in recipe.tensors.items()},
        "seal": recipe.seal,  # the last entry: formats/_seal.py finds it at the end of the text
    }
    return json.dumps(data, separators=(",", ":"), ensure_ascii=True)


def _rules(recipe: Recipe) -> list[str]:
    """Return each rule once: one of them stands for thousands of tensors."""
    return list(dict.fromkeys(made.rule for made in recipe.tensors.values() if made.rule))


def _source_json(source: PlanSource) -> dict[str, Any]:
    return {
        "name": source.name,
        "role": source.role,
        "path": source.path,
        "root": source.root,
        "stripped": list(source.stripped),
        **({"operations": [dict(row) for row in source.operations]} if source.operations else {}),
        "files": [_file_json(file) for file in source.files],
    }


def _target_json(target: PlanTarget) -> dict[str, Any]:
    companions = [_file_json(one) for one in target.companions]
    return {
        "kind": target.kind,
        "name": target.name,
        "config": target.config,
        "files": [_file_json(file) for file in target.files],
        **({"companions": companions} if companions else {}),
    }


def _file_json(file: FilePrint | PlanCompanion) -> dict[str, Any]:
    row = {"name": file.name, "size": file.size, "sha256": file.sha256}
    validator = file.validator if isinstance(file, FilePrint) else ""
    return {**row, **({"validator": validator} if validator else {})}


def _made_json(key: str, made: Made, rules: Mapping[str, int]) -> dict[str, Any]:
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
    if made.rule:
        row["rule"] = rules[made.rule]
    if made.reason:
        row["reason"] = made.reason
    row["crc32"] = f"{made.crc32:08x}"
    return row
