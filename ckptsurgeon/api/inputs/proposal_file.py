"""Writes the proposal of ``match`` as a recipe of ``rename``."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from ...analysis.match.proposal import Proposal
from ...checkpoint.checkpoint import Checkpoint
from ...errors import ConfigError, PlanError
from ...storage.write.output_paths import check_output
from ...util.text import count, escape, listing
from .recipe_files import VALUES_AGREE, is_recipe

__all__ = ["check_proposal_file", "write_proposal"]

LISTED, SHOWN = 4, 120
"""The largest number of keys in a note of the recipe, and the largest number of characters of a key or path in it."""


def check_proposal_file(path: str, *, force: bool) -> None:
    """Raise ConfigError or OutputError if a proposal cannot be written to ``path``."""
    if not is_recipe(path):
        raise ConfigError(f"{escape(path)} is not a valid name for a recipe.", hint="Use a name that ends in .yaml.")
    check_output(path, (), force=force, folder=False)


def write_proposal(
    path: str, found: Proposal, source: Checkpoint, place: str, *, root: str | None, force: bool, wait: float | None
) -> None:
    """Write the rules and operations of a proposal as a recipe of ``rename``, completely or not at all.

    ``place`` is the path of the source, '' if it is in memory. Raises PlanError if there is nothing to write.
    """
    if not found.rules and not found.operations:
        if found.complete:
            raise PlanError(f"{escape(path)} is not written: no rules or operations are needed.")
        raise PlanError(
            f"{escape(path)} is not written: match proposes neither rules nor operations.",
            hint="Leave --output out to see what is missing.",
        )
    from ...storage.write.staged_file import write_text
    from ...storage.yaml_text import dump_yaml  # imports yaml, which most commands do not need

    recipe: dict[str, Any] = {"verb": "rename"}
    if place:
        recipe["source"] = _relative(place, path)
    recipe |= {"root": root} if root is not None else {}
    recipe |= {"unwrap": True} if source.stripped else {}
    recipe |= {"operations": [dict(one.row) for one in found.operations]} if found.operations else {}
    recipe |= {"map": list(found.rules)} if found.rules else {}
    recipe |= {VALUES_AGREE: True} if found.agreed else {}
    recipe |= {"notes": notes} if (notes := _notes(found)) else {}
    write_text(
        path, _head(found, path, place) + dump_yaml(recipe), inputs=source.open_files().values(), force=force, wait=wait
    )


def _relative(place: str, path: str) -> str:
    """Return the path of the source relative to the folder of the recipe."""
    if "://" in place or os.path.isabs(place):
        return place
    return os.path.relpath(place, os.path.dirname(path) or os.curdir)


def _notes(found: Proposal) -> list[str]:
    """Return notes for the recipe: on tensors that the destination needs but the result lacks, and on unneeded ones."""
    notes: list[str] = []
    if not found.complete:
        names = [*found.missing, *found.ambiguous, *(key for one in found.open for key in one.second)]
        left = len(found.missing) + found.undecided
        notes.append(
            f"the result lacks {left} of the {count(found.matched + left, 'tensor')} of {escape(found.second, SHOWN)}, "
            f"for which ckpt match proposes no source: {_listed(names)}"
        )
    if found.unmatched:
        which = f"{count(len(found.unmatched), 'tensor')} of the source that {escape(found.second, SHOWN)}"
        notes.append(f"the result also has {which} does not need: {_listed([*found.unmatched])}")
    return notes


def _listed(names: Sequence[str]) -> str:
    return listing([escape(name, SHOWN) for name in names[:LISTED]] + [""] * (len(names) - LISTED), LISTED, where="")


def _head(found: Proposal, path: str, place: str) -> str:
    name = escape(os.path.basename(path))
    have = "has" if found.matched == 1 else "have"
    options = [f"--operations {name}"] if found.operations else []
    options += [f"--map-file {name}"] if found.rules else []
    use = f"Use it with ckpt apply {name} -o OUTPUT" if place else "Add source: PATH and use it with ckpt apply"
    return (
        f"# From ckpt match {escape(found.first)} {escape(found.second)}: "
        f"{count(found.matched, 'tensor')} of the destination {have} a source.\n"
        f"# {use}, or in ckpt rename and ckpt transplant as\n"
        f"# {' '.join(options)}.\n"
    )
