"""Reads the fields of the processors of texts, images and videos, in whichever file of a folder they are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from ....destinations.hf.files import PREPROCESSOR
from ..folder import ModelFolder
from ..tokenizer.tokenizer_files import object_in

__all__ = ["PROCESSOR", "VIDEO", "Section", "at_path", "image_section", "processor_section", "video_section"]

PROCESSOR = "processor_config.json"
VIDEO = "video_preprocessor_config.json"


class Section(NamedTuple):
    """The fields of a processor, and the file, or section of a file, that has them (``where``, text for messages)."""

    where: str
    fields: Mapping[str, Any]


def processor_section(folder: ModelFolder) -> Section:
    """Return the fields of the whole processor, such as the number of tokens for an image."""
    return Section(PROCESSOR, object_in(folder, PROCESSOR))


def image_section(folder: ModelFolder) -> Section:
    """Return the fields of the image processor; transformers 5 saves them in processor_config.json."""
    return _section(folder, "image_processor", PREPROCESSOR)


def video_section(folder: ModelFolder) -> Section:
    """Return the fields of the video processor; transformers 5 saves them in processor_config.json."""
    return _section(folder, "video_processor", VIDEO)


def _section(folder: ModelFolder, name: str, file: str) -> Section:
    inner = object_in(folder, PROCESSOR).get(name)
    if isinstance(inner, dict):  # transformers then does not read the other file
        return Section(f"{name} of {PROCESSOR}", inner)
    return Section(file, object_in(folder, file))


def at_path(config: Mapping[str, Any], path: str) -> Any:
    """Return the value at a dotted path in a configuration; None if there is none."""
    value: Any = config
    for part in path.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value
