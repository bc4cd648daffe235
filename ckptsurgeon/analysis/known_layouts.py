"""The result of ``layouts``: the layouts of each family of networks, and the layout of a checkpoint, if given."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..util.short_repr import Brief

__all__ = ["FoundLayout", "KnownFamily", "KnownLayouts", "LayoutRow"]


@dataclass(frozen=True)
class LayoutRow:
    """A layout of a family: its name (``--layout NAME``), the library that uses it, and the version that was tested."""

    name: str
    library: str
    tested: str

    def to_json(self) -> dict[str, Any]:
        """Return the row as plain data."""
        return {"name": self.name, "library": self.library, "tested": self.tested}


@dataclass(frozen=True)
class KnownFamily:
    """A family of networks and its layouts; a network in one of these layouts can be converted to the others."""

    name: str
    layouts: tuple[LayoutRow, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the family as plain data."""
        return {"name": self.name, "layouts": [row.to_json() for row in self.layouts]}


@dataclass(frozen=True)
class FoundLayout:
    """A layout that a checkpoint may have, and the layouts of its family, ``targets``, to which it can be converted.

    If there are no targets, ``why`` says why the conversion to the first of these layouts fails: a layer lacks a
    tensor, for example.
    """

    family: str
    layout: str
    targets: tuple[str, ...]
    why: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return the layout as plain data."""
        return {
            "family": self.family,
            "layout": self.layout,
            "targets": list(self.targets),
            "why": self.why or None,
        }


@dataclass(frozen=True, repr=False)
class KnownLayouts(Brief):
    """The families whose layouts are known.

    If a checkpoint was given, ``checkpoint`` is its path, and ``found`` are the layouts that it may have: several only
    if they have the same names, none if its layout is not known. If its layout is not known, ``nearest`` says which
    layout its keys resemble, and how they differ from it; '' if they resemble none.
    """

    families: tuple[KnownFamily, ...]
    checkpoint: str = ""
    found: tuple[FoundLayout, ...] = ()
    nearest: str = ""

    def __repr__(self) -> str:
        names = ", ".join(f"{one.layout} of {one.family}" for one in self.found)
        return f"<KnownLayouts {self.checkpoint}: {names or 'not known'}>" if self.checkpoint else "<KnownLayouts>"

    def to_json(self) -> dict[str, Any]:
        """Return the result as plain data."""
        return {
            "kind": "ckpt.layouts",
            "version": 1,
            "checkpoint": self.checkpoint or None,
            "found": [one.to_json() for one in self.found],
            "nearest": self.nearest or None,
            "families": [one.to_json() for one in self.families],
        }
