"""JSON objects beside the weights of a model, read and written."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ...errors import ConfigError
from ...storage.json_text import read_json
from ...storage.read.small import read_small
from ...util.text import escape

__all__ = ["json_text", "parsed_object", "read_object"]


def json_text(document: Mapping[str, Any]) -> str:
    """Return a document as transformers writes it."""
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def read_object(path: str) -> dict[str, Any]:
    """Return the JSON object in a small file; raises SourceError, or ConfigError if it is not one."""
    return parsed_object(read_small(path), path)


def parsed_object(given: bytes, path: str) -> dict[str, Any]:
    """Return the JSON object that bytes read from ``path`` spell; raises ConfigError if they do not."""
    try:
        data = read_json(given)
    except ValueError as error:
        raise ConfigError(f"{escape(path)} is not valid JSON: {escape(str(error))}.") from error
    if not isinstance(data, dict):
        raise ConfigError(f"{escape(path)} is not a JSON object.")
    return data
