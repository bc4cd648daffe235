"""The recipe of an output: how each tensor was made, and its checksum. It is made from the plan of the output."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from math import isfinite
from typing import Any, NamedTuple

from ..formats.base.header import UNSEALED, FilePrint
from ..util.brief import Brief
from .plan.coded_part import CodedPart
from .plan.compute import Factor, Lora, Merge
from .plan.files import PlanSource, PlanTarget
from .plan.plan import Plan
from .plan.rows import VocabularyRows
from .plan.step import Step

__all__ = ["VERSION", "MergedAdapter", "Recipe", "RecipeEntry", "folder_of_recipe", "make_recipe", "recipe_entry"]

VERSION = 1


class RecipeEntry(NamedTuple):
    """The entry of a recipe for one tensor: how it was made, its source, and its CRC-32.

    ``more`` are the (source, key) of further inputs, ``weights`` is the weight of each input, ``axis`` the vocabulary
    axis. ``merge`` is the method that merged the inputs, ``lora`` the changes by adapters, ``factor`` the extracted
    factor. If the computed weight is stored quantised, ``coded`` says which part of the quantised tensor this tensor
    is. ``implied`` is true if the output does not store the tensor, since the library that loads the output ties it to
    another tensor. The other fields only inform people. ``rule`` is the option that decided, as the user wrote it.
    ``reason`` is why a tensor is initialised. ``shared`` is the number of values from the source if all other values
    are initialised.
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
    coded: CodedPart | None = None
    rule: str = ""
    reason: str = ""
    shared: int | None = None


@dataclass(frozen=True, repr=False)
class MergedAdapter(Brief):
    """An adapter that is merged into an output: its path, the fingerprints of its files, and its weight in the sum.

    ``tail`` is the SHA-256 of the last bytes of its files, since adapters of the same model have equal headers; '' if
    these bytes were not read.
    """

    path: str
    files: tuple[FilePrint, ...]
    weight: float = 1.0
    tail: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return the object as plain data, for JSON."""
        files = [{"name": file.name, "size": file.size, "sha256": file.sha256} for file in self.files]
        tail = {"tail": self.tail} if self.tail else {}
        return {"path": self.path, "weight": self.weight, "files": files, **tail}

    @staticmethod
    def from_json(row: Mapping[str, Any]) -> MergedAdapter:
        """Return the object that ``row`` describes; raises KeyError, TypeError or ValueError."""
        files = tuple(FilePrint(str(one["name"]), int(one["size"]), str(one["sha256"])) for one in row["files"])
        weight = float(row["weight"])
        if not isfinite(weight):
            raise ValueError(f"the weight {weight} of an adapter is not finite")
        return MergedAdapter(str(row["path"]), files, weight, str(row.get("tail", "")))


@dataclass(frozen=True, repr=False)
class Recipe(Brief):
    """The recipe of an output: its sources, its options, and how each tensor was made.

    ``adapters`` are the adapters that are merged into the output, by this verb or earlier; None if the recipe is of an
    older version, or if there never were any. The paths of adapters, ``sources`` and ``target`` are relative to the
    output's folder. ``seal`` is a digest of all bytes of the output file that are not part of a tensor.
    """

    version: str
    verb: str
    seed: int
    arguments: Mapping[str, Any]
    sources: tuple[PlanSource, ...]
    target: PlanTarget
    tensors: Mapping[str, RecipeEntry]
    unexpected: tuple[tuple[int, str], ...] = ()
    metadata: Mapping[str, str] | None = None
    rows: VocabularyRows | None = None
    vocabularies: tuple[VocabularyRows, ...] = ()
    adapters: tuple[MergedAdapter, ...] | None = None
    seal: str = UNSEALED


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
