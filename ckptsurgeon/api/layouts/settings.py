"""Finds what a change of layout needs besides shapes: the fields of a configuration, and the value of ``--heads``."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from ...checkpoint.checkpoint import Checkpoint
from ...errors import CheckpointError, ConfigError
from ...storage.json_text import read_json
from ...storage.read.uri import read_small

__all__ = ["check_heads", "settings_of"]

PARAMETERS = "params.json"
"""The name of the configuration file in folders in Meta's and Mistral's own formats."""
_HEADS = re.compile(r"([1-9][0-9]{0,5})(?:/([1-9][0-9]{0,5}))?")


def settings_of(checkpoint: Checkpoint, config: Mapping[str, Any], heads: str = "") -> Mapping[str, Any]:
    """Return the fields of ``config`` (a checkpoint's config.json) or, if empty, of the params.json in its folder.

    The numbers of heads are those of ``heads``, the value of ``--heads``, if it is given.
    """
    fields = config or _parameters(checkpoint.path)
    if heads:
        queries, keys = check_heads(heads)
        return {**fields, "num_attention_heads": queries, "num_key_value_heads": keys}
    return fields


def check_heads(heads: str) -> tuple[int, int]:
    """Return the numbers of heads of queries and of keys: (32, 8) for "32/8", (32, 32) for "32"; raises ConfigError."""
    found = _HEADS.fullmatch(heads)
    if found is None:
        raise ConfigError(
            f"--heads {heads!r:.60} is not a number of heads.",
            hint="Write 32, or 32/8 for 32 heads of queries and 8 of keys and values.",
        )
    return int(found[1]), int(found[2] or found[1])


def _parameters(path: str) -> Mapping[str, Any]:
    folder = path if os.path.isdir(path) else os.path.dirname(path)
    with suppress(CheckpointError, OSError, ValueError):
        fields = read_json(read_small(os.path.join(folder, PARAMETERS)))
        return fields if isinstance(fields, dict) else {}
    return {}
