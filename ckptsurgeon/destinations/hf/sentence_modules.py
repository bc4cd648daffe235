"""Finds the files of the modules in a sentence-transformers folder, which are copied to the output.

``modules.json`` lists the modules. The first is the network itself, in the folder; the others are in subfolders, such
as a pooling in ``1_Pooling`` and often a dense layer, with its own weights, in ``2_Dense``.

https://github.com/huggingface/sentence-transformers/blob/master/sentence_transformers/SentenceTransformer.py
"""

from __future__ import annotations

import os
from contextlib import suppress

from ...errors import CheckpointError
from ...storage.json_text import read_json
from ...storage.read.base import Folder
from ...storage.read.uri import leads_out, read_small

__all__ = ["MODULES", "is_module_weights", "module_files"]

MODULES = "modules.json"
_BESIDE = ("config_sentence_transformers.json", MODULES, "sentence_bert_config.json")
_WEIGHTS = (".safetensors", ".bin")
_COPIED = (".json", ".txt", ".model", *_WEIGHTS)
"""The suffixes of the files of a module that are copied; files with code are never copied."""


def is_module_weights(name: str) -> bool:
    """Return whether a file that is copied to the output has the weights of a module, such as ``2_Dense``."""
    return "/" in name and name.endswith(_WEIGHTS)


def module_files(folder: Folder) -> list[str]:
    """Return the names of the files of modules, such as ``1_Pooling/config.json``; [] without a valid modules.json.

    Links to files or folders outside ``folder`` are left out.
    """
    present = set(folder.names())
    modules = _modules(folder) if MODULES in present else None
    if modules is None:
        return []
    found = [name for name in _BESIDE if name in present and not leads_out(os.path.join(folder.uri, name))]
    for module in modules:
        place = os.path.join(folder.uri, module)
        names = () if leads_out(place) else folder.inside(module).names()
        kept = (name for name in names if name.endswith(_COPIED) and not name.startswith("."))
        found += [f"{module}/{name}" for name in kept if not leads_out(os.path.join(place, name))]
    return found


def _modules(folder: Folder) -> list[str] | None:
    """Return the folders of modules, as modules.json names them; None if this file is not valid.

    Only folders that are there, and directly in ``folder``, are returned.
    """
    path = os.path.join(folder.uri, MODULES)
    rows: object = None
    with suppress(CheckpointError, ValueError):  # a file that cannot be read is not copied, and is named
        rows = None if leads_out(path) else read_json(read_small(path))
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        return None
    there = set(folder.folders())
    named = dict.fromkeys(str(row.get("path")) for row in rows)
    return [name for name in named if name in there and not name.startswith(".")]
