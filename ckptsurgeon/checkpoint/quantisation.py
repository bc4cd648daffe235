"""Reads the quantisation settings of a model from its folder, or from the metadata of its file."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import closing, suppress
from typing import Any

from ..errors import CheckpointError
from ..storage.json_text import read_json
from ..storage.read.base import Folder
from ..tensors.quantised.settings import quantisation_of

__all__ = [
    "SETTINGS",
    "SETTINGS_ENTRIES",
    "configuration",
    "document_of",
    "quantisation_settings",
    "settings_among",
    "settings_by_file",
    "settings_in",
    "without_settings",
]

SETTINGS = "quantization_config"
"""The metadata entry that contains settings as JSON, in files of nunchaku and ckptsurgeon."""

_CONFIGS = ("config.json", "params.json")
"""The configurations of transformers and of Mistral's own models; both have a section with quantisation settings."""
_FILES = (*_CONFIGS, "hf_quant_config.json", "quantize_config.json", "quant_config.json")
"""All files with quantisation settings: ``_CONFIGS``, and the files of ModelOpt, AutoGPTQ and AutoAWQ."""
SETTINGS_ENTRIES = (SETTINGS, "_quantization_metadata")
"""The metadata entries that contain settings: ``quantization_config``, and the entry of ComfyUI."""
_MLX = "quantization"
"""The section of config.json that MLX reads; MLX also writes the same settings as ``quantization_config``."""
_BYTES = 16 << 20


def settings_in(metadata: Mapping[str, str]) -> dict[str, Any]:
    """Return the quantisation settings in a file's metadata (nunchaku, ComfyUI); {} if there are none."""
    for name in SETTINGS_ENTRIES:
        with suppress(ValueError):
            found = read_json(metadata[name]) if name in metadata else None
            if isinstance(found, dict) and found:
                return found
    return {}


def without_settings(metadata: Mapping[str, str], plain: Collection[str] = ()) -> dict[str, str]:
    """Return the metadata of a file without quantisation settings, for an output whose weights are not quantised.

    ``plain`` has the keys of these weights. Metadata of torchao has an entry for each of them: it is changed to say
    that the weight is an ordinary tensor.
    """
    kept = {name: value for name, value in metadata.items() if name not in SETTINGS_ENTRIES}
    if TORCHAO not in metadata:
        return kept
    return {name: PLAIN if name in plain and TYPE in value else value for name, value in kept.items()}


TORCHAO, TYPE, PLAIN = "tensor_names", '"_type"', '{"_type": "Tensor"}'
"""Metadata of torchao: the list of weights, a part of the entry of each weight, and the entry of a plain weight."""


def quantisation_settings(folder: Folder | None) -> dict[str, Any]:
    """Return the quantisation settings in the files of a folder; {} if there are none, or they cannot be read."""
    if folder is None:
        return {}
    with suppress(CheckpointError):
        return settings_among(folder.names(), lambda name: document_of(folder, name))
    return {}


def settings_among(names: Collection[str], read: Callable[[str], Any]) -> dict[str, Any]:
    """Return the quantisation settings in the files ``names`` of a folder; {} if there are none.

    If several files have settings, the first in the order of ``_FILES`` decides. ``read`` is a function that returns
    the parsed JSON of a file.
    """
    return next((found for _, found in _each_settings(names, read)), {})


def _each_settings(names: Collection[str], read: Callable[[str], Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (file name, settings) of each file in ``names`` that has quantisation settings, the preferred one first.

    ``read`` is a function that returns the parsed JSON of a file.
    """
    for name in _FILES:
        if name in names:
            document = read(name)
            found = quantisation_of(document if name in _CONFIGS else {SETTINGS: document})
            if found:
                yield name, dict(found)
            if name == _CONFIGS[0] and (other := _of_mlx(document, found)):
                yield f"{name} ({_MLX})", dict(other)


def _of_mlx(document: Any, found: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the section ``quantization`` (for MLX) of a config.json if it differs from ``found``; else {}.

    ``found`` is the ``quantization_config`` of the same file. If ``found`` has a ``quant_method``, MLX did not write
    it, and {} is returned.
    """
    own = document.get(_MLX) if isinstance(document, dict) else None
    is_other = isinstance(own, dict) and own != found and "quant_method" not in found
    return own if isinstance(own, dict) and is_other and {"bits", "group_size"} <= {*own, *found} else {}


def settings_by_file(folder: Folder | None) -> dict[str, dict[str, Any]]:
    """Return {name of a file: the quantisation settings in it} for the files in a folder that have such settings."""
    with suppress(CheckpointError):
        if folder is not None:
            return dict(_each_settings(folder.names(), lambda name: document_of(folder, name)))
    return {}


def configuration(folder: Folder) -> dict[str, Any]:
    """Return the content of a folder's config.json; {} if there is none, or it cannot be read."""
    with suppress(CheckpointError):
        if _CONFIGS[0] in folder.names():
            found = document_of(folder, _CONFIGS[0])
            return found if isinstance(found, dict) else {}
    return {}


def document_of(folder: Folder, name: str) -> Any:
    """Return the parsed JSON of the file ``name`` in a folder; None if it cannot be read or is too large."""
    with closing(folder.file(name)) as file, suppress(ValueError, CheckpointError):
        return read_json(file.read(0, file.size)) if file.size <= _BYTES else None
    return None
