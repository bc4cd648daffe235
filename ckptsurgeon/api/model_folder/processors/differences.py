"""Notes on inputs (images, audio) that two models prepare differently, according to their processor files."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

from ....destinations.hf.files import PREPROCESSOR
from ....errors import ConfigError, SourceError
from ....storage.read.uri import scheme_of
from ....util.differing_values import texts_apart
from ....util.text import escape
from ..folder import ModelFolder
from ..tokenizer.text_differences import text_notes
from .sections import PROCESSOR, VIDEO

__all__ = ["input_notes"]

FILES = {PREPROCESSOR: ("feature_extractor", "image_processor"), VIDEO: ("video_processor",)}
"""{file of a processor: sections of ``processor_config.json`` that may have its fields instead}"""
IGNORED = re.compile(
    r"^_|_(type|class)$|^(return_|use_fast|device|disable_grouping|input_data_format|data_format|chat_template$)"
)
"""Matches names of fields that do not affect the values of inputs."""
MOST_FIELDS = 6
"""The largest number of fields that a note lists."""


def input_notes(other: str, theirs: ModelFolder, name: str, ours: ModelFolder) -> Iterator[str]:
    """Yield notes on how two models prepare inputs differently; only fields that both have are compared.

    ``ours`` is the folder of the model called ``name``, and ``theirs`` the folder of the model called ``other``.
    """
    for file in (*FILES, PROCESSOR):
        there, here = _fields(theirs, file), _fields(ours, file)
        fields = [one for one in here if one in there and not IGNORED.search(one) and _differ(there[one], here[one])]
        values = [texts_apart(*_shared(there[one], here[one])) for one in fields]
        differing = [
            f"{escape(field)} is {one} in {escape(other)}, {two} in {escape(name)}"
            for field, (one, two) in zip(fields, values, strict=True)
        ]
        if len(differing) > MOST_FIELDS:
            differing[MOST_FIELDS:] = [f"and {len(differing) - MOST_FIELDS} more"]
        if differing:
            yield f"the models prepare inputs differently, according to {file}: {'; '.join(differing)}"
    yield from text_notes(other, theirs, name, ours)


def _shared(one: Any, here: Any) -> tuple[Any, Any]:
    """Return the parts of two differing values to show in a note.

    If both are dicts with common keys, the parts are the entries with these keys; otherwise, they are the whole values.
    """
    if isinstance(one, dict) and isinstance(here, dict) and not one.keys().isdisjoint(here):
        return {key: one[key] for key in one if key in here}, {key: here[key] for key in one if key in here}
    return one, here


def _differ(one: Any, here: Any) -> bool:
    """Return whether two values differ; False if only one of them is a JSON object or list, or if one is None.

    Sizes of images are numbers in older files, and objects in newer files, so these are not compared. Of two objects
    with common keys, only the entries with these keys are compared.
    """
    if None in (one, here) or isinstance(one, dict | list) != isinstance(here, dict | list):
        return False
    if isinstance(one, dict) and isinstance(here, dict):
        return any(one[name] != here[name] for name in one if name in here) or one.keys().isdisjoint(here)
    return bool(one != here)


def _fields(folder: ModelFolder, file: str) -> Mapping[str, Any]:
    """Return the fields of a processor's file or, if it is missing, those of its sections in processor_config.json.

    For processor_config.json itself, only the fields outside of its sections are returned. The result is empty if the
    file is missing, unreadable or remote.
    """
    named = {one.name for one in folder.files if not scheme_of(one.path)}
    with suppress(ConfigError, SourceError):
        if file in named and file != PROCESSOR:
            return folder.document(file)
        found = folder.document(PROCESSOR) if PROCESSOR in named else {}
        if file == PROCESSOR:
            return {name: value for name, value in found.items() if not isinstance(value, dict)}
        parts = (found.get(part) for part in FILES[file])
        return {name: value for part in parts if isinstance(part, dict) for name, value in part.items()}
    return {}
