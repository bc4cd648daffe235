"""The files of a PEFT adapter: its weights, and the configuration beside them."""

from __future__ import annotations

import os

from ...analysis.inspect.adapter import AdapterSettings, adapter_settings
from ...checkpoint.checkpoint import Checkpoint
from ...errors import CheckpointError, FormatError, SourceError
from ...storage.json_text import read_json
from ...storage.read._links import leads_out
from ...storage.read.base import File, Folder
from ...storage.read.uri import scheme_of
from ...util.text import escape

__all__ = ["BYTES", "CONFIG", "WEIGHTS", "configuration_of", "is_beside", "settings_beside"]

CONFIG = "adapter_config.json"
WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
BYTES = 16 << 20


def is_beside(weights: File) -> bool:
    """Whether a configuration lies beside a file; a web server does not say, and what PEFT called so has one."""
    if weights.name not in WEIGHTS:
        return False
    return scheme_of(weights.uri) in ("http", "https") or CONFIG in weights.folder().names()


def configuration_of(folder: Folder) -> File:
    """Return the configuration in a folder; raises SourceError where it is not there, or a link to another's."""
    path = os.path.join(folder.uri, CONFIG)
    if leads_out(path):
        raise SourceError(f"{escape(path)} is a link out of its folder, which is not followed.", hint="Copy it there.")
    return folder.file(CONFIG)


def settings_beside(checkpoint: Checkpoint) -> tuple[AdapterSettings | None, tuple[str, ...]]:
    """Return what is said of the adapter that a checkpoint is, and a note where that is not understood."""
    weights = next((file for file in checkpoint.open_files().values() if file.name in WEIGHTS), None)
    try:
        if weights is None or not is_beside(weights):
            return None, ()
        data = _read(configuration_of(weights.folder()))
        settings = adapter_settings(data)
        if settings is None:
            return None, (f"{CONFIG} is not understood: it has no peft_type",)
        return settings, _differences(checkpoint, data)
    except (ValueError, SourceError, FormatError) as error:
        return None, (f"{CONFIG} is not understood: {error}",)


def _differences(checkpoint: Checkpoint, data: object) -> tuple[str, ...]:
    """Say in what a configuration differs from the tensors; nothing of an adapter that is not merged here anyway."""
    from ...methods.lora.adapter import read_adapter
    from ...methods.lora.config import parse_config

    try:
        config = parse_config(data, CONFIG)
    except CheckpointError:
        return ()
    try:
        notes = read_adapter(checkpoint, config, checkpoint.path, lambda key: 1.0).notes
    except CheckpointError as error:
        return (f"{CONFIG} does not fit the tensors: {error.message}",)
    return tuple(f"{CONFIG}: {note}" for note in notes)


def _read(file: File) -> object:
    try:
        if file.size > BYTES:
            raise ValueError(f"it has {file.size} bytes")
        return read_json(file.read(0, file.size))
    finally:
        file.close()
