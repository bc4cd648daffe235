"""Checks the overrides of a configuration of transformers, and merges them into its fields."""

from __future__ import annotations

import dataclasses
import importlib
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from ...tensors.dtypes import dtype_named
from ...util.text import brief_repr
from .._document import Document, check_fields

__all__ = ["check_overrides", "config_of", "merged_fields", "own_fields"]

FETCHING = ("attn_implementation", "experts_implementation", "_attn_implementation", "_experts_implementation")
"""Fields that are left out because they may name code on the hub; the weights do not depend on them."""

OF_A_TYPE = ("architectures", "model_type", "transformers_version")
"""Fields that a nested configuration has if it was copied from the config.json of a model of its type."""

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
    known = {*own_fields(config_class), *config_class.attribute_map, *fields, "num_labels", *document.undeclared}
    hidden = {"auto_map", *OF_A_TYPE, *FETCHING}
    known = {name for name in known if not name.startswith("_")} - hidden
    check_fields(document, f"{config_class.__name__}{inside}", overrides, sorted(known))
    labels, number = overrides.get("id2label"), overrides.get("num_labels")
    if isinstance(labels, dict) and number is not None and len(labels) != number:
        raise document.fail(
            f"num_labels{inside} is {brief_repr(number, 60)}, but id2label has {len(labels)} labels.",
            "Leave one of the two fields out: each determines the other.",
        )
    for name, value in overrides.items():
        part = _part(config_class, name, fields, value)
        if part is not None and part.config_class is not None:
            own = {field: one for field, one in value.items() if part.is_fixed or field not in OF_A_TYPE}
            check_overrides(document, part.config_class, part.fields, own, inside=f" ({name})")


def own_fields(config_class: Any) -> set[str]:
    """Return the names of the fields of a configuration class, which may be a dataclass or an older class."""
    if dataclasses.is_dataclass(config_class):
        return {field.name for field in dataclasses.fields(config_class)}
    return set(config_class().to_dict())


def merged_fields(config_class: Any, fields: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields with the overrides applied. A field with several names is kept only under its main name.

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
        part = _part(config_class, key, merged, value)
        if part is not None:
            known = part.config_class
            value = {**part.fields, **value} if known is None else merged_fields(known, part.fields, value)
        merged[key] = value
    return merged


class _Part(NamedTuple):
    """A nested configuration before its fields are overridden: its fields, and its class (None if not known).

    ``is_fixed`` is false if the field ``model_type`` decides which class the nested configuration has.
    """

    fields: Mapping[str, Any]
    config_class: Any
    is_fixed: bool


def _part(config_class: Any, name: str, fields: Mapping[str, Any], value: Any) -> _Part | None:
    """Return the nested configuration that an override changes; None if ``name`` is not a nested configuration.

    ``value`` is the override. If ``fields`` lack this configuration, the default of ``config_class`` is returned. If
    the override sets another model type, the returned configuration has no fields, unless ``config_class`` allows
    only one class for it.
    """
    if not isinstance(value, dict):
        return None
    declared = config_class.sub_configs.get(name)
    default = getattr(config_class, "sub_configs_defaults", {}).get(name)
    given = fields.get(name)
    before: Mapping[str, Any] = given if isinstance(given, dict) else getattr(default, "init_kwargs", {})
    if hasattr(declared, "attribute_map"):
        return _Part(before, declared, is_fixed=True)
    own = before.get("model_type", getattr(default, "model_type", None))
    if declared is None and not isinstance(own, str):
        return None
    kind, known = value.get("model_type", own), importlib.import_module("transformers").CONFIG_MAPPING
    found = known[kind] if isinstance(kind, str) and kind in known else None
    return _Part(before if kind == own else {}, found, is_fixed=False)
