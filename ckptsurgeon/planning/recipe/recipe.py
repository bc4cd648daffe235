"""A recipe as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from ...formats.base.seal import UNSEALED
from ...util.brief import Brief
from ..plan.lora import Factor, Lora
from ..plan.merge import Merge
from ..plan.plan import PlanSource, PlanTarget
from ..plan.rows import Rows

__all__ = ["VERSION", "Made", "Recipe"]

VERSION = 1


class Made(NamedTuple):
    """What a recipe says of one tensor: how it came about, from which source, and its CRC-32.

    ``more`` are (source, key) of further inputs, ``weights`` what each counts, ``axis`` where a vocabulary runs along.
    ``merge`` is the method that merged them, ``lora`` what adapters did, ``factor`` which factor it is. ``implied`` is
    set where the output leaves the name to its reader, who ties it. ``rule`` is the option that decided, as it was
    written, ``reason`` says why a tensor is initialised, and ``shared`` how many values the source gave where it was
    laid over others; they are there to be read, and nothing hangs on them.
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
    rule: str = ""
    reason: str = ""
    shared: int | None = None


@dataclass(frozen=True, repr=False)
class Recipe(Brief):
    """A recipe as data. Paths of ``sources`` and ``target`` are relative to the output's folder."""

    version: str
    verb: str
    seed: int
    arguments: Mapping[str, Any]
    sources: tuple[PlanSource, ...]
    target: PlanTarget
    tensors: Mapping[str, Made]
    unexpected: tuple[tuple[int, str], ...] = ()
    metadata: Mapping[str, str] | None = None
    rows: Rows | None = None
    vocabularies: tuple[Rows, ...] = ()
    seal: str = UNSEALED
