"""Reads the recorded settings of a run, which an older version of ckptsurgeon may have written."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from ...errors import ConfigError
from ...util.text import escape
from ...util.version import __version__
from ..config.section import parse_settings
from ..config.settings import Settings
from ..folder.run_folder import BEST, RunFolder
from .result import plain_json

__all__ = ["check_known_settings", "known_settings"]

OLD_BEAM = 4
"""The ``train.beam`` that older versions recorded by default. This version records None, with the same meaning."""


def known_settings(lineage: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings in the lineage (the record of a run's origin) in the form of this version of ckptsurgeon.

    A setting that did not exist in the older version gets its default, since defaults do not change the run.
    """
    usual: dict[str, Any] = plain_json(asdict(Settings()))
    old = lineage["settings"]
    made = {
        name: {**usual[name], **value} if isinstance(value, dict) and isinstance(usual.get(name), dict) else value
        for name, value in {**usual, **old}.items()
    }
    return {**made, "beam": None} if made["beam"] == OLD_BEAM and made["decoding"] != "ctc_beam" else made


def check_known_settings(lineage: Mapping[str, Any], config: str, folder: RunFolder) -> None:
    """Raise ConfigError, with advice, if this version cannot read the settings that a run was started with."""
    try:
        parse_settings({**_given(lineage["settings"]), "epochs": None}, "its settings")
    except ConfigError as error:
        why = error.message.removeprefix("its settings: ")
        raise ConfigError(
            f"{escape(folder.path)} was started by another version of ckptsurgeon{_number(lineage)}, with settings "
            f"that this version cannot read: {why}",
            hint=f"Resume the run with that version, or {_another_run(config, folder)}.",
        ) from error


def _given(settings: Any) -> dict[str, Any]:
    """Return settings without the settings that are None, also in nested sections.

    In recorded settings, None means a default or infinity.
    """
    return {
        name: {key: one for key, one in value.items() if one is not None}
        if isinstance(value, Mapping) and name not in ("freeze", "lr_scale")
        else value
        for name, value in settings.items()
        if value is not None
    }


def _number(lineage: Mapping[str, Any]) -> str:
    version = str(lineage.get("ckptsurgeon", __version__))
    return f" ({escape(version)})" if version != __version__ else ""


def _another_run(config: str, folder: RunFolder) -> str:
    """Return advice for starting another run, from the weights of this run if it has saved any."""
    names = (BEST, os.path.join("last", "model.safetensors"))
    weights = next((folder.of(name) for name in names if os.path.isfile(folder.of(name))), None)
    init = f" --init {_quoted(weights)}" if weights is not None else ""
    command = f"ckpt train {_quoted(config)}{init} --run DIR"
    return f"remove these settings from {_quoted(config)} and start another run: {command}"


def _quoted(path: str) -> str:
    return escape(shlex.quote(path))
