"""The layouts of Megatron-LM before Megatron-core, for GPT-2: `language_model.encoder`, and first `.transformer`.

From checkpoint_version 2 on, the rows of `query_key_value` have the order of Megatron-core. Versions 0 and 1 have other
orders, which no tensor shows. Megatron-LM takes a file without a version for version 0, so that the first names need a
version. The names of `encoder` do not: all Megatron-LM with these names writes version 2 or 3, so that a file without
one has lost it, as in safetensors, which has no place for it.
https://github.com/huggingface/transformers/blob/v4.40.2/src/transformers/models/megatron_gpt2/convert_megatron_gpt2_checkpoint.py
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from ....util.text import escape
from ..layout import Layout, Unfit

__all__ = ["megatron_lm_layouts"]

_VERSION = "checkpoint_version"
"""The field of the settings with the version that the checkpoint states."""
_SINCE = 2
_SAVE_AGAIN = "Load and save it with Megatron-LM, which writes version 3."
_ORDER = (
    "Megatron-LM's rows of queries, keys and values have the order of checkpoint_version 2 or 3, which a file must "
    "state beside the tensors"
)
_MODULES = {
    "self_attention.linear_qkv": "{}.query_key_value",
    "self_attention.linear_proj": "{}.dense",
    "mlp.linear_fc1": "mlp.dense_h_to_4h",
    "mlp.linear_fc2": "mlp.dense_4h_to_h",
    "pre_mlp_layernorm": "post_attention_layernorm",
}


def megatron_lm_layouts(core: Layout) -> tuple[Layout, ...]:
    """Return Megatron-LM's layouts of a network; ``core`` is that of Megatron-core's own modules."""
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
            unfit=_unfit(is_first),
            settings=f"{_ORDER}; {core.settings}",
            only_read=is_first,
        )
        for stack, attention, is_first in forms
    )


def _named(name: str, stack: str, attention: str) -> str:
    for core, older in _MODULES.items():
        name = name.replace(core, older.format(attention))
    return f"language_model.{name.replace('decoder.', f'{stack}.')}"


def _unfit(is_first: bool) -> Callable[[Mapping[str, Any]], Unfit | None]:
    """Return a function that returns why a version cannot be converted; ``is_first`` is true for the first names."""

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
            why = f"its {_VERSION} is {escape(repr(stated), 40)}, which does not say the order of rows"
        return Unfit(why, _SAVE_AGAIN)

    return unfit
