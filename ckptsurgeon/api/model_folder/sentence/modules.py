"""The modules of a sentence-transformers folder, as modules.json lists them, with their settings and weights.

https://github.com/huggingface/sentence-transformers/blob/master/sentence_transformers/SentenceTransformer.py
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any, NamedTuple

from ....destinations.hf.files import CONFIG
from ....destinations.hf.sentence_modules import MODULES, is_module_weights
from ....errors import CheckpointError
from ....planning.target import Companion
from ....storage.json_text import read_json
from ..folder import ModelFolder

__all__ = ["Module", "config_of", "is_weights_of", "modules_in", "pooling_modes", "settings_in", "weights_in"]

_FIELDS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_lasttoken": "lasttoken",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_weightedmean_tokens": "weightedmean",
}
"""{boolean field of a pooling before version 6: name of the mode}; the mean is the default."""


class Module(NamedTuple):
    """A module: its folder ('' for the network itself) and the name of its class without the package."""

    place: str
    kind: str


def modules_in(folder: ModelFolder) -> list[Module]:
    """Return the modules in the order in which they run; [] if modules.json is missing or not valid."""
    if all(one.name != MODULES for one in folder.files):
        return []
    rows: object = None
    with suppress(CheckpointError, ValueError):
        rows = read_json(folder.read(MODULES))
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        return []
    return [Module(str(row.get("path", "")), str(row.get("type")).rpartition(".")[2]) for row in rows]


def settings_in(folder: ModelFolder, name: str) -> Mapping[str, Any]:
    """Return the fields of a JSON file of the folder; {} if it is missing or cannot be read."""
    if any(one.name == name for one in folder.files):
        with suppress(CheckpointError, ValueError):
            return folder.document(name)
    return {}


def pooling_modes(fields: Mapping[str, Any]) -> list[str]:
    """Return the modes of a pooling; their results are joined. Version 6 has one field, older versions one per mode."""
    given = fields.get("pooling_mode")
    if given is not None:
        return sorted(map(str, given if isinstance(given, list) else [given]))
    return sorted(name for field, name in _FIELDS.items() if fields.get(field, name == "mean") is True)


def weights_in(folder: ModelFolder, module: Module) -> Companion | None:
    """Return the file with the weights of a module, which may be in either of two formats; None if there is none."""
    found = [one for one in folder.files if is_weights_of(module, one.name)]
    return max(found, key=lambda one: one.name.endswith(".safetensors"), default=None)


def is_weights_of(module: Module, name: str) -> bool:
    """Return whether a file of the folder has the name of a module's weights."""
    return is_module_weights(name) and name.startswith(f"{module.place}/")


def config_of(module: Module) -> str:
    """Return the name of the file with the settings of a module."""
    return f"{module.place}/{CONFIG}"
