"""Prepares the files that rename tensors in place: new headers, a new index, and a record of the change."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace

from ...checkpoint.checkpoint import Checkpoint
from ...checkpoint.shard_notes import shard_index
from ...destinations.hf.files import ADAPTER, CONFIG
from ...errors import PlanError
from ...formats._safetensors_layout import METADATA, RECIPE_KEY, renamed_header
from ...formats.base.sharded_writer import RECIPE_FILE
from ...planning.plan.plan import Plan
from ...storage.read.base import File
from ...storage.read.local import ConsumedFile, LocalFile
from ...storage.write.headers import RECORD, NewHeader
from ...util.text import count, escape, human_bytes

__all__ = ["NewNames", "for_place", "prepared"]

ORDINARY = "Write a new file with -o."
SIGNATURES = (".sig", "model.sig")


@dataclass(frozen=True)
class NewNames:
    """The content to write: the headers of the files, the index (None for one file), and the record of the change."""

    path: str
    headers: tuple[NewHeader, ...]
    index: bytes | None
    record: tuple[str, bytes]
    notes: tuple[str, ...]


def for_place(plan: Plan) -> Plan:
    """Return a plan without the notes on files of an output folder, because a rename in place has no output folder."""
    notes = tuple(note for note in plan.notes if note not in plan.target.notes)
    return replace(plan, target=replace(plan.target, notes=()), notes=notes)


def prepared(plan: Plan, source: Checkpoint) -> NewNames:
    """Return the new headers, index and record that rename tensors of ``source`` in place.

    Raises PlanError if the tensors cannot be renamed in place.
    """
    if plan.verb != "rename":
        raise PlanError(f"--in-place changes names only, but ckpt {plan.verb} changes more than names.", hint=ORDINARY)
    names = _names(plan, source)
    files = [_local(file) for file in source.header.handles.values()]
    index = next((file for file in files if source.format != "safetensors" and file.name.endswith(".json")), None)
    shards = [file for file in files if file is not index]
    path = (index or shards[0]).path
    folder, name = os.path.split(os.path.abspath(path))
    if index is not None and os.path.lexists(os.path.join(folder, RECIPE_FILE)):
        raise PlanError(
            f"{escape(folder)} has the recipe of an earlier run ({RECIPE_FILE}), which lists the old names.",
            hint=f"{ORDINARY} Or move the recipe to another folder.",
        )
    of = shard_index(name, source.around).name if index is None else ""
    if of:
        raise PlanError(
            f"{escape(path)} is a shard, and the index {escape(of)} also lists the names of its tensors.",
            hint="Give the folder: all shards and the index are renamed together.",
        )
    headers, recipes = [], {}
    for file in shards:
        if os.path.dirname(os.path.abspath(file.path)) != os.path.dirname(os.path.abspath(path)):
            raise PlanError(
                f"the index lists {escape(file.path)}, which is in a different folder than {escape(path)}.",
                hint=ORDINARY,
            )
        old = file.read(0, 8)
        old += file.read(8, int.from_bytes(old, "little"))
        new, recipe = _new_header(file, old, names)
        headers.append(NewHeader(file.path, old, new))
        recipes.update({file.name: recipe} if recipe else {})
    record = _free(path)
    sizes = human_bytes(sum(len(one.new) for one in headers)), human_bytes(sum(file.size for file in shards))
    notes = [
        f"only {count(len(headers), 'header is', 'headers are')} written ({sizes[0]} of {sizes[1]}); the recipe "
        f"is not stored in the file: the plan is saved as {escape(record)} instead",
        *_left(folder, name, recipes, names),
    ]
    data = {**plan.to_json(), **({"recipes": recipes} if recipes else {})}
    return NewNames(
        path,
        tuple(headers),
        _new_index(index, names) if index is not None else None,
        (record, (json.dumps(data, indent=2, ensure_ascii=True) + "\n").encode()),
        tuple(notes),
    )


def _names(plan: Plan, source: Checkpoint) -> Mapping[str, str]:
    """Return {old name: new name} for the tensors of a file; raises PlanError if the plan changes more than names."""
    if source.format not in ("safetensors", "sharded safetensors"):
        raise PlanError(
            f"{escape(source.path)} is {source.format}, but only safetensors can be renamed in place.", hint=ORDINARY
        )
    if plan.arguments.get("metadata"):
        raise PlanError("--in-place changes names only, but --set-metadata was given.", hint=ORDINARY)
    for step in plan.steps:
        if step.op != "copy" or step.operation or (step.dtype, step.shape) != (step.source_dtype, step.source_shape):
            raise PlanError(f"--in-place changes names only, but {escape(step.key)} gets other values.", hint=ORDINARY)
        if step.key == METADATA:
            raise PlanError(
                f"a tensor has the key {METADATA}, which safetensors reserves.", hint="Choose another name."
            )
    taken = Counter(source.stored_key(step.source_key) for step in plan.steps)
    other = next((key for key in source.header.tree if taken[key] != 1), "")
    if other:
        is_split = other not in map(source.stored_key, source)  # scales of several experts in one stored tensor
        what = "copied to several names" if taken[other] else "split into several tensors" if is_split else "left out"
        raise PlanError(f"--in-place changes names only, but {escape(other)} is {what}.", hint=ORDINARY)
    return {source.stored_key(step.source_key): step.key for step in plan.steps}


def _local(file: File) -> LocalFile:
    if isinstance(file, ConsumedFile):
        raise PlanError(
            f"{escape(file.uri)} was deleted by an interrupted run with --consume: only its header is left.",
            hint=f"Run the interrupted command again; its output is {escape(file.shard.output)}.",
        )
    if not isinstance(file, LocalFile):
        raise PlanError(
            f"{escape(file.uri)} is not a local file: its tensors cannot be renamed in place.", hint=ORDINARY
        )
    return file


def _new_header(file: LocalFile, old: bytes, names: Mapping[str, str]) -> tuple[bytes, str]:
    """Return the header with the new names, padded to the length of the old one, and the recipe in the old header.

    Raises PlanError if the new header is longer than the old one, or if a name is not valid Unicode.
    """
    try:
        text, recipe = renamed_header(old[8:], names)
    except UnicodeEncodeError:
        raise PlanError(
            "a new name is not valid Unicode, so safetensors cannot store it.", hint="Choose another."
        ) from None
    if len(text) > len(old) - 8:
        more = count(len(text) - len(old) + 8, "byte")
        raise PlanError(
            f"the new header of {escape(file.path)} does not fit: it needs {more} more than the old one.",
            hint=f"Use shorter names. {ORDINARY}",
        )
    return old[:8] + text.ljust(len(old) - 8), recipe


def _new_index(file: LocalFile, names: Mapping[str, str]) -> bytes:
    index = json.loads(file.read(0, file.size))
    index["weight_map"] = {names[key]: shard for key, shard in index["weight_map"].items()}
    return (json.dumps(index, indent=2) + "\n").encode()


def _free(path: str) -> str:
    """Return a file name that is not in use, next to ``path``, for the record of a change."""
    name, number = f"{os.path.basename(path)}{RECORD}.json", 1
    while os.path.lexists(os.path.join(os.path.dirname(path), name)):
        number += 1
        name = f"{os.path.basename(path)}{RECORD}-{number}.json"
    return name


def _left(folder: str, name: str, recipes: Mapping[str, str], names: Mapping[str, str]) -> list[str]:
    """Return notes on files that still have the old names: configurations, signatures, and recipes in headers.

    ``name`` is the name of the renamed file or index in ``folder``. ``recipes`` are the recipes in the old headers.
    ``names`` maps each old name to the new one.
    """
    changed = [f"{escape(old)} is now {escape(new)}" for old, new in names.items() if old != new]
    there = [one for one in (CONFIG, ADAPTER) if changed and os.path.lexists(os.path.join(folder, one))]
    notes = [f"{one} is not changed, even if it contains old names" for one in there if one == ADAPTER]
    if CONFIG in there:
        more = f", and {len(changed) - 1} more" if len(changed) > 1 else ""
        notes.append(
            f"{CONFIG} is not changed: it no longer fits if the old names are those of its model class "
            f"({changed[0]}{more}); ckpt inspect --class compares them"
        )
    if recipes:
        notes.append(f"the recipe of an earlier run ({RECIPE_KEY}) is moved from the header to the file with the plan")
    for one in (f"{name}{SIGNATURES[0]}", SIGNATURES[1]):
        if os.path.lexists(os.path.join(folder, one)):
            notes.append(f"the signature {escape(one)} was made for the old header, so ckpt verify --key will fail")
    return notes
