"""Reads ``meta.yaml`` in the folder of a model that ESPnet packed: the list of the model's files.

Follows ``espnet2/main_funcs/pack_funcs.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing, suppress

from ..errors import CheckpointError
from ..storage.read.base import Folder
from .base.limits import BESIDE_BYTES

__all__ = ["META", "packed_weights"]

META = "meta.yaml"
_SUFFIX = ".pth"
_LANGUAGE_MODEL = "lm_file"


def packed_weights(folder: Folder, names: Sequence[str]) -> dict[str, str]:
    """Return {entry: path} of the checkpoints that a folder's ``meta.yaml`` lists; {} if there are none.

    An entry is, for example, ``asr_model_file``. The language model comes last. ``names`` has the names of the files in
    the folder.
    """
    if META not in names:
        return {}
    from ..storage.yaml_text import read_yaml  # imports yaml, which most commands do without

    found: object = None
    with suppress(CheckpointError, UnicodeDecodeError), closing(folder.file(META)) as file:
        text = file.read(0, file.size).decode("utf-8") if file.size <= BESIDE_BYTES else ""
        found = read_yaml(text, META)
    files = found.get("files") if isinstance(found, dict) and "espnet" in found else None
    weights = {
        entry: path
        for entry, path in (files.items() if isinstance(files, dict) else ())
        if isinstance(entry, str) and isinstance(path, str) and path.endswith(_SUFFIX)
    }
    return dict(sorted(weights.items(), key=lambda one: one[0] == _LANGUAGE_MODEL))
