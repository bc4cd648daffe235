"""Plans the quantisation of a model: the operation, the settings, and the files beside the weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ...checkpoint.checkpoint import Checkpoint
from ...destinations.hf.files import ADAPTER, CONFIG
from ...errors import ConfigError, PlanError
from ...planning.target import Companion
from ...tensors.encoders._schemes import OWN_DTYPES, SCHEMES, stated_settings
from ...util.text import count, escape
from ..model_folder.documents import json_text
from ..model_folder.folder import ModelFolder
from .choosing import chosen_matrices

__all__ = ["Quantising", "check_scheme", "quantising"]

QUANTISATION = "quantization_config"


@dataclass(frozen=True)
class Quantising:
    """How a model is quantised: the operation as plain data, the settings for its config.json, notes for the user."""

    row: Mapping[str, Any]
    settings: Mapping[str, Any]
    notes: tuple[str, ...]

    def folder(self, folder: ModelFolder) -> ModelFolder:
        """Return the files beside the weights, with the settings in config.json, if there is one."""
        if not folder.config:
            return folder
        text = json_text({**folder.config, QUANTISATION: self.settings})
        files = (Companion(CONFIG, text=text), *(one for one in folder.files if one.name != CONFIG))
        return replace(folder, files=files)


def check_scheme(
    name: str | None, include: Sequence[str], exclude: Sequence[str], *, others: Sequence[str] = ()
) -> None:
    """Raise ConfigError if the scheme is unknown, or if patterns are given without a scheme.

    ``others`` are options that do not go with it.
    """
    if name is not None and others:
        raise ConfigError(
            f"--quantize does not go with {others[0]}, or an output in GGUF.",
            hint="For llama.cpp, --gguf-type q8_0 rounds matrices; to quantise a GGUF model, convert it first.",
        )
    if name is None and (include or exclude):
        option = "--include" if include else "--exclude"
        raise ConfigError(
            f"{option} chooses what --quantize quantises, and there is no --quantize.",
            hint="ckpt filter writes some of the tensors of a checkpoint.",
        )
    if name is not None and name not in SCHEMES:
        raise ConfigError(
            f"--quantize {escape(name)} is unknown.",
            hint=f"Use one of {', '.join(SCHEMES)}.",
        )


def quantising(
    checkpoint: Checkpoint,
    folder: ModelFolder,
    name: str,
    *,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    dtype: str = "",
) -> Quantising:
    """Return how a model is quantised; ``dtype`` is that of the weights that are written, '' if it stays.

    ``folder`` has the files beside the weights. Raises PlanError for a model that is quantised already, an adapter, or
    a matrix that does not fit, PatternError for a pattern that matches nothing.
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
            f"{escape(checkpoint.path)} is quantised already: {count(len(coded), 'tensor')}, {escape(coded[0].name)} "
            f"among them ({escape(coded[0].method)}).",
            hint="--dequantize --quantize decodes it and rounds it again, in one pass.",
            details=[one.name for one in coded],
        )
    if any(one.name == ADAPTER for one in folder.files):
        raise PlanError(
            f"{escape(checkpoint.path)} is an adapter, whose weights no loader takes quantised.",
            hint="Merge it into its base first: ckpt lora merge.",
        )
