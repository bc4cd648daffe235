"""Recipes from text, which may be damaged, or of anything."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ...errors import VerifyError
from ...storage.json_text import read_json
from ..plan.lora import Factor, Lora
from ..plan.merge import Merge
from ..plan.plan import FilePrint, PlanCompanion, PlanSource, PlanTarget
from ..plan.rows import Rows, rows_of_each
from .recipe import VERSION, Made, Recipe

__all__ = ["parse_recipe"]


def parse_recipe(text: str) -> Recipe:
    """Return the recipe that a text spells; raises VerifyError where it is damaged."""
    try:
        data = read_json(text)
        if data["kind"] != "ckpt.recipe" or data["version"] != VERSION:
            raise ValueError(f"it is {data['kind']} {data['version']}")
        rules = tuple(map(str, data.get("rules", ())))
        merges = tuple(map(Merge.from_json, data.get("merges", ())))
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
            tensors={str(key): _read_made(str(key), row, rules, merges) for key, row in data["tensors"].items()},
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
        tuple(map(dict, row.get("operations", ()))), bool(row.get("memory", False)),
        tuple(_read_file(file) for file in row.get("beside", ())),
    )  # fmt: skip


def _read_file(row: Mapping[str, Any]) -> FilePrint:
    return FilePrint(str(row["name"]), int(row["size"]), str(row["sha256"]), validator=str(row.get("validator", "")))


def _read_companion(row: Mapping[str, Any]) -> PlanCompanion:
    companion = PlanCompanion(str(row["name"]), int(row["size"]), str(row["sha256"]))
    if not companion.is_plain:
        raise ValueError(f"a companion {companion.name!r:.80}")
    return companion


def _read_made(key: str, row: Mapping[str, Any], rules: Sequence[str], merges: Sequence[Merge | None]) -> Made:
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
        merge=_merge(row.get("merge"), merges),
        lora=Lora.from_json(row.get("lora")),
        factor=Factor.from_json(row.get("factor")),
        rule=_rule(row["rule"], rules) if "rule" in row else "",
        reason=str(row.get("reason", "")),
        shared=int(row["shared"]) if "shared" in row else None,
    )


def _merge(said: Any, merges: Sequence[Merge | None]) -> Merge | None:
    """Return a merge by its number, or that is spelled out, as in older recipes."""
    if type(said) is not int:
        return Merge.from_json(said)
    if not 0 <= said < len(merges):
        raise ValueError(f"a merge is {said!r:.40}, of {len(merges)}")
    return merges[said]


def _rule(number: Any, rules: Sequence[str]) -> str:
    if type(number) is not int or not 0 <= number < len(rules):
        raise ValueError(f"a rule is {number!r:.40}, of {len(rules)}")
    return rules[number]
