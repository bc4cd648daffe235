"""Inputs that models that come together take otherwise, as the files of their processors say: a note."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

from ...errors import ConfigError, SourceError
from ...storage.read.uri import scheme_of
from ...util.text import brief_repr, escape
from .folder import ModelFolder

__all__ = ["input_notes"]

PREPROCESSOR = "preprocessor_config.json"
PROCESSOR = "processor_config.json"
PARTS = ("feature_extractor", "image_processor")
"""Where the latter has the fields of the former."""
IGNORED = re.compile(r"^_|_(type|class)$|^(return_|use_fast|device|disable_grouping|input_data_format|data_format)")
"""Names of fields that tell no values of inputs."""
LONGEST = 60
MOST = 6


def input_notes(other: str, theirs: ModelFolder, name: str, ours: ModelFolder) -> Iterator[str]:
    """Yield what differs in the inputs of two models of these names; of a field that one lacks nothing is known."""
    there, here = _fields(theirs), _fields(ours)
    differing = [
        f"{escape(field)} is {_said(there[field])} in {escape(other)}, {_said(value)} in {escape(name)}"
        for field, value in here.items()
        if field in there and not IGNORED.search(field) and _differ(there[field], value)
    ]
    if len(differing) > MOST:
        differing[MOST:] = [f"and {len(differing) - MOST} more"]
    if differing:
        yield f"inputs are made otherwise by the {PREPROCESSOR} beside them: {'; '.join(differing)}"


def _differ(one: Any, here: Any) -> bool:
    """Whether two values differ that are spelled alike: sizes were numbers before they were objects."""
    if None in (one, here) or isinstance(one, dict | list) != isinstance(here, dict | list):
        return False
    if isinstance(one, dict) and isinstance(here, dict):
        return any(one[name] != here[name] for name in one if name in here) or one.keys().isdisjoint(here)
    return bool(one != here)


def _fields(folder: ModelFolder) -> Mapping[str, Any]:
    """Return what a processor's file says; nothing of one that cannot be read, or would have to be fetched."""
    named = {one.name: one for one in folder.files if not scheme_of(one.path)}
    with suppress(ConfigError, SourceError):
        if PREPROCESSOR in named:
            return folder.document(PREPROCESSOR)
        found = folder.document(PROCESSOR) if PROCESSOR in named else {}
        return {
            name: value for part in PARTS if isinstance(found.get(part), dict) for name, value in found[part].items()
        }
    return {}


def _said(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return escape(value if isinstance(value, str) else brief_repr(value, LONGEST))
