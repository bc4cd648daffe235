"""The recipe of an output: how each tensor was made, and its checksum; it is parsed from JSON text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any, NamedTuple

from ..errors import VerifyError
from ..formats.base.header import UNSEALED, FilePrint
from ..storage.json_text import read_json
from ..util.short_repr import Brief
from .plan.coded_part import CodedPart
from .plan.compute import Factor, Lora, Merge
from .plan.files import PlanCompanion, PlanSource, PlanTarget
from .plan.rows import VocabularyRows, rows_of_each

__all__ = ["VERSION", "MergedAdapter", "Recipe", "RecipeEntry", "parse_recipe"]

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


# From JSON text, which may be damaged, or not a recipe at all.

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
