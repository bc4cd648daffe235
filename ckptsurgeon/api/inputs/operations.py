"""Reads operations (split, concat and others) from plain data or a file, and applies them to checkpoints' headers."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...checkpoint.checkpoint import Checkpoint
from ...errors import ConfigError, PatternError
from ...planning.keys.renaming import RULESETS
from ...planning.operations.conversions import CONVERSIONS
from ...planning.operations.operated_parts import operated_parts
from ...planning.operations.operation import parse_operations
from ...planning.operations.perform import DerivedSource, perform
from ...storage.small_files import read_text
from ...tensors.dtypes import BLOCKS
from ...util.did_you_mean import did_you_mean
from ...util.text import escape
from .argument_types import Operations, Path
from .dequantising import weights_of

__all__ = ["OperatedCheckpoint", "asked_conversions", "operate", "operations_file", "operations_of"]


@dataclass(frozen=True)
class OperatedCheckpoint:
    """A checkpoint after operations such as split and concat.

    ``checkpoint`` is the result, ``stored`` is the checkpoint before the operations, and ``derived`` has the tensors
    that the operations made.
    """

    checkpoint: Checkpoint
    stored: Checkpoint
    derived: DerivedSource

    def further(self, rows: Sequence[Mapping[str, Any]], derived: DerivedSource | None = None) -> OperatedCheckpoint:
        """Return the checkpoint after the further operations ``rows``; ``derived`` is their result, if it is known."""
        if not rows:
            return self
        if derived is None:
            derived = perform([self.stored], parse_operations(rows), [weights_of(self.stored)], [self.derived])[0]
        return _operated(self.stored, derived)


def operate(checkpoints: Sequence[Checkpoint], rows: Sequence[Mapping[str, Any]]) -> list[OperatedCheckpoint]:
    """Return the checkpoints after the operations ``rows`` (plain data).

    Raises the errors of ``parse_operations`` and ``perform``.
    """
    if not rows:
        return [OperatedCheckpoint(one, one, DerivedSource(dict(one))) for one in checkpoints]
    results = perform(checkpoints, parse_operations(rows), [weights_of(one) for one in checkpoints])
    return [_operated(*pair) for pair in zip(checkpoints, results, strict=True)]


def _operated(checkpoint: Checkpoint, result: DerivedSource) -> OperatedCheckpoint:
    """Return ``checkpoint`` after operations; ``result`` has the tensors that the operations made."""
    after = checkpoint.holding(result.tensors)
    left = (key for key in after.codes.by_key if after[key].dtype not in BLOCKS)  # blocks of GGUF need no settings
    if any("dequantize" in row for row in result.rows) and not any(left):
        after = checkpoint.holding(result.tensors, decoded=True)
    after.operated_parts = operated_parts(checkpoint, checkpoint.codes, result) if result.by else {}
    return OperatedCheckpoint(after, checkpoint, result)


def asked_conversions(rulesets: Sequence[str]) -> tuple[list[Mapping[str, Any]], tuple[str, ...]]:
    """Return the operations of the rulesets that convert tensors, and the names of the rulesets that only rename keys.

    Raises PatternError for the name of an unknown ruleset.
    """
    unknown = next((name for name in rulesets if name not in (*RULESETS, *CONVERSIONS)), None)
    if unknown is not None:
        hint = f"Use one of {', '.join((*RULESETS, *CONVERSIONS))}."
        raise PatternError(f"--ruleset {unknown!r:.60} is not the name of a ruleset.", hint=hint)
    rows = [row for name in rulesets if name in CONVERSIONS for row in CONVERSIONS[name].rows]
    return rows, tuple(name for name in rulesets if name not in CONVERSIONS)


def operations_file(operations: Operations) -> Path | None:
    """Return the path of the file with the operations; None if ``operations`` are plain data."""
    return operations if isinstance(operations, (str, os.PathLike)) else None


def operations_of(operations: Operations) -> list[Mapping[str, Any]]:
    """Return operations as a checked list of plain data.

    ``operations`` is such a list, or the path of a YAML file that contains it at the top level or under the key
    ``operations``. Raises ConfigError if the operations cannot be read or parsed, PatternError for a malformed pattern.
    """
    path = operations_file(operations)
    rows: Any = _read(os.fspath(path)) if path is not None else operations
    rows = list(rows) if isinstance(rows, tuple) else rows or []
    parse_operations(rows)
    return [dict(row) for row in rows]


def _read(path: str) -> Any:
    try:
        from ...storage.yaml_text import read_yaml  # imports yaml, which most commands do not need

        document = read_yaml(read_text(path), os.path.basename(path))
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise ConfigError(f"--operations {escape(path)} cannot be read: {why}.", hint=did_you_mean(path)) from error
    rows = document.get("operations") if isinstance(document, dict) else document
    if not isinstance(rows, list) or not rows:
        raise ConfigError(
            f"--operations {escape(path)} has no operations.", hint="Write, for example, - {split: KEY, into: [A, B]}."
        )
    return rows
