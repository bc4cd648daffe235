"""What a former output left in a folder beside its weights: ours to take away, while it is still what we wrote."""

from __future__ import annotations

import hashlib
import os
import stat
from contextlib import suppress
from dataclasses import dataclass

from ...errors import CheckpointError
from ...formats.base.sharded_writer import RECIPE_FILE
from ...planning.plan.plan import PlanCompanion, PlanTarget
from ...planning.recipe.reading import parse_recipe
from ...storage.read.base import Folder
from ...storage.read.uri import open_source
from ...storage.small_files import open_file
from ...util.text import listing

__all__ = ["Former", "former_companions"]

RECIPE_BYTES = 128 << 20
CONFIG, ADAPTER, ADAPTER_WEIGHTS = "config.json", "adapter_config.json", "adapter_model.safetensors"


@dataclass(frozen=True)
class Former:
    """Companions of a former output that the new one has not: ``stale`` as they were written, ``changed`` since."""

    stale: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()

    @property
    def notes(self) -> tuple[str, ...]:
        """Say what went and what stayed."""
        gone = f"removed, from the output that was there: {listing(self.stale, 12, where='')}"
        left = f"left from the output that was there, changed since: {listing(self.changed, 12, where='')}"
        return (*((gone,) if self.stale else ()), *((left,) if self.changed else ()))


def former_companions(path: str, target: PlanTarget) -> Former:
    """Return what lies in a folder of the companions that its recipe lists, but for those that are written anew.

    They include the weights of a former adapter: a model's weights have another name.
    """
    anew, listed = {one.name for one in target.companions}, _listed(path)
    others = [one for one in listed if one.name not in anew and os.path.lexists(os.path.join(path, one.name))]
    stale = tuple(one.name for one in others if _is_as_written(os.path.join(path, one.name), one))
    was_adapter = {ADAPTER} == {one.name for one in listed} & {ADAPTER, CONFIG}
    if was_adapter and not target.weights and os.path.lexists(os.path.join(path, ADAPTER_WEIGHTS)):
        stale = (*stale, ADAPTER_WEIGHTS)
    return Former(stale, tuple(one.name for one in others if one.name not in stale))


def _listed(path: str) -> tuple[PlanCompanion, ...]:
    """Return the companions that the recipe in a folder lists; none where there is no recipe, or a damaged one."""
    if not os.path.isdir(path):
        return ()
    with suppress(CheckpointError):
        folder = open_source(path)
        if isinstance(folder, Folder) and RECIPE_FILE in folder.names():
            file = folder.file(RECIPE_FILE)
            if file.size <= RECIPE_BYTES:
                return parse_recipe(file.read(0, file.size).decode("utf-8", "replace")).target.companions
    return ()


def _is_as_written(path: str, one: PlanCompanion) -> bool:
    with suppress(OSError):
        found = os.lstat(path)
        if stat.S_ISREG(found.st_mode) and found.st_size == one.size:
            with open_file(path) as file:
                return hashlib.file_digest(file, "sha256").hexdigest() == one.sha256
    return False
