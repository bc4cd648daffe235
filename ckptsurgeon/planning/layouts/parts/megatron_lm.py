"""The layouts of Megatron-LM before Megatron-core, for GPT-2: `language_model.encoder`, and first `.transformer`.

From checkpoint_version 2 on, the rows of `query_key_value` have the order of Megatron-core. Version 0 has all queries,
then all keys, then all values; version 1 has each row of queries before its rows of keys and values. No tensor shows
the version. Megatron-LM reads a file of its own without a version as version 0. So a file with the first names must
state a version, or an iteration, which shows that Megatron-LM wrote it. A file with the names of `encoder` may lack
both: each Megatron-LM with these names writes version 2 or 3, and formats such as safetensors lose the version.
https://github.com/huggingface/transformers/blob/v4.40.2/src/transformers/models/megatron_gpt2/convert_megatron_gpt2_checkpoint.py,
https://github.com/NVIDIA/Megatron-LM/blob/core_v0.16.1/megatron/training/checkpointing.py
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from ....util.text import escape
from ..layout import Change, Layout, Unfit
from ..row_changes import HeadsFromThirds, RowsFromThirds

__all__ = ["megatron_lm_layouts"]

_VERSION = "checkpoint_version"
"""The field of the settings with the version that the checkpoint states."""
_SINCE = 2
_SAVE_AGAIN = "Load and save it with Megatron-LM, which writes version 3."
_ITERATION = "iteration"
"""The field of the settings with the iteration; files that Megatron-LM wrote state it."""
_ORDER = (
    "Megatron-LM's rows of queries, keys and values have the order of checkpoint_version 2 or 3; the file must state "
    "the version in addition to the tensors"
)
_FIRST_ORDER = "the rows of queries, keys and values are read in the order of checkpoint_version {}"
_MODULES = {
    "self_attention.linear_qkv": "{}.query_key_value",
    "self_attention.linear_proj": "{}.dense",
    "mlp.linear_fc1": "mlp.dense_h_to_4h",
    "mlp.linear_fc2": "mlp.dense_4h_to_h",
    "pre_mlp_layernorm": "post_attention_layernorm",
}


def megatron_lm_layouts(core: Layout) -> tuple[Layout, ...]:
    """Return Megatron-LM's layouts of a network; ``core`` is the layout of Megatron-core's own modules."""
    forms = (("encoder", "self_attention", False), ("transformer", "attention", True))
    return tuple(
        replace(
            core,
            name="megatron-lm",
            library="Megatron-LM before Megatron-core",
            names={ours: _named(theirs, stack, attention) for ours, theirs in core.names.items()},
            marks=tuple(_named(mark, stack, attention) for mark in core.marks),
            tested="transformers 4.40.2, megatron-core 0.16.1",
            fits=lambda tensors: True,
            unfit=_unfit(is_first) if version == _SINCE else _other_version(version, is_first),
            changes=tuple(_changes(core, version)),
            settings=f"{_ORDER if version == _SINCE else _FIRST_ORDER.format(version)}; {core.settings}",
            only_read=is_first or version < _SINCE,
        )
        for stack, attention, is_first in forms
        for version in (_SINCE, 1, 0)
    )


def _changes(core: Layout, version: int) -> Iterator[Change]:
    """Yield the changes of a file of the given version; the family has all queries, then all keys, then all values."""
    for change in core.changes:
        if not isinstance(change, HeadsFromThirds) or version == _SINCE:
            yield change
        elif version == 1:
            yield RowsFromThirds(change.name)


def _named(name: str, stack: str, attention: str) -> str:
    for core, older in _MODULES.items():
        name = name.replace(core, older.format(attention))
    return f"language_model.{name.replace('decoder.', f'{stack}.')}"


def _unfit(is_first: bool) -> Callable[[Mapping[str, Any]], Unfit | None]:
    """Return a function that returns why a file of Megatron-LM cannot be converted; None if it can.

    The function takes the fields of the configuration, which must state version 2 or later. ``is_first`` is true for
    files with the older names (``.transformer``); only files with the names of ``encoder`` may have no version.
    """

    def unfit(config: Mapping[str, Any]) -> Unfit | None:
        if _VERSION not in config:
            why = f"it states no {_VERSION}, and files with its names may have the order of rows of version 0"
            return Unfit(why, _SAVE_AGAIN) if is_first else None
        stated = config[_VERSION]
        if isinstance(stated, (int, float)) and stated >= _SINCE:  # NaN is not
            return None
        if isinstance(stated, (int, float)) and stated < _SINCE:
            why = f"its {_VERSION} is {stated:g}, whose rows of queries, keys and values have another order"
        else:
            why = f"its {_VERSION} is {escape(repr(stated), 40)}, which does not determine the order of rows"
        return Unfit(why, _SAVE_AGAIN)

    return unfit


def _other_version(version: int, is_first: bool) -> Callable[[Mapping[str, Any]], Unfit | None]:
    """Return a function that returns None for a file of the given version (0 or 1), and the reason for any other file.

    ``is_first`` is true for files with the older names (``.transformer``): such a file that states an iteration, but no
    version, has version 0.
    """

    def unfit(config: Mapping[str, Any]) -> Unfit | None:
        stated = config.get(_VERSION, 0 if is_first and _ITERATION in config else None)
        if type(stated) in (int, float) and stated == version:
            return None
        return Unfit(f"its {_VERSION} is not {version}", _SAVE_AGAIN)

    return unfit
