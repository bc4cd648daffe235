"""Checks the fields of a configuration; the error for an unknown field or a wrong type contains the field's path."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from ...errors import ConfigError
from ...util.text import brief_repr, escape

__all__ = ["ModelReference", "at", "fault", "items", "reference", "table", "text"]


@dataclass(frozen=True)
class ModelReference:
    """A model in a configuration: its text (``written``), and the parts of this text, PATH[@REVISION][+LORA]."""

    written: str
    path: str
    revision: str = ""
    lora: str = ""


def at(where: str, field: str | int) -> str:
    """Return the path of a field for messages, such as ``slices[0].sources``; ``where`` is its parent's path."""
    return f"{where}[{field}]" if isinstance(field, int) else f"{where}.{field}" if where else field


def fault(where: str, why: str, hint: str = "") -> ConfigError:
    """Return the error with the message ``WHERE WHY.``; an empty ``where`` means the whole configuration."""
    return ConfigError(f"{escape(where)} {why}." if where else f"the configuration {why}.", hint=hint)


def table(where: str, data: Any, known: Collection[str], needed: Collection[str] = ()) -> Mapping[str, Any]:
    """Return the map ``data`` without its empty fields.

    Raises ConfigError unless it is a map with all ``needed`` fields, and with no other fields than the ``known`` ones.
    """
    if not isinstance(data, dict):
        raise fault(where, f"is {brief_repr(data)}, not a map", f"Its fields are {', '.join(known)}.")
    for field in data:
        if field not in known:
            near = difflib.get_close_matches(str(field), known, n=1)
            hint = f"Did you mean {near[0]}?" if near else f"Its fields are {', '.join(known)}."
            raise fault(where, f"has an unknown field {brief_repr(field)}", hint)
    given = {field: value for field, value in data.items() if value is not None}
    lacking = [field for field in needed if field not in given]
    if lacking:
        raise fault(where, f"has no {lacking[0]}", f"Write {lacking[0]}: …")
    return given


def items(where: str, data: Any, what: str) -> list[Any]:
    """Return ``data`` if it is a non-empty list, else raise ConfigError.

    ``what`` is the word for the items in the error message.
    """
    if not isinstance(data, list) or not data:
        raise fault(where, "is an empty list" if data == [] else f"is {brief_repr(data)}, not a list of {what}")
    return data


def text(where: str, data: Any) -> str:
    """Return ``data`` if it is a non-empty string, else raise ConfigError."""
    if not isinstance(data, str) or not data:
        raise fault(where, "is an empty string" if data == "" else f"is {brief_repr(data)}, not a string")
    return data


def reference(where: str, data: Any) -> ModelReference:
    """Return the model that ``data`` names: a string, or a map with ``model`` or ``path``; else raise ConfigError."""
    if not isinstance(data, dict):
        return _from_text(where, text(where, data))
    if "path" in data:
        return _from_path(where, data)
    given = table(where, data, ("model", "lora", "override_architecture"), ("model",))
    model = _from_path(at(where, "model"), given["model"])
    if not given.get("lora"):
        return model
    lora = _from_path(at(where, "lora"), given["lora"])
    return ModelReference(f"{model.written}+{lora.written}", model.path, model.revision, lora.written)


def _from_path(where: str, data: Any) -> ModelReference:
    if not isinstance(data, dict):
        return _from_text(where, text(where, data))
    given = table(where, data, ("path", "revision"), ("path",))
    path, revision = text(at(where, "path"), given["path"]), str(given.get("revision", ""))
    return ModelReference(f"{path}@{revision}" if revision else path, path, revision)


def _from_text(where: str, written: str) -> ModelReference:
    model, _, lora = written.partition("+")
    path, _, revision = model.partition("@")
    if not path:
        raise fault(where, f"is {brief_repr(written)}, which does not contain the path of a model")
    return ModelReference(written, path, revision, lora)
