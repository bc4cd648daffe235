"""Writes the companion files of an output (small ones such as config.json), and finds those of an earlier output."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from typing import Any

from ...checkpoint.quantisation import SETTINGS, settings_among, settings_in
from ...errors import CheckpointError, PlanError, SourceError
from ...formats.base.format_table import writers
from ...formats.base.header import Sharding, Writer
from ...formats.base.sharded_writer import OF_DIFFUSERS, RECIPE_FILE
from ...planning.plan.files import ADAPTER_VERBS, PlanCompanion, PlanTarget
from ...planning.plan.plan import Plan
from ...planning.recipe import parse_recipe
from ...storage.json_text import read_json
from ...storage.read.base import File, Folder
from ...storage.read.uri import leads_out, open_source, read_small, scheme_of
from ...storage.small_files import open_file
from ...storage.write.folders import StagedFolder
from ...util.text import escape, listing

__all__ = [
    "INDEX_BYTES",
    "StaleCompanions",
    "checkpoint_files",
    "copy_companions",
    "existing_checkpoint",
    "file_names",
    "implied_notes",
    "replaced",
    "stale_companions",
    "without_adapter",
    "written_to_folder",
]

# Companions of an earlier output: ckptsurgeon removes a companion only if it is unchanged since ckptsurgeon wrote it.

RECIPE_BYTES = 128 << 20
"""The maximum size in bytes of an earlier output's recipe; a larger recipe is not read."""
CONFIG, ADAPTER, ADAPTER_WEIGHTS = "config.json", "adapter_config.json", "adapter_model.safetensors"


@dataclass(frozen=True)
class StaleCompanions:
    """Companion files (such as ``config.json``) of an earlier output that the new output does not have.

    ``stale`` are the files that nobody has changed since ckptsurgeon wrote them; they will be removed. ``changed`` are
    the files that were edited since; they are kept.
    """

    stale: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes on the removed and the kept files."""
        gone = f"files of the earlier output that are removed: {listing(self.stale, 12, where='')}"
        left = (
            "files of the earlier output that are kept, because they were changed since: "
            f"{listing(self.changed, 12, where='')}"
        )
        return (*((gone,) if self.stale else ()), *((left,) if self.changed else ()))


def stale_companions(path: str, target: PlanTarget) -> StaleCompanions:
    """Return the companion files of an earlier output in the folder ``path`` that the new output does not replace.

    If a model replaces an adapter, the adapter's ``adapter_model.safetensors`` is also one of the files to remove,
    since the new output has weights under a different name. ``target`` is the target of the new output.
    """
    anew, listed = {one.name for one in target.companions}, _listed(path)
    others = [one for one in listed if one.name not in anew and _is_there(os.path.join(path, one.name))]
    stale = tuple(one.name for one in others if _is_as_written(os.path.join(path, one.name), one))
    was_adapter = {ADAPTER} == {one.name for one in listed} & {ADAPTER, CONFIG}
    if was_adapter and not target.weights and _is_there(os.path.join(path, ADAPTER_WEIGHTS)):
        stale = (*stale, ADAPTER_WEIGHTS)
    return StaleCompanions(stale, tuple(one.name for one in others if one.name not in stale))


def _listed(path: str) -> tuple[PlanCompanion, ...]:
    """Return the companion files that the recipe in a folder lists; () if there is no readable recipe."""
    if not scheme_of(path) and not os.path.isdir(path):
        return ()
    with suppress(CheckpointError):
        folder = open_source(path)
        if isinstance(folder, Folder) and RECIPE_FILE in folder.names():
            file = folder.file(RECIPE_FILE)
            if file.size <= RECIPE_BYTES:
                return parse_recipe(file.read(0, file.size).decode("utf-8", "replace")).target.companions
    return ()


def _is_there(path: str) -> bool:
    if not scheme_of(path):
        return os.path.lexists(path)
    with suppress(CheckpointError):
        source = open_source(path)
        if isinstance(source, File):
            source.close()
            return True
    return False


def _is_as_written(path: str, one: PlanCompanion) -> bool:
    with suppress(OSError, CheckpointError):
        if scheme_of(path):
            return hashlib.sha256(read_small(path, one.size)).hexdigest() == one.sha256
        found = os.lstat(path)
        if stat.S_ISREG(found.st_mode) and found.st_size == one.size:
            with open_file(path) as file:
                return hashlib.file_digest(file, "sha256").hexdigest() == one.sha256
    return False


BLOCK = 1 << 20
ONE_FILE = (
    "Write one file, which has no config.json (-o NAME.safetensors), or choose layers so that the kinds of layers "
    "follow each other as in the model. If every fourth layer has attention, for example, choose groups of four "
    "layers, such as 0 to 3."
)


def written_to_folder(plan: Plan, writer: Writer) -> Plan:
    """Return the plan with only the tensors and companion files that a folder will have.

    If a tensor has several keys (tied weights), the keys that loaders restore by themselves are left out. The tensor is
    stored under the first of its remaining keys. Raises PlanError if no config.json can describe the weights.
    """
    if plan.target.refused:
        raise PlanError(plan.target.refused, hint=ONE_FILE)
    plan = _without_settings(plan)
    implied = () if writer.shares or not writer.suffixes else plan.target.implied
    first: dict[str, str] = {}
    steps = []
    for step in plan.steps:
        if step.key not in implied:
            owner = first.setdefault(step.tied_to or step.key, step.key)
            tied_to = "" if owner == step.key else owner
            steps.append(step if step.tied_to == tied_to else replace(step, tied_to=tied_to))
    return replace(plan, steps=tuple(steps), target=replace(plan.target, implied=implied))


def _without_settings(plan: Plan) -> Plan:
    """Return the plan, without its metadata on quantisation if a companion file has the same settings."""
    if SETTINGS not in plan.metadata:
        return plan
    files = {one.name: one for one in plan.target.companions}
    if settings_among(files, lambda name: _document(files[name])) != settings_in(plan.metadata):
        return plan
    return replace(plan, metadata={name: value for name, value in plan.metadata.items() if name != SETTINGS})


def _document(companion: PlanCompanion) -> Any:
    with suppress(ValueError, CheckpointError):
        return read_json(companion.text or read_small(companion.path))
    return None


def file_names(plan: Plan, writer: Writer) -> Sharding:
    """Return the names of the files of an output folder: those of the format, or of diffusers for its networks.

    The folder has a network of diffusers if the plan copies the config.json of one.
    """
    config = next((_document(one) for one in plan.target.companions if one.name == CONFIG), None)
    is_network = isinstance(config, dict) and isinstance(config.get("_class_name"), str)
    return OF_DIFFUSERS if is_network and writer.name == "safetensors" else writer.sharding


def without_adapter(plan: Plan) -> Plan:
    """Return the plan for an output that PEFT cannot read: an adapter that the plan copies becomes plain tensors.

    Then adapter_config.json is not written, and the file of weights does not get the name that PEFT expects.
    """
    # for an adapter that is made, not copied, an output that PEFT cannot read is an error
    made = plan.verb in ADAPTER_VERBS or any(step.op == "factor" for step in plan.steps)
    if made:
        return plan
    kept = tuple(one for one in plan.target.companions if one.name != ADAPTER)
    return replace(plan, target=replace(plan.target, companions=kept, weights=""))


def copy_companions(plan: Plan, folder: StagedFolder) -> None:
    """Write a plan's companion files into a folder; raises PlanError if one has changed since the plan was made."""
    for companion in plan.target.companions:
        if companion.path:
            _copy(companion, folder)
        else:
            folder.write(companion.name, companion.text.encode())


