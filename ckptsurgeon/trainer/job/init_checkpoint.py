"""The initial weights of a run: a checkpoint, and the recipe by which the checkpoint was made."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from ...checkpoint.opening import open_checkpoint
from ...errors import ConfigError, VerifyError
from ...planning.keys.renaming import KeyMatcher
from ...planning.operations.operation import parse_operations
from ...planning.recipe import Recipe, parse_recipe
from ...util.text import escape

__all__ = ["InitCheckpoint", "read_init"]


@dataclass(frozen=True)
class InitCheckpoint:
    """A checkpoint with the initial weights of a run, which messages call the init of the run.

    ``keys`` are the keys of its tensors, ``files`` the name, size and SHA-256 of each of its files. ``recipe`` lists
    the sources of the checkpoint; it is None if ckptsurgeon did not write the checkpoint.
    """

    path: str
    keys: tuple[str, ...]
    files: tuple[dict[str, Any], ...]
    recipe: Recipe | None

    @property
    def drawn(self) -> frozenset[str]:
        """The keys of the tensors that are in no source: all of their values came from an initialiser."""
        tensors = self.recipe.tensors if self.recipe is not None else {}
        return frozenset(key for key, made in tensors.items() if made.kind == "initialised")

    @property
    def partly(self) -> frozenset[str]:
        """The keys of the tensors with some values from a source, and all other values from an initialiser."""
        if self.recipe is None:
            return frozenset()
        rows = self.recipe.rows
        ops = ("pad", "overlap", "map") if rows is not None and rows.fresh else ("pad", "overlap")
        return frozenset(key for key, made in self.recipe.tensors.items() if made.op in ops)

    @property
    def zeroed(self) -> frozenset[str]:
        """The keys of the tensors that an operation of the recipe set to zero, for example in added blocks."""
        if self.recipe is None:
            return frozenset()
        zeros = [
            KeyMatcher(
                [
                    pattern
                    for one in parse_operations(source.operations)
                    if one.verb == "zero"
                    for pattern in one.patterns
                ]
            )
            for source in self.recipe.sources
        ]
        return frozenset(
            key
            for key, made in self.recipe.tensors.items()
            if made.kind == "derived" and made.source is not None and zeros[made.source].match(made.source_key)
        )

    @property
    def new(self) -> frozenset[str]:
        """The keys of tensors whose values came from an initialiser, completely or in part."""
        return self.drawn | self.partly

    @property
    def seed(self) -> int | None:
        """The seed with which the initialisers drew the new values; None without a recipe."""
        return self.recipe.seed if self.recipe is not None else None

    def lineage(self, folder: str) -> dict[str, Any]:
        """Return the origin of the checkpoint as a dict for JSON, with paths relative to ``folder``."""
        made = self.recipe
        counts: dict[str, int] = {}
        for tensor in made.tensors.values() if made is not None else ():
            counts[tensor.kind] = counts.get(tensor.kind, 0) + 1
        return {
            "path": os.path.relpath(os.path.abspath(self.path), os.path.abspath(folder)),
            "files": list(self.files),
            "sources": [
                {"name": source.name, "files": [{"size": f.size, "sha256": f.sha256} for f in source.files]}
                for source in (made.sources if made is not None else ())
            ],
            "recipe": None
            if made is None
            else {"verb": made.verb, "seed": made.seed, "ckptsurgeon": made.version, "arguments": dict(made.arguments)},
            "counts": counts,
        }


def read_init(path: str) -> InitCheckpoint:
    """Return the checkpoint at a path, from its header and recipe.

    Raises the errors of ``open_checkpoint``, and ConfigError if the recipe cannot be read.
    """
    with open_checkpoint(path) as checkpoint:
        files = tuple(
            {"name": file.name or os.path.basename(path), "size": file.size, "sha256": file.sha256}
            for file in checkpoint.files
        )
        text, keys = checkpoint.recipe, tuple(checkpoint)
    try:
        recipe = parse_recipe(text) if text is not None else None
    except VerifyError as error:
        raise ConfigError(
            f"{escape(path)}: {error.message}", hint=f"Run ckpt verify {escape(path)} to see more."
        ) from error
    return InitCheckpoint(path, keys, files, recipe)
