"""Types that several verbs take."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from ...checkpoint.given import CheckpointLike
from ...storage.read.base import Progress

__all__ = [
    "CheckpointLike", "Given", "Mismatch", "Operations", "Parameters", "Path", "Patterns", "Progress", "Rules",
    "Sources", "Vocabularies",
]  # fmt: skip

Path: TypeAlias = str | os.PathLike[str]
Sources: TypeAlias = "CheckpointLike | Sequence[CheckpointLike]"
"""One source or several, each a path, a URI, or a spec in ESPnet's form; a dict of tensors, an open checkpoint."""

Patterns: TypeAlias = Iterable[str] | None
"""One pattern as a text, or several."""

Rules: TypeAlias = Iterable[str] | Mapping[str, str] | None
"""Rules FROM=TO, or a map from one to the other."""

Operations: TypeAlias = Path | Sequence[Mapping[str, Any]] | None
"""Operations as plain data, or the YAML file that holds them."""

Vocabularies: TypeAlias = str | Sequence[Path] | None
"""The token lists of the source and the destination, as "SRC:DST" or a pair of paths; or "place"."""

Mismatch: TypeAlias = str | Mapping[str, str] | Sequence[str] | None
"""One policy for all, a map from pattern to policy, or texts as the command line takes them."""

Given: TypeAlias = bool | float | str | Sequence[float] | Mapping[str, Any]
"""A parameter of a merge: a value, one for each model, a map from patterns to these, or a gradient over the layers."""

Parameters: TypeAlias = Mapping[str, Given] | Sequence[str] | None
"""The parameters of a merge by name, or texts as the command line takes them."""
