"""Compares the settings of adapters, which are in their adapter_config.json."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ...destinations.hf.files import ADAPTER
from ...methods.lora.config import REMADE
from ...util.text import escape, value_text
from ..model_folder.folder import ModelFolder
from .adapter_files import base_name

__all__ = ["other_settings", "setting_notes"]

BASE, START = "base_model_name_or_path", "init_lora_weights"
UNUSED = re.compile(
    r"^(auto_mapping|inference_mode|peft_version|runtime_config|megatron_.*|init_(?!lora_weights).*)$"
    r"|dropout$|^(loftq|eva|corda|lora_ga)_config$"
)
"""Matches names of fields that do not affect the results of a trained adapter."""
OFF_BY_DEFAULT = (
    "use_rslora", "use_dora", "fan_in_fan_out", "lora_bias", "rank_pattern", "alpha_pattern", "target_modules",
    "exclude_modules", "layers_to_transform", "layers_pattern", "modules_to_save", "layer_replication",
    "target_parameters", "trainable_token_indices", "alora_invocation_tokens", "use_qalora", "use_bdlora", "bias",
    "r", "lora_alpha", "feedforward_modules", START,
)  # fmt: skip
"""Fields that are also compared if a file lacks them: a missing field equals null, false, empty or "none".

All other fields are compared only if both files have a value: an older file lacks newer fields, and null as the base or
the task means "not known".
"""
LONGEST = 200
"""Values of settings with more characters than this are shortened in notes.

The limit is large, because two paths may differ only at their ends.
"""
MOST = 6
"""The largest number of settings that a note lists."""


def other_settings(donor: ModelFolder, models: Iterable[ModelFolder]) -> list[str]:
    """Return notes on the adapters in ``models`` whose settings differ from those of ``donor``.

    ``donor`` is the folder of the adapter whose adapter_config.json is copied to the output.
    """
    ends = f"the output gets the {ADAPTER} of {escape(donor.path)}"
    notes = (setting_notes(one.path, one.adapter, donor.path, donor.adapter) for one in models)
    return [f"{note}; {ends}" for each in notes for note in each]


def setting_notes(first: str, one: Mapping[str, Any], second: str, other: Mapping[str, Any]) -> Iterator[str]:
    """Yield a note that lists the settings in which two adapters differ; none if ``one`` or ``other`` is empty.

    ``one`` has the fields of the adapter_config.json of ``first``, and ``other`` those of ``second``. Fields that do
    not affect the results of a trained adapter are not compared.
    """
    fields = [field for field in dict.fromkeys((*other, *one)) if _differ(field, one, other)] if one and other else []
    pairs = [(field, *(value_text(each.get(field), LONGEST) for each in (one, other))) for field in fields]
    lines = [
        f"{escape(field)} is {here} in {escape(first)}, {there} in {escape(second)}" for field, here, there in pairs
    ]
    if len(lines) > MOST:
        lines[MOST:] = [f"and {len(lines) - MOST} more"]
    if lines:
        yield f"the adapters differ, according to {ADAPTER}: {'; '.join(lines)}"


def _differ(field: str, one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    here, there = one.get(field), other.get(field)
    if UNUSED.search(field) or _meant(field, here) == _meant(field, there):
        return False
    return field in OFF_BY_DEFAULT or (here is not None and there is not None)


def _meant(field: str, value: Any) -> Any:
    """Return a value in a form that can be compared; null, false, empty and "none" all become None."""
    if field == BASE and isinstance(value, str):
        return base_name(value)
    if field == START:
        return value if isinstance(value, str) and value.lower().startswith(REMADE) else None
    if isinstance(value, list) and all(isinstance(one, str) for one in value):
        return sorted(set(value)) or None  # the order of names has no effect
    return None if value in (None, False, {}, [], "", "none") else value
