"""Checks the overrides of a configuration of transformers, and merges them into its fields."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from ...tensors.dtypes import dtype_named
from ...util.text import brief_repr
from .._document import Document, check_fields

__all__ = ["check_overrides", "config_of", "merged_fields", "own_fields"]

FETCHING = ("attn_implementation", "experts_implementation", "_attn_implementation", "_experts_implementation")
"""Fields that are left out because they may name code on the hub; the weights do not depend on them."""


FLOATS = {"Infinity": math.inf, "-Infinity": -math.inf, "NaN": math.nan}
"""Numbers that transformers 5 writes as ``{"__float__": "Infinity"}``, since JSON does not have them."""


def config_of(config_class: Any, fields: Mapping[str, Any]) -> Any:
    """Return an object of ``config_class`` with the fields of a config.json; exceptions of the class are not caught."""
    return config_class.from_dict({name: _decoded(value) for name, value in fields.items() if name not in FETCHING})


def _decoded(value: Any) -> Any:
    if isinstance(value, dict):
        if value.keys() == {"__float__"}:
            return FLOATS.get(str(value["__float__"]), value)
        return {name: _decoded(one) for name, one in value.items()}
    return [_decoded(one) for one in value] if isinstance(value, list) else value


def check_overrides(
    document: Document, config_class: Any, fields: Mapping[str, Any], overrides: Mapping[str, Any], *, inside: str = ""
) -> None:
    """Raise ConfigError if an override is for a field that the configuration class does not have.

    The class itself would accept any field. ``inside`` is the part of the message that says which nested configuration
    is checked.
    """
    known = {*own_fields(config_class), *config_class.attribute_map, *fields, "num_labels"}
    hidden = {"architectures", "auto_map", "model_type", "transformers_version", *FETCHING}
    known = {name for name in known if not name.startswith("_")} - hidden
    check_fields(document, f"{config_class.__name__}{inside}", overrides, sorted(known))
    labels, number = overrides.get("id2label"), overrides.get("num_labels")
    if isinstance(labels, dict) and number is not None and len(labels) != number:
        raise document.fail(
            f"num_labels{inside} is {brief_repr(number, 60)}, but id2label has {len(labels)} labels.",
            "Leave one of the two fields out: each determines the other.",
        )
    for name, value in overrides.items():
        part = _class_of_part(config_class, name, fields, value)
        if part is not None:
            check_overrides(document, part, fields.get(name) or {}, value, inside=f" ({name})")


def _class_of_part(config_class: Any, name: str, fields: Mapping[str, Any], value: Any) -> Any:
    """Return the class of the part ``name`` of a configuration if ``value`` has some of its fields; None otherwise.

    A part that may be of any type, such as the language model of LLaVA, is of the type that ``fields`` say.
    """
    part = config_class.sub_configs.get(name)
    if part is None or not isinstance(value, dict):
        return None
    if hasattr(part, "attribute_map"):
        return part
    old = fields.get(name)
    kind = old.get("model_type") if isinstance(old, dict) else None
    if not isinstance(kind, str) or value.get("model_type", kind) != kind or not hasattr(part, "for_model"):
        return None  # all fields of the part are replaced
    try:
        return type(part.for_model(kind))
    except ValueError:  # a type that this transformers does not know
        return None


def own_fields(config_class: Any) -> set[str]:
    """Return the names of the fields of a configuration class, whether it is a dataclass or an older class."""
    if dataclasses.is_dataclass(config_class):
        return {field.name for field in dataclasses.fields(config_class)}
    return set(config_class().to_dict())


def merged_fields(config_class: Any, fields: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields with the overrides applied. A field that has several names is kept only under the main one.

    If ``num_labels`` changes the number of labels, the old label names are removed; ``id2label`` also sets
    ``label2id``.
    """
    merged = {config_class.attribute_map.get(key, key): value for key, value in fields.items()}
    for key, value in overrides.items():
        key = config_class.attribute_map.get(key, key)
        if key in ("dtype", "torch_dtype"):
            merged.pop("torch_dtype", None)
            key, value = "dtype", dtype_named(str(value))
        if key == "num_labels" and len(merged.get("id2label") or ()) != value:
            merged = {name: old for name, old in merged.items() if name not in ("id2label", "label2id")}
        if key == "id2label" and isinstance(value, dict) and "label2id" not in overrides:
            merged["label2id"] = {label: int(number) for number, label in value.items()}
        part = _class_of_part(config_class, key, merged, value)
        if part is not None:
            value = merged_fields(part, merged.get(key) or {}, value)
        merged[key] = value
    return merged
