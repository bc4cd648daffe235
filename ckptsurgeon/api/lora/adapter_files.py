"""Reads the files of PEFT adapters, the names of their bases, and the architecture in a base's config.json."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import closing
from typing import TYPE_CHECKING

from ...analysis.adapter_settings import AdapterSettings, adapter_settings
from ...checkpoint.checkpoint import Checkpoint
from ...destinations.hf.files import ADAPTER, ADAPTER_WEIGHTS, CONFIG
from ...errors import FormatError, SourceError
from ...storage.json_text import read_json
from ...storage.read.base import File, Folder
from ...storage.read.uri import leads_out, scheme_of
from ...storage.small_files import SMALL_BYTES, read_file
from ...util.note_kind import NoteKind
from ...util.notes import Note, notes_of
from ...util.text import escape

if TYPE_CHECKING:
    from ...methods.lora.conv1d import KnownModel

__all__ = [
    "BYTES",
    "MLX_WEIGHTS",
    "adapter_of",
    "base_name",
    "configuration_of",
    "described_adapter",
    "has_configuration",
    "model_at",
    "other_base_notes",
]

MLX_WEIGHTS = "adapters.safetensors"
"""The name of the file in which mlx-lm stores an adapter."""
RECORDED_ALPHA = "ss_network_alpha"
"""The entry of the metadata in which kohya's scripts record the alpha of an adapter."""

# The files of a PEFT adapter: its weights, and the configuration in the same folder.

BYTES = 16 << 20
"""The largest adapter_config.json that is read, in bytes."""


def has_configuration(weights: File) -> bool:
    """Return whether ``weights`` has a file name of PEFT or mlx-lm, and there is an adapter_config.json in its folder.

    A folder at a URL cannot be listed; for weights with such a name, the result is then true.
    """
    if weights.name not in (*ADAPTER_WEIGHTS, MLX_WEIGHTS):
        return False
    return scheme_of(weights.uri) in ("http", "https") or ADAPTER in weights.folder().names()


def configuration_of(folder: Folder) -> File:
    """Return the adapter_config.json of a folder; raises SourceError if it is missing, or a link out of the folder."""
    path = os.path.join(folder.uri, ADAPTER)
    if leads_out(path):
        raise SourceError(
            f"{escape(path)} is a link to a file outside its folder; such links are not followed.",
            hint="Copy the file into the folder.",
        )
    return folder.file(ADAPTER)


def adapter_of(checkpoint: Checkpoint) -> tuple[AdapterSettings | None, tuple[Note, ...]]:
    """Return the settings (rank, alpha, modules) of the adapter in a checkpoint, and notes on them.

    The settings are None if the checkpoint is not an adapter, has no configuration, or if they cannot be read.
    """
    weights = next((file for file in checkpoint.open_files().values() if file.name in ADAPTER_WEIGHTS), None)
    try:
        if weights is None or not has_configuration(weights):
            return None, _without_configuration(checkpoint)
        data = _read(configuration_of(weights.folder()))
        settings = adapter_settings(data)
        if settings is None:
            return None, (_unusable("it has no peft_type"),)
        from .differences import differences  # only adapters need its imports

        return settings, differences(checkpoint, data)
    except (ValueError, SourceError, FormatError) as error:
        return None, (_unusable(str(error)),)


def described_adapter(checkpoint: Checkpoint) -> AdapterSettings | None:
    """Return the settings of an adapter, from its adapter_config.json or else from its keys and shapes.

    Returns None if the checkpoint is not an adapter.
    """
    from ...analysis.adapter_by_keys import adapter_by_keys  # few checkpoints need it

    found, _ = adapter_of(checkpoint)
    return found if found is not None else adapter_by_keys(checkpoint, checkpoint.metadata)


def _unusable(why: str) -> Note:
    return Note(NoteKind.UNREADABLE_FILE, f"{ADAPTER} cannot be used: {why}")


def _without_configuration(checkpoint: Checkpoint) -> tuple[Note, ...]:
    """Return the notes on a checkpoint without an adapter_config.json, which may be an adapter of kohya."""
    if RECORDED_ALPHA not in checkpoint.metadata:
        return ()
    from .recorded_alpha import recorded_alpha_notes  # only adapters need its imports

    return tuple(recorded_alpha_notes(checkpoint))


@notes_of(NoteKind.OTHER_BASE)
def other_base_notes(base: Checkpoint, *adapters: Checkpoint) -> Iterator[str]:
    """Yield a note on each adapter whose adapter_config.json names another base model than ``base``.

    ``base_model_name_or_path`` is compared with the folder of ``base`` by ``base_name``. If the path of the folder is a
    link, the name of the link and the name of the folder that it leads to are both accepted.
    """
    paths = _folders(base.folder.uri) if base.folder is not None else [""]
    own, known = os.path.basename(paths[0]), set(map(base_name, paths))
    for adapter in adapters:
        settings, _ = adapter_of(adapter)
        name = settings.base_model or "" if settings is not None else ""
        if own and name and base_name(name) not in known:
            said = f"the base of {escape(adapter.path)} is {escape(name)} (base_model_name_or_path)"
            yield f"{said}, not {escape(own)}"


def _folders(uri: str) -> list[str]:
    """Return the absolute path of a local folder, and the same path with links resolved; for a URL, the URL itself."""
    return [uri.rstrip("/")] if scheme_of(uri) else [os.path.abspath(uri), os.path.realpath(uri)]


def base_name(path: str) -> str:
    """Return the name of a base model for comparisons: the last part of its path or repository, in lower case.

    For a snapshot in the cache of the Hugging Face Hub, this is the name of the repository.
    """
    cached = re.search(r"models--(?:[^/]*--)?([^/]+)/snapshots/[^/]+/*$", path)
    return (cached[1] if cached else path.rstrip("/").rpartition("/")[2]).lower()


def _read(file: File) -> object:
    try:
        if file.size > BYTES:
            raise ValueError(f"it is too large: {file.size} bytes")
        return read_json(file.read(0, file.size))
    finally:
        file.close()


# The architecture in the config.json of a base.


def model_at(path: str, checkpoint: Checkpoint) -> KnownModel | None:
    """Return the architecture in the config.json of a base's folder; None if there is no known architecture.

    ``path`` is the path of the weights; '' for weights in memory, which have no folder.
    """
    if not path:
        return None
    try:
        config = json.loads(_beside(checkpoint) if "://" in path else _here(path))
    except (OSError, ValueError, RecursionError):
        return None
    from ...methods.lora.conv1d import known_model

    return known_model(config) if isinstance(config, dict) else None


def _here(path: str) -> bytes:
    folder = path if os.path.isdir(path) else os.path.dirname(path)
    path = os.path.join(folder, CONFIG)
    return b"" if leads_out(path) else read_file(path)


def _beside(checkpoint: Checkpoint) -> bytes:
    """Return the bytes of the config.json in a remote checkpoint's folder; b'' if it is not found there."""
    for weights in checkpoint.open_files().values():
        folder = weights.folder()
        if CONFIG not in folder.names():
            return b""
        with closing(folder.file(CONFIG)) as file:
            return file.read(0, min(SMALL_BYTES, file.size))
    return b""
