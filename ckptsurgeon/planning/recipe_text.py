"""Makes the recipe of an output from its plan, and writes it as JSON text."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import islice
from typing import Any

from ..formats.base.header import FilePrint
from .plan.files import PlanCompanion, PlanSource, PlanTarget
from .plan.plan import Plan
from .plan.step import Step
from .recipe import VERSION, MergedAdapter, Recipe, RecipeEntry

__all__ = ["RecipeText", "folder_of_recipe", "make_recipe", "recipe_entry"]

# From a plan to its recipe.


def make_recipe(plan: Plan, output: str, version: str, adapters: Iterable[MergedAdapter] = ()) -> Recipe:
    """Return the recipe of a plan's output at the path ``output``, with zeros for the checksums.

    ``adapters`` are the adapters that are merged into the output. If ``output`` is a URI, the paths of the sources are
    relative to the working directory.
    """
    folder = folder_of_recipe(output)
    target = replace(
        plan.target,
        config=_relative(plan.target.config, folder),
        files=tuple(replace(_timeless(file), name=_relative(file.name, folder)) for file in plan.target.files),
        lists=(),
    )
    return Recipe(
        version=version,
        verb=plan.verb,
        seed=plan.seed,
        arguments=plan.arguments,
        sources=tuple(_relocated(source, folder) for source in plan.sources),
        target=target,
        tensors=StepEntries(plan.steps),
        unexpected=plan.unexpected,
        metadata=plan.metadata,
        rows=plan.rows,
        vocabularies=plan.vocabularies,
        adapters=tuple(replace(one, path=_relative(one.path, folder)) for one in adapters),
    )


def folder_of_recipe(output: str, paths: Iterable[str] = ()) -> str:
    """Return the folder that the paths in the recipe of the file ``output`` are relative to: the folder of ``output``.

    If ``output`` is a symbolic link, two folders are possible. The folder of the linked file is returned only if one of
    ``paths`` exists relative to it, and none relative to the folder of the link. For a URI, it is the working
    directory.
    """
    if "://" in output:
        return os.getcwd()
    folder = os.path.dirname(os.path.abspath(output.rstrip("/")))
    real = os.path.dirname(os.path.realpath(output.rstrip("/")))
    some = [path for path in paths if path and "://" not in path] if real != folder else []
    are_there = [any(os.path.exists(os.path.join(place, path)) for path in some) for place in (folder, real)]
    return real if are_there == [False, True] else folder


class StepEntries(Mapping[str, RecipeEntry]):
    """A map from each key of a plan to its recipe entry. An entry is made when it is read, to save memory."""

    def __init__(self, steps: Iterable[Step]) -> None:
        self._steps = {step.key: step for step in steps}

    def __getitem__(self, key: str) -> RecipeEntry:
        return recipe_entry(self._steps[key])

    def __iter__(self) -> Iterator[str]:
        return iter(self._steps)

    def __len__(self) -> int:
        return len(self._steps)


def recipe_entry(step: Step) -> RecipeEntry:
    """Return the recipe entry of a step, with zero for the checksum."""
    more = tuple((one.source, one.key) for one in step.more)
    return RecipeEntry(
        step.op, step.kind, step.source, step.source_key, step.policy, step.tied_to, more=more, weights=step.weights,
        axis=step.axis, merge=step.merge, lora=step.lora, factor=step.factor, coded=step.coded,
        rule=step.rule, reason=step.reason, shared=step.shared,
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


# From a recipe to its JSON text.


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
