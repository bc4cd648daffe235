"""Reads the fields of a destination's config.json: the destination itself, or the file to which it refers."""

from __future__ import annotations

import os
from typing import Any, NamedTuple

from ...storage.json_text import read_json
from ...storage.read.uri import leads_out
from ...util.text import escape
from .._document import Document

__all__ = ["GivenFields", "given_fields"]

_OWN = ("transformers", "architecture")


class GivenFields(NamedTuple):
    """The fields of a config.json, the folder and the name of this file, and the overrides of the destination."""

    fields: dict[str, Any]
    folder: str
    where: str
    overrides: dict[str, Any]


def given_fields(document: Document) -> GivenFields:
    """Return the fields of a destination's config.json, and its overrides; imports nothing.

    The config.json is the document itself, or the file to which the document refers. Raises ConfigError if it is not a
    configuration of transformers.
    """
    found = _given(document)
    if document.dequantized:
        found.fields.pop("quantization_config", None)
    return found


def _given(document: Document) -> GivenFields:
    if not document.model:
        folder, changed = os.path.dirname(document.path), dict(document.overrides)
        if "model_type" in changed:  # then the overrides are all fields of another model type
            return GivenFields(changed, folder, document.name, {})
        return GivenFields(dict(document.content), folder, document.name, changed)
    named = document.model["transformers"]
    if isinstance(named, str) and os.path.isdir(document.resolve(named)):
        named = os.path.join(named, "config.json")
        if leads_out(document.resolve(named)):
            raise document.fail(
                f"{escape(named)} is a link to a file outside its folder; such links are not followed.",
                "Name the file that the link leads to.",
            )
    text = document.text_file(named, "transformers")
    try:
        fields = read_json(text)
    except ValueError as error:
        raise document.fail(f"{escape(named)} is not valid JSON: {escape(str(error))}.") from None
    if not isinstance(fields, dict) or not ("model_type" in fields or "architectures" in fields):
        raise document.fail(
            f"{escape(named)} is not a configuration of transformers: it has neither model_type nor architectures."
        )
    overrides = {name: value for name, value in document.model.items() if name not in _OWN}
    return GivenFields(fields, os.path.dirname(document.resolve(named)), named, overrides)
