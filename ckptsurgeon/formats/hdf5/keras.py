"""Reads the metadata that Keras stores next to the weights in a ``.keras`` archive: its version and the date."""

from __future__ import annotations

from contextlib import suppress

from ...errors import CheckpointError
from ...storage.read.base import Folder
from ..base import limits
from ..base.untrusted import parse_json

__all__ = ["keras_metadata"]

_METADATA, _WEIGHTS = "metadata.json", "model.weights.h5"
_ENTRIES = ("keras_version", "date_saved")


def keras_metadata(folder: Folder) -> dict[str, str]:
    """Return the texts in ``metadata.json`` of a Keras model; {} if the folder is not a Keras model.

    ``folder`` is the model's archive or its unpacked folder.
    """
    found: object = None
    if {_METADATA, _WEIGHTS} <= {*folder.names()}:
        with suppress(CheckpointError, ValueError):
            file = folder.file(_METADATA)
            if file.size <= limits.BESIDE_BYTES:
                found = parse_json(file.read(0, file.size))
            file.close()
    texts = found if isinstance(found, dict) else {}
    return {name: texts[name][: limits.HDF5_NAME] for name in _ENTRIES if isinstance(texts.get(name), str)}
