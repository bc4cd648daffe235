"""Writes recipes as JSON text, and parses such text, which may be damaged."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from ..errors import VerifyError
from ..formats.base.header import FilePrint
from ..storage.json_text import read_json
from .plan.coded_part import CodedPart
from .plan.compute import Factor, Lora, Merge
from .plan.files import PlanCompanion, PlanSource, PlanTarget
from .plan.rows import VocabularyRows, rows_of_each
from .recipe import VERSION, MergedAdapter, Recipe, RecipeEntry

__all__ = ["RecipeText", "parse_recipe"]

# Reading: the text may be damaged, or not a recipe at all.


_TENSORS = ',"tensors":{'
"""The text before the tensors in a recipe's JSON. After the tensors, there is only the seal, a digest.

No string of the JSON contains this text, since quotes are escaped in strings.
"""


def parse_recipe(text: str, *, tensors: bool = True) -> Recipe:
    """Return the recipe that the JSON text contains; raises VerifyError if the text is damaged or not a recipe.

    If ``tensors`` is false, the entries of the tensors are not parsed: there may be a hundred thousand of them.
    """
    head, found, _ = text.partition(_TENSORS) if not tensors else (text, "", "")
    try:
        data = read_json(f'{head}{_TENSORS}}},"seal":""}}' if found else text)
        if data["kind"] != "ckpt.recipe" or data["version"] != VERSION:
            raise ValueError(
                f"it is {data['kind']!r:.40} of version {data['version']!r:.40}, not 'ckpt.recipe' of version {VERSION}"
            )
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
            rows=VocabularyRows.from_json(data.get("vocabulary")),
            vocabularies=rows_of_each(data, len(data["sources"])),
            adapters=tuple(map(MergedAdapter.from_json, data["adapters"])) if "adapters" in data else None,
            seal=str(data["seal"]),
        )  # fmt: skip
    except (ValueError, KeyError, TypeError, OverflowError, AttributeError, IndexError, RecursionError) as error:
        why = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise VerifyError(f"the recipe of the output is damaged, or was not written by ckptsurgeon ({why}).") from error


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
        raise ValueError(
            f"{companion.name!r:.80} is not a valid file name: it must be in the output's folder, or in a folder there"
        )
    return companion


def _read_made(key: str, row: Mapping[str, Any], rules: Sequence[str], merges: Sequence[Merge | None]) -> RecipeEntry:
    origin = row.get("from")
    return RecipeEntry(
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
        coded=CodedPart.from_json(row.get("coded")),
        rule=_rule(row["rule"], rules) if "rule" in row else "",
        reason=str(row.get("reason", "")),
        shared=int(row["shared"]) if "shared" in row else None,
    )


def _merge(value: Any, merges: Sequence[Merge | None]) -> Merge | None:
    """Return the merge that ``value`` refers to: an index in ``merges`` or, in older recipes, the merge itself.

    The result is None if ``value`` is null. Raises ValueError for an index that is not in ``merges``.
    """
    if type(value) is not int:
        return Merge.from_json(value)
    if not 0 <= value < len(merges):
        raise ValueError(f"{value!r:.40} is not the index of a merge: the recipe has {len(merges)}, counted from 0")
    return merges[value]


def _rule(number: Any, rules: Sequence[str]) -> str:
    if type(number) is not int or not 0 <= number < len(rules):
        raise ValueError(f"{number!r:.40} is not the index of a rule: the recipe has {len(rules)}, counted from 0")
    return rules[number]


# Writing.

CHUNK = 4096
MOST = 10_000
"""The most entries whose JSON text is cached."""


class RecipeText:
    """The JSON text of a recipe, made before the checksums of the tensors are known.

    The length of the text does not depend on the checksums, nor on the seal, a digest that is set last.
    """

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        self._rules: dict[str, int] = {}  # each rule once, with its index: it may apply to thousands of tensors
        self._merges: dict[str, int] = {}
        self._rows = dict(_rows(recipe.tensors, self._rules, self._merges))

    def checked(self, checksums: Mapping[str, int]) -> list[str]:
        """Return the text, as strings to join, with the CRC-32 of each tensor, or zero if a tensor has no checksum."""
        first = next(iter(self._rows), None)
        rows = (
            f'{"" if key == first else ","}{_dumps(key)}:{row},"crc32":"{checksums.get(key, 0):08x}"}}'
            for key, row in self._rows.items()
        )
        # the seal is the last entry, and in the last string: formats/base/header.py looks for it there
        tail = f'}},"seal":{_dumps(self._recipe.seal)}}}'
        chunks = iter(lambda: "".join(islice(rows, CHUNK)), "")
        return [f'{_dumps(self._head())[:-1]},"tensors":{{', *chunks, tail]

    def _head(self) -> dict[str, Any]:
        """Return the recipe's JSON data without its tensors.

        Call this only after the companions, such as config.json, have been copied: before, their SHA-256 is not known.
        """
        recipe, rules, merges = self._recipe, self._rules, self._merges
        return {
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
            **_adapters_json(recipe),
            **({"rules": list(rules)} if rules else {}),
            **({"merges": [json.loads(merge) for merge in merges]} if merges else {}),
        }


_dumps = json.JSONEncoder(separators=(",", ":")).encode


def _rows(
    tensors: Mapping[str, RecipeEntry], rules: dict[str, int], merges: dict[str, int]
) -> Iterator[tuple[str, str]]:
    """Yield each key with the JSON text of its entry, without the checksum at its end.

    Many entries have the same text, so texts are cached. Each new rule and merge is added to ``rules`` and ``merges``,
    with its index.
    """
    spelled: dict[tuple[object, ...], str] = {}
    for key, made in tensors.items():
        shared = _shared_text_key(key, made)
        row = spelled.get(shared) if shared is not None else None
        if row is None:
            row = _dumps(_made_json(key, made, rules, merges))[:-1]
            if shared is not None and len(spelled) < MOST:
                spelled[shared] = row
        yield key, row


def _shared_text_key(key: str, made: RecipeEntry) -> tuple[object, ...] | None:
    """Return the key under which the JSON of an entry is cached: all its fields except the checksum.

    The result is None if the JSON contains the key of a tensor: then no other entry has the same text.
    """
    if made.tied_to or made.lora or made.factor or made.coded or any(other != key for _, other in made.more):
        return None
    if made.source_key not in ("", key):
        return None
    return (made.op, made.kind, made.source, made.source_key == key, made.policy, made.weights, made.axis, made.implied,
            made.rule, made.reason, made.shared, tuple(source for source, _ in made.more), id(made.merge))  # fmt: skip


def _source_json(source: PlanSource) -> dict[str, Any]:
    return {
        "name": source.name,
        "role": source.role,
        **({"memory": True} if source.memory else {}),
        "path": source.path,
        "root": source.root,
        "stripped": list(source.stripped),
        **({"operations": [dict(row) for row in source.operations]} if source.operations else {}),
        "files": [_file_json(file) for file in source.files],
        **({"beside": [_file_json(file) for file in source.beside]} if source.beside else {}),
    }


def _adapters_json(recipe: Recipe) -> dict[str, Any]:
    """Return the entry ``adapters`` of the recipe's JSON, a list of the merged adapters; {} without adapters.

    Adapters that are subtracted to undo their merge are not in the list, so it may be empty.
    """
    rows = [one.to_json() for one in recipe.adapters or ()]
    return {"adapters": rows} if rows or recipe.verb == "lora merge" else {}


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


def _made_json(key: str, made: RecipeEntry, rules: dict[str, int], merges: dict[str, int]) -> dict[str, Any]:
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
        row["merge"] = merges.setdefault(_dumps(made.merge.to_json()), len(merges))
    if made.lora is not None:
        row["lora"] = made.lora.to_json()
    if made.factor is not None:
        row["factor"] = made.factor.to_json()
    if made.coded is not None:
        row["coded"] = made.coded.to_json()
    if made.implied:
        row["implied"] = True
    if made.rule:
        row["rule"] = rules.setdefault(made.rule, len(rules))
    if made.reason:
        row["reason"] = made.reason
    if made.shared is not None:
        row["shared"] = made.shared
    return row
