"""Plans the quantisation of a model: the operation, the ``quantization_config``, and the changed config.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ...checkpoint.checkpoint import Checkpoint
from ...destinations.hf.files import ADAPTER, CONFIG
from ...errors import PlanError
from ...planning.target import Companion
from ...tensors.encoders._schemes import OWN_DTYPES, SCHEMES, stated_settings
from ...util.text import count, escape
from ..model_folder.documents import json_text
from ..model_folder.folder import ModelFolder
from .choosing import chosen_matrices

__all__ = ["Quantising", "quantising"]

QUANTISATION = "quantization_config"


@dataclass(frozen=True)
class Quantising:
    """How to quantise a model.

    ``row`` is the quantising operation as plain data, and ``settings`` the ``quantization_config`` for config.json.
    ``notes`` are the messages for the user.
    """

    row: Mapping[str, Any]
    settings: Mapping[str, Any]
    notes: tuple[str, ...]

    def folder(self, folder: ModelFolder) -> ModelFolder:
        """Return the files of a model's folder with the settings added to config.json, if there is one."""
        if not folder.config:
            return folder
        text = json_text({**folder.config, QUANTISATION: self.settings})
        files = (Companion(CONFIG, text=text), *(one for one in folder.files if one.name != CONFIG))
        return replace(folder, files=files)


def quantising(
    checkpoint: Checkpoint,
    folder: ModelFolder,
    name: str,
    *,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    dtype: str = "",
) -> Quantising:
    """Return the quantisation of a model by the scheme ``name``.

    ``folder`` has the other files of the model's folder. ``include`` and ``exclude`` select matrices. ``dtype`` is the
    dtype of the weights in the output, '' if it does not change. Raises PlanError for a model that is already
    quantised, an adapter, or a matrix that does not fit the scheme, PatternError for a pattern that matches nothing.
    """
    _check_plain(checkpoint, folder)
    scheme = SCHEMES[name]
    chosen = chosen_matrices(checkpoint, folder, scheme, include, exclude)
    row: dict[str, Any] = {"quantize": chosen.patterns(checkpoint), "to": name}
    if dtype in OWN_DTYPES:
        row["scales"] = dtype
    return Quantising(row, stated_settings(scheme, chosen.plain_modules), chosen.notes)


def _check_plain(checkpoint: Checkpoint, folder: ModelFolder) -> None:
    coded = checkpoint.codes.tensors
    if coded:
        raise PlanError(
            f"{escape(checkpoint.path)} is already quantised: {count(len(coded), 'tensor')}, such as "
            f"{escape(coded[0].name)} ({escape(coded[0].method)}).",
            hint="Use --dequantize and --quantize together to decode the model and quantise it again in one pass.",
            details=[one.name for one in coded],
        )
    if any(one.name == ADAPTER for one in folder.files):
        raise PlanError(
            f"{escape(checkpoint.path)} is an adapter, and no library loads adapters with quantised weights.",
            hint="First merge the adapter into its base with ckpt lora merge.",
        )
