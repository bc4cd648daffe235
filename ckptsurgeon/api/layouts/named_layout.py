"""The values of ``--layout`` and ``--heads``, and the result of a change of layout."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from ...checkpoint.checkpoint import Checkpoint
from ...errors import CheckpointError, ConfigError, PlanError
from ...planning.layouts.layout import LayoutChange
from ...planning.operations.perform import DerivedSource
from ...storage.json_text import read_json
from ...storage.read.uri import read_small
from ...util.text import count, escape

__all__ = [
    "ARCHITECTURE",
    "AUTO",
    "GGUF",
    "KEEP",
    "TRANSFORMERS",
    "NamedLayout",
    "check_heads",
    "check_layout",
    "settings_of",
]

AUTO, KEEP, GGUF, TRANSFORMERS = "auto", "keep", "gguf", "transformers"
ARCHITECTURE = "general.architecture"


@dataclass(frozen=True)
class NamedLayout:
    """A change of layout, the metadata that describe the new layout, and notes.

    ``is_gguf`` is true if the new layout is llama.cpp's. ``without`` has the names of metadata entries that are left
    out, because they do not describe the changed tensors. ``derived`` has the checkpoint after the operations of the
    change, if these were already performed on the headers to find the renaming rules. ``is_described`` is true if the
    source's config.json describes the new layout, too.
    """

    change: LayoutChange = field(default_factory=lambda: LayoutChange((), (), ()))
    metadata: Mapping[str, str] | None = None
    notes: tuple[str, ...] = ()
    is_gguf: bool = False
    without: tuple[str, ...] = ()
    derived: DerivedSource | None = None
    is_described: bool = False


def check_layout(name: str | None, heads: str | None = None, *, is_ruled: bool = False) -> None:
    """Raise ConfigError if ``name`` is neither None nor the name of a layout, or if ``heads`` is not valid.

    ``is_ruled`` is true if renaming rules are given, which cannot be combined with a layout.
    """
    if is_ruled and name not in (None, KEEP):
        raise ConfigError(
            "--layout itself renames all tensors, so renaming rules cannot be used with it.",
            hint="Leave out --map, --map-file and --ruleset, and rename the output in a second run.",
        )
    if heads is not None:
        check_heads(heads)
    if name in (None, AUTO, KEEP, GGUF, TRANSFORMERS):
        return
    from ...planning.layouts.recognise import layout_names

    if name not in layout_names():
        names = dict.fromkeys((AUTO, KEEP, GGUF, *layout_names()))
        raise ConfigError(f"--layout {name!r:.60} is unknown.", hint=f"Use one of {', '.join(names)}.")


PARAMETERS = "params.json"
"""The name of the configuration file in folders in Meta's and Mistral's own formats."""
_HEADS = re.compile(r"([1-9][0-9]{0,5})(?:/([1-9][0-9]{0,5}))?")


def settings_of(checkpoint: Checkpoint, config: Mapping[str, Any], heads: str = "") -> Mapping[str, Any]:
    """Return ``config``, the fields of config.json; if it is empty, the fields of params.json in the same folder.

    If ``heads``, the value of ``--heads``, is given, its numbers of heads are used; raises PlanError if the file states
    other numbers.
    """
    fields = {**(config or _parameters(checkpoint.path)), **_beside(checkpoint)}
    if not heads:
        return fields
    from ...planning.layouts.head_sizes import GIVEN
    from ...planning.layouts.heads import heads_in

    queries, keys = check_heads(heads)
    stated = heads_in(checkpoint, fields)
    if stated and (stated["heads"], stated["keys"]) != (queries, keys):
        file = "config.json" if config else PARAMETERS
        raise PlanError(
            f"--heads {heads}: {file} of {escape(checkpoint.path)} has {count(stated['heads'], 'head')} of queries and "
            f"{stated['keys']} of keys and values.",
            hint=f"Leave out --heads, or correct {file} if it is of another model.",
        )
    return {**fields, "num_attention_heads": queries, "num_key_value_heads": keys, GIVEN: heads}


def _beside(checkpoint: Checkpoint) -> Mapping[str, Any]:
    """Return the version and the iteration that Megatron stores next to the tensors; {} if there is neither."""
    return {one.key: one.value for one in checkpoint.extras if one.key in ("checkpoint_version", "iteration")}


def check_heads(heads: str) -> tuple[int, int]:
    """Return the numbers of heads of queries and of keys: (32, 8) for "32/8", (32, 32) for "32"; raises ConfigError."""
    found = _HEADS.fullmatch(heads)
    if found is None:
        raise ConfigError(
            f"--heads {heads!r:.60} is not a valid number of heads.",
            hint="Write 32, or 32/8 for 32 heads of queries and 8 of keys and values.",
        )
    return int(found[1]), int(found[2] or found[1])


def _parameters(path: str) -> Mapping[str, Any]:
    folder = path if os.path.isdir(path) else os.path.dirname(path)
    with suppress(CheckpointError, OSError, ValueError):
        fields = read_json(read_small(os.path.join(folder, PARAMETERS)))
        return fields if isinstance(fields, dict) else {}
    return {}