def _copy(companion: PlanCompanion, folder: StagedFolder) -> None:
    places = [companion.path, *([os.path.dirname(companion.path)] if companion.subfolder else [])]
    if any(map(leads_out, places)):
        raise PlanError(
            f"{escape(companion.path)} is a link to a file outside its folder; such links are not followed.",
            hint="Copy the file into the folder.",
        )
    source = open_source(companion.path)
    if not isinstance(source, File):
        raise SourceError(f"the plan copies the file {escape(companion.path)}, but it is a folder.")
    digest = hashlib.sha256()
    with closing(source) as file:
        if companion.is_read and companion.size != file.size:
            raise _changed(companion)
        staged = folder.file(companion.name, file.size)
        for done in range(0, file.size, BLOCK):
            data = file.read(done, min(BLOCK, file.size - done))
            digest.update(data)
            staged.write(done, data)
    if companion.is_read and companion.sha256 != digest.hexdigest():
        raise _changed(companion)
    companion.is_found(source.size, digest.hexdigest())


def _changed(companion: PlanCompanion) -> PlanError:
    return PlanError(f"{escape(companion.path)} has changed since the plan was made.", hint="Make a new plan.")


def implied_notes(plan: Plan) -> tuple[str, ...]:
    """Return a note on the tied tensors that are not stored."""
    keys = listing(plan.target.implied, 3, where="")
    return (f"not stored, because loaders tie these tensors to other tensors: {keys}",)


INDEX_BYTES = 1 << 30
"""The most bytes that are read of a file of the folder, such as an index."""


def existing_checkpoint(path: str) -> list[str]:
    """Return the names of all checkpoint files in a folder, of any format, and of its recipe."""
    if not os.path.isdir(path):
        return []
    return checkpoint_files(os.listdir(path), lambda name: _content(os.path.join(path, name)))


def replaced(present: Sequence[str], target: PlanTarget) -> tuple[str, str]:
    """Return what a folder has that an output would replace, as a verb with its object, and a short name for it.

    ``present`` are the names of these files. If all are companions of the output, such as config.json, they are not a
    sign of a checkpoint.
    """
    if {one.name for one in target.companions}.issuperset(present):
        return f"has files that the output would replace: {listing(present)}", "these files"
    return f"holds a checkpoint: {listing(present)}", "this checkpoint"


def checkpoint_files(names: Iterable[str], read: Callable[[str], bytes]) -> list[str]:
    """Return the files in ``names`` that belong to a checkpoint, of any format.

    ``read`` is a function that returns the content of a file; it may raise OSError.
    """
    present = set(names)
    found = present & {RECIPE_FILE} | OF_DIFFUSERS.family(present, read)
    for writer in writers().values():
        found |= writer.sharding.family(present, read)
    return sorted(found)


def _content(path: str) -> bytes:
    with open_file(path) as file:
        return file.read(min(os.fstat(file.fileno()).st_size, INDEX_BYTES))  # read(n) allocates n bytes at once
