"""Finds the changes in the tensors of a source that follow from new values of fields."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from ...checkpoint.checkpoint import Checkpoint
from ...errors import ConfigError
from ...planning.resizing.change import Change
from ..inputs.operations import operate
from ..statistics.stored import Statistics, read_statistics
from .aligned_experts import ExpertAlignment
from .another_type import AnotherType
from .choices import Choices
from .network import AskedNetwork
from .request import Request
from .scores import Measures
from .source_names import NamedSource, named_source, refuse_codes, refuse_gguf
from .stages import Stages

__all__ = ["FoundChanges", "found_changes"]


@dataclass(frozen=True)
class FoundChanges:
    """The ``changes`` of a source's tensors, one for each field; ``stages`` has the networks before and after them.

    ``notes`` are the notes on the file of statistics (``--by``) with which heads, channels, experts or layers are
    chosen.
    """

    source: NamedSource
    stages: Stages | AnotherType
    changes: Sequence[Change]
    notes: Sequence[str] = ()


def found_changes(asked: Request, network: AskedNetwork, opened: Checkpoint) -> FoundChanges:
    """Return the changes of the tensors in ``opened``.

    Raises ConfigError if the user's options do not fit the network, PlanError if the network cannot be changed in this
    way.
    """
    refuse_gguf(opened)
    refuse_codes(opened)
    statistics = read_statistics(asked.by, opened) if asked.by else None
    source = named_source(opened, network.base.target({}))
    rows: list[Mapping[str, Any]] = list(source.rows)

    @cache
    def named() -> Checkpoint:
        return operate([opened], rows)[0].checkpoint if rows else opened

    alignment = ExpertAlignment(network.base, lambda: named()) if asked.align_experts else None
    choices = replace(_choices(asked, network, statistics), alignment=alignment)
    stages = _stages(asked, network, choices, Measures(lambda: named(), statistics))
    rows += stages.splits
    changes = list(stages.changes())
    _check_noise(asked.noise, changes)
    changes = [_without_tables(change, source.computed) for change in changes]
    if not network.base.is_known:  # the user's code may compute other things, too
        changes = [replace(change, is_exact=None if change.is_exact else change.is_exact) for change in changes]
    return FoundChanges(source, stages, changes, statistics.notes if statistics is not None else ())


def _choices(asked: Request, network: AskedNetwork, statistics: Statistics | None) -> Choices:
    return Choices(
        layers=asked.layers,
        kept=network.kept,
        new_channels=asked.new_channels or "",
        new_width=asked.new_width or "",
        noise=asked.noise_of_copies,
        merge=asked.merge_experts or "",
        by=os.path.basename(statistics.path) if statistics is not None else "",
        influences=statistics.influences if statistics is not None else None,
        vocabulary=network.vocabulary,
    )


def _stages(asked: Request, network: AskedNetwork, choices: Choices, measures: Measures) -> Stages | AnotherType:
    if asked.model_type is None:
        return Stages(network.base, network.fields, choices, measures)
    return AnotherType(network.base, asked.model_type, network.given, asked.expert, choices)


def _check_noise(noise: float | None, changes: Sequence[Change]) -> None:
    """Raise ConfigError if ``--noise`` is given, but nothing is copied."""
    if noise and not any("noise" in row for change in changes for row in change.rows):
        raise ConfigError(
            "--noise changes copies of a width, of heads or of channels, but this command makes no copies.",
            hint="Leave --noise out, or use --new-channels copy.",
        )


def _without_tables(change: Change, computed: Sequence[str]) -> Change:
    """Return a change without operations on ``computed``, the tables that the model's class computes for the new size.

    The old tables are not repeated, so it is not known whether the outputs stay equal.
    """
    rows = [row for row in change.rows if next(iter(row.values())) not in computed]
    is_exact = None if len(rows) < len(change.rows) and change.is_exact else change.is_exact
    return replace(change, rows=rows, is_exact=is_exact)
